"""Norms with a weight and a bias: torch's LayerNorm, RMSNorm, GroupNorm and InstanceNorm, and our RMSNorm; batch norms are refused.

Their weights are vectors, so each unit's gradient is formed: sum over positions of g times the normalised input. GroupNorm takes one call of
torch's kernel, which sees the rows as channels of one row. Shapes: N rows, L positions, D width, C channels.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.models.families.transformer import RMSNorm
from tauon.models.norm import BatchNorm
from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rules.base import bare, register_rule, spread, weight_of

__all__ = ["REFUSED", "refusal"]

REFUSED = (nn.modules.batchnorm._BatchNorm, BatchNorm)
"""Norms that mix the examples of a batch."""


def refusal(name: str, layer: nn.Module) -> str | None:
    """Why a layer cannot be trained privately, and what to use instead; None if it can."""
    if isinstance(layer, REFUSED):
        if not layer.training and not any(p.requires_grad for p in layer.parameters()):
            return None  # frozen: constants
        advice = "Set model.norm=group" if isinstance(layer, BatchNorm) else "Use group norm (nn.GroupNorm) or layer norm"
        return f"{name} is a batch norm: the output of an example depends on the others in its batch, so its influence is not bounded. {advice}."
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        return f"{name} has running statistics of the examples without noise. Set track_running_stats=False."
    return None


class _RMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, anchor: Tensor, layer: nn.Module, record: Record) -> Tensor:
        D = weight.numel()
        r = (torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(D).add_(eps)).rsqrt_()
        w = weight.to(x.dtype)
        ctx.save_for_backward(x, r, w)
        ctx.layer, ctx.record = layer, record
        y: Tensor = (x * r.to(x.dtype)).mul_(w)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, r, w = ctx.saved_tensors
        g, record, layer = grads[0], ctx.record, ctx.layer
        D = w.numel()
        with torch.autocast(g.device.type, enabled=False):
            product = g * x
            name = record.name(layer, "weight")
            p_UTD, r_UT = record.by_unit(product, name).flatten(1, -2), record.by_unit(r, name).flatten(1)
            record.keep(layer, "weight", torch.bmm(r_UT[:, None].to(p_UTD.dtype), p_UTD)[:, 0])
            dx = None
            if ctx.needs_input_grad[0]:
                dot = (product.view(-1, D) @ w).view(r.shape).float()
                dx = (g * w).mul_(r.to(g.dtype)).addcmul_(x, (dot * r.pow(3)).div_(-D).to(x.dtype))
        return dx, None, None, None, None, None


def _rms(layer: nn.Module, record: Record, x: Tensor, eps: float) -> Tensor:
    if record.shared(layer, x):
        x = spread(record, x)
    weight = weight_of(layer, "weight")
    if weight is None or not record.wants(layer, "weight") or weight.ndim > 1 or not torch.is_grad_enabled():
        return cast(Tensor, bare(layer)(x))
    return cast(Tensor, _RMS.apply(x.contiguous(), weight, eps, record.here(x.device), layer, record))


@register_rule(RMSNorm, forward=True)
def run_ours(layer: RMSNorm, record: Record, x: Tensor) -> Tensor:
    """Our RMSNorm."""
    return _rms(layer, record, x, layer.eps)


@register_rule(nn.RMSNorm, forward=True)
def run_torch(layer: nn.RMSNorm, record: Record, x: Tensor) -> Tensor:
    """Torch's RMSNorm over the last dimension; over more dimensions, by the generic rule."""
    if len(layer.normalized_shape) > 1 and record.wants(layer, "weight"):
        from tauon.privacy.clipped.rules.generic import vmap_rule

        return cast(Tensor, vmap_rule(layer, record, x))
    return _rms(layer, record, x, torch.finfo(x.dtype).eps if layer.eps is None else layer.eps)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, anchor: Tensor, layer: nn.LayerNorm, record: Record
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.layer, ctx.record = layer, record
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        layer, record = ctx.layer, ctx.record
        g, shape = grads[0].contiguous(), layer.normalized_shape
        D = math.prod(shape)
        dx = None
        if ctx.needs_input_grad[0]:
            mask = [True, False, False]
            dx = torch.ops.aten.native_layer_norm_backward(g, x, shape, mean, rstd, weight, bias, mask)[0]
        for leaf in ("weight", "bias"):
            if not record.wants(layer, leaf):
                continue
            name = record.name(layer, leaf)
            g_UTD = record.by_unit(g.view(*x.shape[: x.ndim - len(shape)], D), name).flatten(1, -2)
            if leaf == "bias":
                each = g_UTD.sum(1, dtype=torch.float32)
            else:  # sum_t g_t (x_t - mean_t) rstd_t
                x_UTD = record.by_unit(x.reshape(*x.shape[: x.ndim - len(shape)], D), name).flatten(1, -2)
                m_UT, r_UT = (record.by_unit(s.view(x.shape[: x.ndim - len(shape)]), name).flatten(1) for s in (mean, rstd))
                each = torch.bmm(r_UT[:, None].to(g.dtype), g_UTD * x_UTD) - torch.bmm((r_UT * m_UT)[:, None].to(g.dtype), g_UTD)
                each = each[:, 0].float()
            record.keep(layer, leaf, each.view(-1, *shape))
        return dx, None, None, None, None, None, None


@register_rule(nn.LayerNorm, forward=True)
def run_layer_norm(layer: nn.LayerNorm, record: Record, input: Tensor) -> Tensor:
    """Torch's LayerNorm."""
    x = spread(record, input) if record.shared(layer, input) else input
    if not torch.is_grad_enabled() or not (record.wants(layer, "weight") or record.wants(layer, "bias")):
        return cast(Tensor, bare(layer)(x))
    weight, bias = weight_of(layer, "weight"), weight_of(layer, "bias")
    if torch.is_autocast_enabled(x.device.type):  # as autocast does: in float32
        x = x.float()
    return cast(Tensor, _Layer.apply(x.contiguous(), weight, bias, layer.eps, record.here(x.device), layer, record))


NormByGroup = nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d


class _Group(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, anchor: Tensor, layer: NormByGroup, record: Record
    ) -> Tensor:
        N, C = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(x, weight, bias, N, C, math.prod(x.shape[2:]), groups, layer.eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.groups, ctx.layer, ctx.record = groups, layer, record
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        layer, record, groups = ctx.layer, ctx.record, ctx.groups
        (N, C), L = x.shape[:2], math.prod(x.shape[2:])
        g = grads[0]
        if x.is_contiguous():  # rows seen as channels of one row: each gets its weight's gradient, in one pass of the kernel
            each = weight.repeat(N)
            dx, dw, db = torch.ops.aten.native_group_norm_backward(
                g.contiguous(), x, mean.view(1, -1), rstd.view(1, -1), each, 1, N * C, L, N * groups, [ctx.needs_input_grad[0], True, True]
            )
            dw, db = dw.view(N, C), db.view(N, C)
        else:
            dx = None
            if ctx.needs_input_grad[0]:
                mask = [True, False, False]
                dx = torch.ops.aten.native_group_norm_backward(g, x, mean, rstd, weight, N, C, L, groups, mask)[0]
            db = g.flatten(2).sum(2)
            products = (g * x).flatten(2).sum(2)
            m, r = (s.view(N, groups, 1).expand(-1, -1, C // groups).reshape(N, C) for s in (mean, rstd))
            dw = (products - m * db) * r
        for leaf, each in (("weight", dw), ("bias", db)):
            if record.wants(layer, leaf):
                record.keep(layer, leaf, record.by_unit(each.float(), record.name(layer, leaf)).sum(1))
        return (None if dx is None else dx.view_as(x)), None, None, None, None, None, None


def _group(layer: NormByGroup, record: Record, x: Tensor, groups: int) -> Tensor:
    if record.shared(layer, x):
        x = spread(record, x)
    if not torch.is_grad_enabled() or not (record.wants(layer, "weight") or record.wants(layer, "bias")):
        return cast(Tensor, bare(layer)(x))
    weight, bias = weight_of(layer, "weight"), weight_of(layer, "bias")
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    if not (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        x = x.contiguous()
    return cast(Tensor, _Group.apply(x, weight, bias, groups, record.here(x.device), layer, record))


@register_rule(nn.GroupNorm, forward=True)
def run_group_norm(layer: nn.GroupNorm, record: Record, input: Tensor) -> Tensor:
    """Torch's GroupNorm."""
    return _group(layer, record, input, layer.num_groups)


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, forward=True)
def run_instance_norm(layer: nn.InstanceNorm2d, record: Record, input: Tensor) -> Tensor:
    """Torch's InstanceNorm: a group norm of one channel a group."""
    dims = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
    if input.ndim not in {n for kind, n in dims.items() if isinstance(layer, kind)}:
        raise RecipeError(f"an InstanceNorm was called with {input.ndim} dimensions. Keep the batch in the first dimension.")
    return _group(layer, record, input, layer.num_features)
