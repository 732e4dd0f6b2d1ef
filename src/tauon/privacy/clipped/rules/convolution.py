"""Convolutions of one to three dimensions: groups, stride, padding of any mode, dilation.

A weight's gradient is, for each offset of the kernel, the product of the output's gradient with the shifted input. Three ways, by cost:
each unit's gradient by one batched product per offset, on views of the padded input (no unfolding); by one product on the unfolded input,
if there are few channels; or, if it is too large to store, two Gram matrices of the unfolded input and the output's gradient, and torch's
own weight gradient of the scaled batch. Shapes: N rows, C channels in, O out, G groups, L places of the output, K places of the kernel.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rounding import ROW, Gram, coarseness, gamma, pair, sum_of_squares
from tauon.privacy.clipped.rules.base import bare, register_rule, spread, weight_of
from tauon.privacy.clipped.terms import Dense, Term

__all__ = ["kernel_gradients"]

Sizes = tuple[int, ...]
FEW = 8
"""Maximum channels per group for unfolding the input: shorter products are inefficient."""


def kernel_gradients(x: Tensor, g: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """Each row's gradient of the weight, (N, O, C / groups, *kernel), from the input and the output's gradient."""
    each = x.shape[1] // groups
    if each <= FEW and groups == 1:
        x = padded(x, padding)
        places = unfold(x, kernel, stride, dilation, tuple(g.shape[2:]))
        return torch.bmm(g.flatten(2), places.mT).view(len(x), g.shape[1], x.shape[1], *kernel)
    same = len(kernel) < 3 and set(stride) == {1} and (len(kernel) == 1 or x.shape[3] == g.shape[3])
    out = (_in_place if same else _shifted)(x, g, kernel, stride, padding, dilation, groups)
    return out.view(*kernel, len(x), g.shape[1], each).permute(len(kernel), len(kernel) + 1, len(kernel) + 2, *range(len(kernel)))


def _product(out: Tensor, x_NCL: Tensor, g_NOL: Tensor, groups: int) -> None:
    a, b = (t.unflatten(1, (groups, -1)).flatten(0, 1) if groups > 1 else t for t in (x_NCL, g_NOL))
    torch.bmm(b, a.mT, out=out)


def _in_place(x: Tensor, g: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """Stride 1, rows of the output as long as the input's: no padding is copied. A shift is an offset in memory; where it would reach
    into the next row, g is zero: g is copied once for each column of the kernel except the middle one.
    """
    N, O = g.shape[:2]
    out = x.new_empty(math.prod(kernel), N * groups, O // groups, x.shape[1] // groups)
    if len(kernel) == 1:
        x, g, kernel, padding, dilation = x[..., None], g[..., None], (*kernel, 1), (*padding, 0), (*dilation, 1)
    H, W = x.shape[2:]
    flat = x.contiguous().flatten(2)
    for j in range(kernel[1]):
        right = j * dilation[1] - padding[1]
        masked = g
        if right:
            masked = g.clone(memory_format=torch.contiguous_format)
            (masked[..., :-right] if right < 0 else masked[..., W - right :]).zero_()
        full = masked.contiguous().flatten(2)
        for i in range(kernel[0]):
            down = i * dilation[0] - padding[0]
            first, last = max(0, -down) * W, min(g.shape[2], H - down) * W
            shift = down * W + right
            first, last = max(first, -shift), min(last, H * W - shift)
            k = i * kernel[1] + j
            if first >= last:
                out[k].zero_()
            else:
                _product(out[k], flat[:, :, first + shift : last + shift], full[:, :, first:last], groups)
    return out


def _shifted(x: Tensor, g: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """Any stride and dimensions. In a phase, every stride-th place of the padded input, the stride is 1; g is given rows as long as a phase's."""
    N, O = g.shape[:2]
    x = padded(x, padding)
    out = x.new_empty(math.prod(kernel), N * groups, O // groups, x.shape[1] // groups)
    size = g.shape[2:]
    phases: dict[Sizes, tuple[Tensor, Sizes]] = {}
    wide: dict[Sizes, Tensor] = {}
    for k, at in enumerate(itertools.product(*map(range, kernel))):
        offset = tuple(i * d for i, d in zip(at, dilation, strict=True))
        phase = tuple(o % s for o, s in zip(offset, stride, strict=True))
        if phase not in phases:
            cut = x
            for dim, (p, s) in enumerate(zip(phase, stride, strict=True), 2):
                cut = cut if s == 1 else _every(cut, dim, p, s)
            phases[phase] = cut.contiguous().flatten(2), tuple(cut.shape[2:])
        flat, shape = phases[phase]
        if shape[1:] not in wide:
            pad = [n for w, had in zip(shape[:0:-1], size[:0:-1], strict=True) for n in (0, w - had)]
            wide[shape[1:]] = (F.pad(g, pad) if any(pad) else g).contiguous().flatten(2)
        start = 0
        for o, s, n in zip(offset, stride, shape, strict=True):
            start = start * n + o // s
        full = wide[shape[1:]]
        length = min(full.shape[2], flat.shape[2] - start)  # only padding follows
        _product(out[k], flat[:, :, start : start + length], full[:, :, :length], groups)
    return out


def _every(x: Tensor, dim: int, first: int, step: int) -> Tensor:
    return x.index_select(dim, torch.arange(first, x.shape[dim], step, device=x.device))


def padded(x: Tensor, padding: Sizes) -> Tensor:
    """With zeros around."""
    return F.pad(x, [n for p in reversed(padding) for n in (p, p)]) if any(padding) else x


def unfold(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, size: Sizes) -> Tensor:
    """(N, C x K, L): input patch at each output position, in the order of the weight."""
    strides, s = x.stride(), x.stride()[2:]
    view = x.as_strided(
        (*x.shape[:2], *kernel, *size),
        (*strides[:2], *(a * d for a, d in zip(s, dilation, strict=True)), *(a * t for a, t in zip(s, stride, strict=True))),
    )
    places: Tensor = view.reshape(len(x), x.shape[1] * math.prod(kernel), math.prod(size))
    return places


class _Kernels(Dense):
    """Gradients of kernels with the offset first, (K..., U, O, C)."""

    def __init__(self, each: Tensor) -> None:
        K = each.ndim - 3
        self.raw = each.permute(*range(3, 3 + K), 0, 1, 2).flatten(0, K - 1)
        self.kernel = each.shape[3:]
        if not self.raw.is_contiguous():
            self.raw = self.raw.contiguous()
        self._measured(sum_of_squares(self.raw.flatten(0, 1)).view(self.raw.shape[:2]).sum(0))

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        K, U, O, C = self.raw.shape
        summed = torch.matmul(factors_U, self.raw.view(K, U, O * C)).view(*self.kernel, O, C)
        whole = summed.permute(-2, -1, *range(len(self.kernel)))
        return whole.contiguous() if out is None else out.add_(whole)

    def dense(self, units: Tensor | None = None) -> Tensor:
        each: Tensor = (self.raw if units is None else self.raw[:, units]).unflatten(0, self.kernel)
        K = len(self.kernel)
        whole: Tensor = each.permute(K, K + 1, K + 2, *range(K)).contiguous()
        return whole


class _Whole(Term):
    """A kernel whose per-unit gradients are too large to store: norms from Gram matrices, sums by torch's own kernel on a CPU, which multiplies
    and adds one by one. An accelerator may use Winograd or TF32: there each gradient is formed again, one piece at a time.
    """

    def __init__(
        self, squared_U: Tensor, error_U: Tensor, x: Tensor, g: Tensor, weight: Tensor, how: tuple[Sizes, Sizes, Sizes, int]
    ) -> None:
        self.squared, self.x, self.g, self.weight, self.how = squared_U, x, g, weight, how
        U = len(squared_U)
        # each element of x is in as many patches as the kernel has positions: sum |patch_l| |g_l| <= sqrt(K) |x| |g|
        of_x, of_g = (sum_of_squares(v).view(U, -1) for v in (x, g))
        self.size = ((of_x * of_g).sqrt().sum(1) * (1.001 * math.prod(weight.shape[2:]) ** 0.5)).float()
        terms = len(g) // U * math.prod(g.shape[2:])
        self.rounding = gamma(2 * terms + 8) * self.size  # in the norm, and in what is added
        certain = x.device.type == "cpu" and not coarseness(x.device)
        self.error = error_U + self.rounding * (2 * squared_U.clamp(min=0).sqrt() + self.rounding) if certain else None

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        stride, padding, dilation, groups = self.how
        each = factors_U.repeat_interleave(len(self.g) // len(factors_U)).view(-1, *([1] * (self.g.ndim - 1)))
        none = [0] * (self.g.ndim - 2)
        sizes = (list(stride), list(padding), list(dilation))
        whole: Tensor = torch.ops.aten.convolution_backward(
            self.g.float() * each, self.x.float(), self.weight.float(), None, *sizes, False, none, groups, [False, True, False]
        )[1]
        return whole if out is None else out.add_(whole)

    def dense(self, units: Tensor | None = None) -> Tensor:
        U = len(self.squared)
        x, g = (v.unflatten(0, (U, -1)) for v in (self.x, self.g))
        x, g = (v.flatten(0, 1) if units is None else v[units].flatten(0, 1) for v in (x, g))
        each = kernel_gradients(x.float(), g.float(), tuple(self.weight.shape[2:]), *self.how)
        U = U if units is None else len(units)
        return each.reshape(U, len(each) // U, *each.shape[1:]).sum(1)


def _term(record: Record, name: str, x: Tensor, g: Tensor, weight: Tensor, how: tuple[Sizes, Sizes, Sizes, int]) -> Term:
    stride, padding, dilation, groups = how
    kernel = tuple(weight.shape[2:])
    L, numbers, units = math.prod(g.shape[2:]), weight.numel(), record.units
    per_row = len(g) // units
    held = per_row * (x[0].numel() + g[0].numel())
    gram = (per_row * L) ** 2 * (numbers // weight.shape[0] + weight.shape[0])
    if groups > 1 or numbers <= 2 * held or numbers * L * per_row < gram:
        if numbers <= 2 * held:
            each = kernel_gradients(x, g, kernel, *how)
            if each.dtype == torch.float32 and per_row == 1 and each.shape[2] > FEW and groups == 1:
                return _Kernels(each)
            return Dense.of(record.by_unit(each.float(), name).sum(1).contiguous())
        squared = []
        step = max(1, 2**22 // (numbers * per_row))
        for u in range(0, units, step):
            rows = slice(u * per_row, min(units, u + step) * per_row)
            each = kernel_gradients(x[rows].float(), g[rows].float(), kernel, *how)
            squared.append(sum_of_squares(each.reshape(-1, per_row, *each.shape[1:]).sum(1)))
        found = torch.cat(squared).float()
        return _Whole(found, found * gamma(ROW + 8), x, g, weight, how)
    places = record.by_unit(unfold(padded(x, padding), kernel, stride, dilation, tuple(g.shape[2:])).mT, name).flatten(1, 2)
    g_ULO = record.by_unit(g.flatten(2).mT, name).flatten(1, 2)
    both = pair(Gram.of(places), Gram.of(g_ULO))
    return _Whole(both.value, both.error, x, g, weight, how)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, padding: Sizes, layer: Any, record: Record
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        y = torch.convolution(x, weight, bias, layer.stride, padding, layer.dilation, False, [0] * len(padding), layer.groups)
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.record, ctx.padding = layer, record, padding
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        layer, record, padding, g = ctx.layer, ctx.record, ctx.padding, grads[0]
        dx = None
        with torch.autocast(g.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = torch.ops.aten.convolution_backward(
                    g, x, weight, None, layer.stride, padding, layer.dilation, False, [0] * len(padding), layer.groups, [True, False, False]
                )[0]
            if record.wants(layer, "bias"):
                name = record.name(layer, "bias")
                record.keep(layer, "bias", record.by_unit(g.flatten(2).sum(2, dtype=torch.float32), name).sum(1))
            if record.wants(layer, "weight"):
                how = (tuple(layer.stride), padding, tuple(layer.dilation), layer.groups)
                record.keep(layer, "weight", _term(record, record.name(layer, "weight"), x, g, weight, how))
        return dx, None, None, None, None, None, None


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, forward=True)
def run(layer: Any, record: Record, input: Tensor) -> Tensor:
    """See the module docstring."""
    x = spread(record, input) if record.shared(layer, input) else input
    if not torch.is_grad_enabled():
        return cast(Tensor, bare(layer)(x))
    padding: Sizes = (0,) * len(layer.kernel_size)
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    elif layer.padding == "same":
        ends = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(e % 2 for e in ends):
            x = F.pad(x, [n for e in reversed(ends) for n in (e // 2, e - e // 2)])
        else:
            padding = tuple(e // 2 for e in ends)
    elif layer.padding != "valid":
        padding = tuple(layer.padding)
    weight, bias = weight_of(layer, "weight"), weight_of(layer, "bias")
    return cast(Tensor, _Convolution.apply(x, weight, bias, record.here(x.device), padding, layer, record))
