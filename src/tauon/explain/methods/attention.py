"""Attention weights of any model that calls `F.scaled_dot_product_attention`, and attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928).

Fused kernels never have the weights. Inside `explicit_attention` each call is computed by its definition, softmax(q k^T / sqrt(K) + mask) v, with
the same output, for grouped heads, windows and masks of documents too; the model is not changed.

Rollout follows what each position has read, through all layers: the product of (A + 1) / 2, A the mean of the heads' weights. It reads
attention only: not values, not the MLPs. It says where information could come from, not what it was used for.

Shapes: B batch, H heads, T queries, S keys, K head size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, attribution_method, untouched
from tauon.explain.methods.layers import PREFIXES, Arrangement, enlarged, patches_of
from tauon.models.attention import can_choose

__all__ = ["attention_rollout", "attention_weights", "explicit_attention", "rollout"]

FUSED = F.scaled_dot_product_attention
OnCall = Callable[[str, Tensor, Tensor], Tensor | None]
"""(name of the module that computes attention, weights BHTS, output BHTK) -> another output, or None."""


@contextmanager
def explicit_attention(model: nn.Module, on_call: OnCall) -> Iterator[None]:
    """Inside, attention is computed with explicit weights, and `on_call` gets those of each call."""
    names: list[str] = []
    chosen = [(m, vars(m).get("kernel")) for m in model.modules() if can_choose(m)]
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: names.append(n)))  # type: ignore[misc]
        handles.append(module.register_forward_hook(lambda *_: (names.pop(), None)[1], always_call=True))
    try:
        for module, _ in chosen:
            module.kernel = "fused"  # type: ignore[assignment]
        call = _Explicit(lambda weights, out: on_call(names[-1] if names else "", weights, out))
        F.scaled_dot_product_attention = call.explicit
        with call:
            yield
    finally:
        F.scaled_dot_product_attention = FUSED
        for handle in handles:
            handle.remove()
        for module, kernel in chosen:
            if kernel is None:
                vars(module).pop("kernel", None)
            else:
                module.kernel = kernel


class _Explicit(TorchFunctionMode):
    """Replaces attention wherever it is called: by name, and inside torch's own functions, which a mode does not see."""

    def __init__(self, on_call: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.on_call, self.thread = on_call, threading.get_ident()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.explicit if func is FUSED else func)(*args, **(kwargs or {}))

    def explicit(self, *args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() != self.thread:  # of another model
            return FUSED(*args, **kwargs)
        weights, out = _attention(*args, **kwargs)
        other = self.on_call(weights, out)
        return out if other is None else other


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
    scores = query.float() @ key.float().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    seen = scores > -torch.inf
    weights = torch.where(seen.any(-1, keepdim=True), scores, 0).softmax(-1) * seen  # a query that sees nothing gets 0, as fused
    return weights, weights.to(value.dtype) @ value


def attention_weights(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Run the model and return the weights of each attention, BHTS, by the name of the module that computed them, in order.

    Args:
        model: the model.
        run: calls the model; its result is dropped.

    >>> model = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    >>> weights = attention_weights(model, lambda: model(torch.randn(1, 5, 8)))
    >>> {name: tuple(w.shape) for name, w in weights.items()}
    {'self_attn': (1, 2, 5, 5)}
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, weights: Tensor, _: Tensor) -> None:
        times = sum(known == name or known.startswith(f"{name}#") for known in found)
        found[f"{name}#{times + 1}" if times else name] = weights.detach()

    with untouched(model), torch.no_grad(), explicit_attention(model, keep):
        run()
    return found


def rollout(layers: list[Tensor]) -> Tensor:
    """Return how much each position has of each input position, BTT: the product of (A + 1) / 2 over layers, first to last.

    Args:
        layers: weights of each layer, BHTT. Rows that see nothing keep themselves.
    """
    total: Tensor | None = None
    for weights in layers:
        step = _step(weights)
        total = step if total is None else step @ total
    if total is None:
        raise DataError("no attention weights: rollout needs at least one layer")
    return total


def _step(weights: Tensor) -> Tensor:
    mean = weights.float().mean(1) + torch.eye(weights.shape[-1], device=weights.device)
    return mean / mean.sum(-1, keepdim=True)


@attribution_method(
    "attention_rollout", "Attention rollout", needs="attention", source="arXiv:2005.00928", kinds=("text", "image", "audio", "table")
)
def attention_rollout(cases: Cases, work: Work) -> Attribution:
    """Return the share of each feature's tokens in the positions that the output is read from.

    Those positions are the ones whose last attention the output depends on (the class token, the last token, all frames); their mean counts.

    Raises:
        DataError: the model computes no attention, or its tokens do not lie over the features.
    """
    with untouched(cases.model):
        layers = _square_attentions(cases)
        coarse, scores = list[Tensor](), list[Tensor]()
        for part in work.chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=cases.inputs.device)
            share, score = _rolled(cases, cases.inputs[part], rows, layers)
            coarse.append(share)
            scores.append(score)
    share_NT = torch.cat(coarse)
    values, small = _over_features(cases, share_NT)
    if cases.valid is not None:
        values = values * cases.valid
    note = f"{layers} layers; attention only, without values and MLPs"
    return Attribution("attention_rollout", values, torch.cat(scores), signed=False, coarse=small, note=note)


def _square_attentions(cases: Cases) -> int:
    """Return the number of attentions. `DataError` for those that rollout cannot follow."""
    shapes: list[tuple[int, ...]] = []
    rows = torch.arange(1, device=cases.inputs.device)
    with torch.no_grad(), explicit_attention(cases.model, lambda _, weights, __: shapes.append(tuple(weights.shape))):
        cases.answers(cases.inputs[:1], rows)
    if not shapes:
        raise DataError(f"{type(cases.model).__name__} computes no attention through F.scaled_dot_product_attention: use another method")
    if any(len(s) != 4 or s[0] != 1 or s[2:] != shapes[0][2:] or s[2] != s[3] for s in shapes):
        raise DataError(f"attention of shapes {sorted(set(shapes))}: rollout needs the same positions of each example in every layer")
    return len(shapes)


def _rolled(cases: Cases, x: Tensor, rows: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Return (shares of the positions MT, scores M)."""
    total: list[Tensor] = []
    last: list[Tensor] = []
    calls = 0

    def follow(_: str, weights: Tensor, out: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        total[:] = [_step(weights.detach()) @ total[0] if total else _step(weights.detach())]
        if calls < layers:
            return None
        last.append(out.detach().requires_grad_())
        return last[0].clone()

    with torch.enable_grad(), explicit_attention(cases.model, follow):
        scores = cases.score(x.detach(), rows)
        grad = torch.autograd.grad(scores.sum(), last[0], allow_unused=True)[0] if scores.requires_grad else None
    size = torch.ones_like(total[0][:, 0]) if grad is None else grad.float().norm(dim=(1, 3))
    read_from = (size > 1e-6 * size.amax(1, keepdim=True)).float()
    read_from = torch.where(read_from.any(1, keepdim=True), read_from, 1)
    return ((read_from / read_from.sum(1, keepdim=True)).unsqueeze(1) @ total[0]).squeeze(1), scores.detach().float()


def _over_features(cases: Cases, share_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values NF, the map of positions) of shares of tokens."""
    T = share_NT.shape[1]
    if cases.kind == "text" and cases.grid == (T,):
        return share_NT, share_NT
    if cases.kind == "audio" and 1 < T <= cases.grid[0]:
        return enlarged(share_NT, cases), share_NT
    if cases.kind == "table":
        order = getattr(cases.model, "token_columns", None)
        if order is not None and len(order) < T:
            columns = torch.zeros(len(share_NT), *cases.inputs.shape[1:], device=share_NT.device)
            columns[:, order] = share_NT[:, T - len(order) :]
            return cases.per_feature(columns), columns
    if cases.kind == "image":
        fit = patches_of(T, cases.grid)
        if fit is not None:
            small = Arrangement("last", *fit).channels_first(share_NT.unsqueeze(-1)).squeeze(1)
            return enlarged(small, cases), small
    raise DataError(f"{T} tokens do not lie over the {cases.kind}'s grid {cases.grid} (tokens before patches may be {PREFIXES})")
