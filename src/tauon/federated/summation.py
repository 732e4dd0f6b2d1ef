"""The seam between sites and strategy: asks the sites of a round and returns one update for each group of them.

Plain: each site's update is checked and is known to the coordinator. Secure aggregation replaces this by a protocol that reveals only the sum of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tauon.federated.messages import Failure, Message, MessageError, Transport
from tauon.federated.updates import CONTROL, Limits, Update, Weighting, check_update, norm_of, weighted_sum

__all__ = ["Collected", "PlainSummation", "RoundRequest", "Summation", "mean_of_sum", "weighted_vector"]

WEIGHT, LOSS, KNOWN = "#weight", "#loss", "#known"
"""Names in a vector to be summed that are not tensors of the model: a site's weight, its weighted loss, its weight if it gives a loss."""


@dataclass(frozen=True)
class RoundRequest:
    """What a summation gets for one round."""

    messages: Mapping[str, Message]
    """The request to train of each site; all have the same tensors and nonce."""
    groups: Sequence[Sequence[str]]
    """The sites whose updates are summed: one group of all, groups of some, or each site by itself."""
    declared: Mapping[str, int]
    """Examples that each site declared."""
    timeout: float
    """Seconds until the answers are counted."""
    weighting: Weighting = field(default_factory=Weighting)
    limits: Limits = field(default_factory=Limits)
    expected: float = 0.0
    """Sum of the weights of a round in which every sampled site answers, on average (`Weighting.divisor`); 0: not known."""
    extra: Collection[str] = ()
    """Names that an update has besides those that were sent (control variates)."""
    enough: Callable[[int, int], bool] = lambda sites, groups: True
    """Whether answers of so many sites, in so many groups, make a round. If not, the round is repeated, and a summation that hides single updates does
    not reveal the sums: the difference of two sums of the same round is the update of those that are in one of them only."""


@dataclass
class Collected:
    """What came back in a round."""

    updates: list[Update] = field(default_factory=list)
    """One for each group with an answer: the weighted mean over the group."""
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each site whose update is in one: what may be known of it (examples, steps, loss, norm, metrics); {} where it is secret."""
    failed: dict[str, str] = field(default_factory=dict)
    """Sites that gave no answer, with the reason."""
    refused: dict[str, str] = field(default_factory=dict)
    """Sites whose answer was refused, with the reason."""
    received_bytes: int = 0


class Summation(Protocol):
    """Asks sites and sums their updates."""

    single: ClassVar[bool]
    """Whether the coordinator may see the update of a single site."""
    smallest_group: ClassVar[int]
    """Fewest sites of a group."""

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        """Ask every site of the request, and return what came back. A site that fails never raises: it is in `failed` or `refused`."""
        ...


class PlainSummation:
    """Checks and sums the updates in the clear."""

    single: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 1

    def collect(self, transport: Transport, request: RoundRequest) -> Collected:
        """See `Summation.collect`."""
        result, good = Collected(), {}
        for name, answer in transport.ask(request.messages, timeout=request.timeout).items():
            if isinstance(answer, Failure):
                result.failed[name] = answer.reason
                continue
            result.received_bytes += tensor_bytes(answer)
            try:
                update = check_update(
                    request.messages[name], answer, site=name, declared=request.declared[name], limits=request.limits, extra=request.extra
                )
            except MessageError as err:
                result.refused[name] = str(err)
                continue
            good[name] = update
            known = {**update.metrics, "examples": update.examples, "steps": update.steps, "loss": update.loss}
            result.sites[name] = {k: v for k, v in known.items() if not (isinstance(v, float) and math.isnan(v))}
        for group in request.groups:
            members = [good[name] for name in group if name in good]
            if members:
                result.updates.append(mean_of(members, request, alone=len(request.groups) == 1))
        return result


def mean_of(members: Sequence[Update], request: RoundRequest, *, alone: bool) -> Update:
    """Return the weighted mean of a group. `alone`: there is no other group, so that the limit of `Weighting.max_gain` applies here."""
    weights = request.weighting.of([u.examples for u in members])
    total = sum(weights)
    if len(members) == 1 and not alone:
        u = members[0]
        return Update(u.site, u.tensors, total, u.examples, u.steps, u.loss, u.first_loss, u.metrics, u.version)
    tensors = weighted_sum([u.tensors for u in members], [w / total for w in weights])
    if alone:
        tensors = limited(tensors, total / request.weighting.divisor(total, request.expected))
    losses = [(w, u.loss) for w, u in zip(weights, members, strict=True) if not math.isnan(u.loss)]
    loss = sum(w * x for w, x in losses) / sum(w for w, _ in losses) if losses else math.nan
    return Update(
        "+".join(u.site for u in members), tensors, total, sum(u.examples for u in members), max(u.steps for u in members), loss,
        version=members[0].version,
    )  # fmt: skip


def limited(mean: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return the mean with the update scaled as `Weighting.max_gain` asks. Control variates stay: the sites keep theirs as they sent them."""
    return {n: t if factor == 1 or n.startswith(CONTROL) else t * factor for n, t in mean.items()}


def weighted_vector(order: Message, trained: Message) -> dict[str, Tensor]:
    """Return what a site contributes to a sum that hides it: its update times its weight, its weight, its loss times its weight, its
    weight again or 0 if it gives no loss; float32.

    The weight is min(examples, max_examples) / max_examples, in [0, 1], or 1 if all sites weigh the same.

    Args:
        order: the request to train.
        trained: the site's answer to it (`TrainingSite.answer`, `LocalTraining.train`), which does not leave the site.
    """
    most = order.fields.get("max_examples")
    weight = 1.0 if order.fields.get("weight_by") == "equal" or not most else min(trained.fields["examples"], most) / most
    vector = {n: t.float() * weight for n, t in trained.tensors.items()}
    loss = trained.fields.get("loss")
    numbers = {WEIGHT: weight, LOSS: weight * (loss or 0.0), KNOWN: 0.0 if loss is None else weight}
    return vector | {name: torch.tensor([x]) for name, x in numbers.items()}


def mean_of_sum(total: Mapping[str, Tensor], sites: Sequence[str], version: int) -> Update:
    """Return the update of a group from the sum of its sites' vectors (`weighted_vector`). Raises `MessageError` if it is not finite, or has no weight."""
    weight = float(total[WEIGHT])
    known = float(total[KNOWN])
    tensors = {n: t / weight for n, t in total.items() if n not in (WEIGHT, LOSS, KNOWN)}
    if not (weight > 0 and math.isfinite(norm_of(tensors))):
        raise MessageError(f"the sum of {len(sites)} updates is not finite, or has weight {weight:g}")
    return Update("+".join(sites), tensors, weight, loss=float(total[LOSS]) / known if known > 0 else math.nan, version=version)


def tensor_bytes(message: Message) -> int:
    """Return the bytes of a message's tensors."""
    return sum(t.numel() * t.element_size() for t in message.tensors.values())
