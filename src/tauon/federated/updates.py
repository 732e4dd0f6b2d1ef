"""What travels between the coordinator and the sites, and what is checked before it is aggregated.

An update is the local weights minus the weights that were sent. Trainable parameters travel, and running statistics (of batch norm); frozen
parameters and integer buffers (batch norm's counter) never do: their mean has no meaning.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauon.distributed import is_dtensor, local_part
from tauon.federated.messages import Message, MessageError
from tauon.train.statistics import running_statistics

__all__ = [
    "CONTROL",
    "Limits",
    "Update",
    "Weighting",
    "batch_norm_names",
    "check_update",
    "copies",
    "fingerprint",
    "finite_number",
    "freeze_lora_a",
    "travelling",
    "weighted_sum",
]

LARGEST_COUNT = 10**12
"""Examples or steps that anyone may report, where nothing closer is known."""
CONTROL = "control/"
"""Prefix of the names of control variates (SCAFFOLD) in a message; a parameter's name follows."""


@dataclass(frozen=True)
class Update:
    """What one site, or a group of sites whose updates were summed, contributes to a round."""

    site: str
    """Name; of a group, the names joined by "+"."""
    tensors: Mapping[str, Tensor]
    """Local weights minus sent weights, by name; of a group, their weighted mean."""
    weight: float
    """Its weight in a mean."""
    examples: int = 0
    """Training examples of the site; 0: not known to the coordinator."""
    steps: int = 0
    loss: float = math.nan
    """Mean training loss of the round."""
    first_loss: float = math.nan
    """Loss of the weights that were sent, on the site's training examples; only if it was asked for."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    version: int = 0
    """Round whose weights it started from."""


@dataclass(frozen=True)
class Limits:
    """Bounds of an update; one beyond them is refused."""

    max_norm: float | None = None
    """Largest L2 norm of an update, over all its tensors. None: not limited."""
    max_steps: int | None = None
    """Most local steps that a site may report. None: not limited."""


@dataclass(frozen=True)
class Weighting:
    """Weight of each update in the mean.

    >>> Weighting(max_examples=100).of([50, 400])
    [50.0, 100.0]
    """

    by: Literal["examples", "equal"] = "examples"
    max_examples: int | None = None
    """A site counts as at most this many examples. None: not limited. Secure aggregation needs it: each site weights its own update."""
    max_gain: float | None = 2.0
    """A site's part of the mean is at most this many times its part in a round in which every sampled site answers. When few answer, the
    others do not fill the gap without limit: the update becomes smaller. None: not limited."""

    def of(self, examples: Sequence[int]) -> list[float]:
        """Return the weight of each site, before division."""
        if self.by == "equal":
            return [1.0 for _ in examples]
        most = math.inf if self.max_examples is None else self.max_examples
        return [float(min(n, most)) for n in examples]

    def divisor(self, total: float, expected: float) -> float:
        """Return what the weighted sum is divided by.

        Args:
            total: sum of the weights that arrived.
            expected: sum of the weights of a round in which every sampled site answers, on average over samples; 0: not known.
        """
        return max(total, expected / self.max_gain) if self.max_gain is not None else total


def travelling(model: nn.Module, *, keep: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors that travel, by name, detached but not copied: trainable parameters and running statistics.

    Args:
        model: at the coordinator or at a site.
        keep: patterns (fnmatch) of names that stay at each site.

    >>> sorted(travelling(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), keep=["*.running_*"]))
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad} | running_statistics(model)
    return {n: t for n, t in named.items() if not any(fnmatch.fnmatchcase(n, k) for k in keep)}


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU, as they travel."""
    return {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}


def batch_norm_names(model: nn.Module, *, affine: bool = True) -> list[str]:
    """Return the names that FedBN keeps at each site: running statistics, and scale and shift of the same layers if `affine`."""
    layers = [(n, m) for n, m in model.named_modules() if getattr(m, "track_running_stats", False)]
    kept = list(running_statistics(model))
    return kept + [f"{n}.{leaf}" for n, m in layers for leaf, _ in m.named_parameters(recurse=False) if affine]


def freeze_lora_a(model: nn.Module) -> list[str]:
    """Freeze the matrices A of all LoRA adapters, in place, and return their names. Call it before privacy is applied to the job.

    With A the same everywhere, the mean of B A is the mean of B times A, which is not true of two means (FFA-LoRA, Sun et al. 2024,
    arXiv:2403.12313). A weighted sum, noised or encrypted, is then correct.
    """
    found = [(n, p) for n, p in model.named_parameters() if n.rpartition(".")[2] == "lora_a"]
    for _, p in found:
        p.requires_grad_(False)
    return [n for n, _ in found]


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the frozen parameters, which never travel: sites and coordinator must have the same."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            digest.update(f"{name}/{tuple(p.shape)}/{p.dtype}".encode())
            digest.update(local_part(p.detach()).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def whole(t: Tensor) -> Tensor:
    """Return the complete tensor on the CPU; of a sharded one, gathered (collective)."""
    return (t.full_tensor() if is_dtensor(t) else t).detach().cpu()


def difference(local: Tensor, sent: Tensor) -> Tensor:
    """Return local minus sent, computed in float32 at least, in the dtype of `sent`."""
    wide = torch.promote_types(sent.dtype, torch.float32)
    return (local.to(wide) - sent.to(wide)).to(sent.dtype)


@torch.no_grad()
def weighted_sum(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of weight times update, by name, in the given order, in float32 at least.

    >>> weighted_sum([{"w": torch.ones(1)}, {"w": torch.ones(1)}], [0.25, 0.5])
    {'w': tensor([0.7500])}
    """
    total = {n: torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for n, t in updates[0].items()}
    for update, weight in zip(updates, weights, strict=True):
        torch._foreach_add_(list(total.values()), [update[n].to(t.dtype) for n, t in total.items()], alpha=weight)
    return total


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors."""
    each = torch._foreach_norm([t.detach().float() for t in tensors.values()])
    return float(torch.stack(list(each)).double().norm()) if each else 0.0


def check_update(
    order: Message, answer: Message, *, site: str, declared: int, limits: Limits | None = None, extra: Collection[str] = ()
) -> Update:
    """Return the update in `answer`, or raise `MessageError` with the reason: wrong kind, round, nonce, names, shapes or dtypes, values that
    are not finite, too large a norm, impossible numbers of examples or steps.

    Args:
        order: what the site was asked ("train").
        answer: what came back ("trained").
        site: its name, for the message.
        declared: examples that the site declared when it joined.
        limits: bounds of an update.
        extra: names that an answer has besides those that were sent.
    """
    limits = limits or Limits()
    if answer.kind != "trained":
        raise MessageError(f"{site} answered {answer.kind!r} to a request to train")
    if (answer.round, answer.nonce) != (order.round, order.nonce):
        raise MessageError(f"{site} answered for round {answer.round}, or with the nonce of another request; asked was round {order.round}")
    examples = _count(answer.fields, "examples", site, declared)
    steps = _count(answer.fields, "steps", site, limits.max_steps)
    _check_tensors(order, answer, site, extra)
    length = norm_of(own := {n: t for n, t in answer.tensors.items() if not n.startswith(CONTROL)})
    if not math.isfinite(length):
        raise MessageError(f"the update of {site} is not finite: {_not_finite(own)}")
    if any(n.startswith(CONTROL) for n in answer.tensors) and not math.isfinite(norm_of(answer.tensors)):
        raise MessageError(f"the control variate of {site} is not finite: {_not_finite(answer.tensors)}")
    if limits.max_norm is not None and length > limits.max_norm:
        raise MessageError(f"the update of {site} has norm {length:.4g}, above the limit of {limits.max_norm:g}")
    loss, first = (_number(answer.fields, name, site) for name in ("loss", "first_loss"))
    if order.fields.get("first_loss") and not first >= 0:
        raise MessageError(f"{site} reports first_loss {first:g}, expected a number of at least 0: the strategy weights sites by it")
    metrics = answer.fields.get("metrics", {})
    if not isinstance(metrics, Mapping):
        raise MessageError(f"{site} sent metrics that are not numbers by name")
    return Update(
        site, answer.tensors, float(examples), examples, steps, loss, first,
        {str(k): _number(metrics, k, site) for k in metrics}, order.round,
    )  # fmt: skip


def _check_tensors(order: Message, answer: Message, site: str, extra: Collection[str]) -> None:
    """Raise `MessageError` unless the answer has the tensors that were sent, of the same shapes and dtypes."""
    sent = {n: t for n, t in order.tensors.items() if not n.startswith(CONTROL)}
    expected = sent | {n: sent[n.removeprefix(CONTROL)] for n in extra}
    if answer.tensors.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - answer.tensors.keys()), sorted(answer.tensors.keys() - expected.keys())
        parts = [f"{what} {', '.join(names[:3])}" for what, names in (("without", missing), ("with unknown", unknown)) if names]
        raise MessageError(f"the update of {site} comes {' and '.join(parts)}")
    for name, t in answer.tensors.items():
        like = expected[name]
        if t.shape != like.shape or t.dtype != like.dtype:
            got, want = (f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (t, like))
            raise MessageError(f"the update of {site} has {name} of {got}, expected {want}")


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    names = [n for n, t in tensors.items() if not bool(t.isfinite().all())]
    return ", ".join(names[:3]) or "its norm overflows"


def _count(fields: Mapping[str, Any], name: str, site: str, most: int | None) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MessageError(f"{site} reports {name} {value!r}, expected a whole number of at least 1")
    if value > (LARGEST_COUNT if most is None else most):
        raise MessageError(f"{site} reports {value:,} {name}, at most {LARGEST_COUNT if most is None else most:,} are possible")
    return value


def finite_number(value: Any) -> float | None:
    """Return a number that another party sent as a float, or None if it is not finite, too large for a float, or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits, which JSON can hold
        return None


def _number(fields: Mapping[str, Any], name: str, site: str) -> float:
    """Return a number, NaN if it was left out."""
    value = fields.get(name)
    if value is None:
        return math.nan
    number = finite_number(value)
    if number is None:
        raise MessageError(f"{site} reports {name} {str(value)[:40]!r}, expected a finite number")
    return number
