"""Adapters: a few new weights beside the frozen matrices of a trained model.

LoRA   y = x W^T + s (x A^T) B^T, s = alpha / rank, B zero at the start (Hu et al. 2021, arXiv:2106.09685)
DoRA   V = W + s B A, y = x (m / ||V|| V)^T, ||V|| by row and without gradient, m starts as ||W|| (Liu et al. 2024, arXiv:2402.09353)

An adapted layer is the linear layer that it was, with more parameters: names of the base's weights stay, so that the base loads as
ever, and every layout cuts it as it did. Does not depend on models or files. Shapes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, Registered, register
from tauon.distributed import is_dtensor
from tauon.errors import Problem, RecipeError
from tauon.models.adapters.nf4 import BLOCK, Rounded, dequantize, nf4_linear, quantize
from tauon.models.randomness import dropout

__all__ = [
    "LEAVES",
    "AdaptConfig",
    "AdaptedLinear",
    "DoraConfig",
    "LoraConfig",
    "Merged",
    "init_adapter",
    "is_adapter",
    "merged",
    "saved_weights",
]

LEAVES = ("lora_a", "lora_b", "magnitude")
"""Suffixes of an adapter's parameters, after the name of its layer."""


class AdaptConfig(Registered, family="adapt"):
    """Train a few new weights in addition to the frozen ones of `model.from`."""

    magnitudes: ClassVar[bool] = False

    rank: Count = Field(16, ge=1, le=2**16)
    """Inner size of an adapter, R."""
    alpha: float | None = Field(None, gt=0)
    """An adapter's output is scaled by alpha / rank. Left out: twice the rank."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs dropped in training."""
    target: tuple[str, ...] = ("*",)
    """Linear layers of the blocks to adapt, by the last part of their name or the whole name: [q, v], ["blocks.1*.attention.*"].
    """
    also: tuple[str, ...] = ()
    """Parameters of the base that train too, by name: ["*norm*"]. A weight with two names (an embedding that is also the output head)
    trains if either is given. A classifier's head always trains."""
    quantize: Literal["none", "nf4"] = "none"
    """`nf4`: store the frozen matrices with 4.5 bits per weight (QLoRA), quantized when they are loaded."""
    from_: str | None = Field(None, alias="from")
    """Folder of a pretrained adapter (PEFT's layout). Left out: a new one, which does not change the model's output at first."""

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return (self.alpha if self.alpha is not None else 2.0 * self.rank) / self.rank

    def inject_adapters(self, model: nn.Module, layers: Mapping[str, nn.Linear], trains: Iterable[str]) -> None:
        """Add adapters, in place, to the layers that `target` names; freeze everything else except `trains` and `also` (patterns)."""
        chosen = {n: layer for n, layer in layers.items() if _meant(n, self.target)}
        idle = [t for t in self.target if not any(_meant(n, (t,)) for n in layers)]
        if idle or not chosen:
            there = sorted({n.rpartition(".")[2] for n in layers})
            what = f"{', '.join(map(repr, idle))} names no linear layer of this model's blocks" if idle else "is empty"
            raise RecipeError([Problem("adapt.target", f"{what}. Available: {', '.join(there) or 'none'}.")])
        for layer in chosen.values():
            AdaptedLinear.wrap(layer, self)
        named = list(model.named_parameters(remove_duplicate=False))  # includes every name of a tied weight
        for pattern in self.also:
            if not any(fnmatch.fnmatchcase(n, pattern) for n, _ in named):
                some = ", ".join(n for n, _ in named[:4])
                raise RecipeError([Problem("adapt.also", f"{pattern!r} names no parameter. The first ones are: {some}.")])
        for pattern in self.also:
            both = next((f"{n}.weight" for n in chosen if fnmatch.fnmatchcase(f"{n}.weight", pattern)), None)
            if both is not None:
                message = f"{pattern!r} names {both}, which has an adapter and stays as it is. Narrow the pattern, or leave the layer out of adapt.target."
                raise RecipeError([Problem("adapt.also", message)])
        kept = (*trains, *self.also)
        training = {id(p) for n, p in named if is_adapter(n) or any(fnmatch.fnmatchcase(n, k) for k in kept)}
        for _, p in named:
            if id(p) not in training:
                p.requires_grad_(False)


@register("lora")
class LoraConfig(AdaptConfig):
    """Low-rank adapters (LoRA): two thin matrices for each frozen one."""


@register("dora")
class DoraConfig(AdaptConfig):
    """Low-rank adapters for the direction of each row of a frozen matrix, with its length as a separate weight (DoRA)."""

    magnitudes = True


def _meant(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name.rpartition(".")[2], p) for p in patterns)


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return name.rpartition(".")[2] in LEAVES


def saved_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint stores, without copies: all; for a model with adapters, all except the frozen base."""
    state: dict[str, Tensor] = model.state_dict()
    if not any(is_adapter(name) for name in state):
        return state
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: t for name, t in state.items() if name not in frozen}


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter. Made from an existing layer (`wrap`), which keeps its hooks."""

    lora_a: nn.Parameter
    """R I."""
    lora_b: nn.Parameter
    """O R."""
    magnitude: nn.Parameter | None
    """O, of DoRA."""
    scale: float
    dropout: float
    will_round: bool
    """Whether the matrix will be stored in NF4."""
    rounded: bool
    """Whether it is stored in NF4: in the buffers `codes` and `largest`, without `weight`."""
    codes: Tensor
    largest: Tensor

    @classmethod
    def wrap(cls, layer: nn.Linear, config: AdaptConfig) -> None:
        """Add an adapter with uninitialised weights to `layer`."""
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": torch.float32}
        layer.__class__ = cls
        layer.scale, layer.dropout = config.scale, config.dropout  # type: ignore[assignment]
        layer.rounded, layer.will_round = False, config.quantize == "nf4"  # type: ignore[assignment]
        layer.lora_a = nn.Parameter(torch.empty(config.rank, layer.in_features, **like))
        layer.lora_b = nn.Parameter(torch.empty(layer.out_features, config.rank, **like))
        layer.magnitude = nn.Parameter(torch.empty(layer.out_features, **like)) if config.magnitudes else None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self._may_merge(x):
            out: Tensor = _MergedForOnce.apply(x, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)
            return out
        h = F.linear(dropout(x, self.dropout, self.training), self.lora_a)
        if self.magnitude is None:
            return self.frozen(x, self.bias) + F.linear(h, self.lora_b * self.scale)
        y = self.frozen(x, None) + F.linear(h, self.lora_b * self.scale)
        y = y * (self.magnitude / self.row_norms()).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def frozen(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output without its adapter."""
        if self.rounded:
            return nf4_linear(x, self.codes, self.largest, (self.out_features, self.in_features), bias)
        return F.linear(x, self.weight, bias)

    def round_weight(self) -> None:
        """Replace `weight` by buffers for the matrix in NF4, on the meta device; `fill_rounded` fills them."""
        device, elements = self.weight.device, self.weight.numel()
        blocks = -(-elements // BLOCK)
        del self.weight
        self.rounded = True
        self.register_buffer("codes", torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device=device), persistent=False)
        self.register_buffer("largest", torch.empty(blocks, dtype=torch.float32, device=device), persistent=False)

    def fill_rounded(self, weight: Tensor) -> None:
        """Quantize a matrix into the buffers."""
        for buffer, value in zip((self.codes, self.largest), quantize(weight.to(self.codes.device)), strict=True):
            buffer.copy_(value)

    def _may_merge(self, x: Tensor) -> bool:
        """Return whether to form W + s B A for this product: only in float32, which keeps small adapters exact, and for enough rows."""
        if self.rounded:
            return False
        plain = self.magnitude is None and not (self.training and self.dropout) and not is_dtensor(self.weight)
        in_fp32 = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return plain and in_fp32 and 2 * x.numel() >= self.weight.numel()

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """Return O: ||W + s B A|| of each row, constant for the gradient (DoRA, section 4.3)."""
        with torch.autocast(self.lora_a.device.type, enabled=False):
            shape = (self.out_features, self.in_features)
            weight = dequantize(self.codes, self.largest, shape, torch.float32) if self.rounded else self.weight.float()
            v_OI = weight + self.scale * (self.lora_b @ self.lora_a)
            norms_O: Tensor = torch.linalg.vector_norm(v_OI, dim=1)
            return norms_O

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"


class _MergedForOnce(torch.autograd.Function):
    """y = x (W + s B A)^T + b in one product, and its gradients for x, A and B; neither y nor its gradient is passed over again to add the
    adapter's part. The sum is formed again for the backward pass, as keeping it would double the memory that the weights take.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, a, b = ctx.saved_tensors
        dy, flat = grads[0].flatten(0, -2), x.flatten(0, -2)
        dx = (dy @ torch.addmm(weight, b, a, alpha=ctx.scale)).view_as(x) if ctx.needs_input_grad[0] else None
        da = (ctx.scale * (dy @ b)).t() @ flat if ctx.needs_input_grad[3] else None
        db = dy.t() @ (ctx.scale * (flat @ a.t())) if ctx.needs_input_grad[4] else None
        return dx, None, dy.sum(0) if ctx.needs_input_grad[2] else None, da, db, None


def init_adapter(name: str, p: Tensor, g: torch.Generator, base: Any) -> None:
    """Fill an adapter's parameter: A as PEFT does, U(-1/sqrt(I), +); B with zero; a magnitude with the rows' norms of `base`, whole."""
    leaf = name.rpartition(".")[2]
    if leaf == "lora_a":
        bound = 1 / math.sqrt(p.shape[1])
        nn.init.uniform_(p, -bound, bound, generator=g)
    elif leaf == "lora_b":
        nn.init.zeros_(p)
    else:
        p.copy_(torch.linalg.vector_norm(base.float(), dim=1))


class Merged:
    """A base weight with its adapter merged: (W + s B A) m / ||.||. Slices read only what they need; `read` returns all of it."""

    def __init__(self, base: Any, lora_a: Any, lora_b: Any, magnitude: Any, scale: float) -> None:
        self.base, self.lora_a, self.lora_b, self.magnitude, self.scale = base, lora_a, lora_b, magnitude, scale
        self.shape = tuple(base.shape)

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        rows, columns = where
        every = slice(0, self.shape[1])
        taken = columns if self.magnitude is None else every
        rank = slice(0, self.lora_a.shape[0])
        delta = self.lora_b[rows, rank].double() @ self.lora_a[rank, taken].double()
        whole = self.base[rows, taken].double() + self.scale * delta
        if self.magnitude is not None:
            length = self.magnitude[(rows,)].double()
            whole = (whole * (length / torch.linalg.vector_norm(whole, dim=1))[:, None])[:, columns]
        out: Tensor = whole.float()
        return out

    def read(self) -> Tensor:
        """Return the whole matrix, float32."""
        return self[tuple(slice(0, n) for n in self.shape)]


def merged(base: Mapping[str, Any], adapter: Mapping[str, Any], scale: float, *, rounded: bool = False) -> dict[str, Any]:
    """Return the base's weights by name, with adapters merged lazily. `rounded`: the adapters were trained with a base in NF4."""
    out = dict(base)
    for name, value in adapter.items():
        if not is_adapter(name):
            out[name] = value
    for name in adapter:
        layer, _, leaf = name.rpartition(".")
        if leaf == "lora_a":
            weight = f"{layer}.weight"
            whole = Rounded(base[weight]) if rounded else base[weight]
            out[weight] = Merged(whole, adapter[name], adapter[f"{layer}.lora_b"], adapter.get(f"{layer}.magnitude"), scale)
    return out
