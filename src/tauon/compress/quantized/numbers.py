"""Integers for weights and activations: symmetric int8 by row or channel, int4 in groups, two to a byte, and the exact product of int8 matrices.

A product of integers is exact: a row's result does not depend on the rows beside it.

Shapes: M rows, K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = [
    "dequantize_groups",
    "int_matmul",
    "pack_int4",
    "quantize_channels",
    "quantize_groups",
    "quantize_rows",
    "row_scales",
    "unpack_int4",
]

_TINY = 1e-30
"""Least scale: a channel of zeros is divided by it."""


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (integers of the weight's shape, int8; scale of each output channel, N, float32): w is about q * scale, |q| <= 127.

    >>> quantize_channels(torch.tensor([[1.0, -2.0]]))[0]
    tensor([[  64, -127]], dtype=torch.int8)
    """
    flat = weight.detach().float().flatten(1)
    scale_N = flat.abs().amax(1).clamp_min(_TINY) / 127
    q = (flat / scale_N[:, None]).round().clamp_(-127, 127).to(torch.int8)
    return q.view_as(weight).contiguous(), scale_N


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return (integers MK, int8; scale of each row, M1, float32)."""
    scale_M1 = row_scales(x_MK)
    return (x_MK / scale_M1).round_().to(torch.int8), scale_M1


def row_scales(x_MK: Tensor) -> Tensor:
    """Return the scale of each row, M1: its largest absolute value / 127."""
    return x_MK.abs().amax(1, keepdim=True).clamp_min_(_TINY).div_(127)


def int_matmul(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Return a b^T, MN (int32), of int8 matrices, exactly: by `torch._int_mm` where it is right on this device, else in float64."""
    if torch.compiler.is_exporting():
        traced: Tensor = _int_matmul(a_MK, b_NK)
        return traced
    device = a_MK.device.type
    fits = device == "cpu" or (device == "cuda" and a_MK.shape[0] > 16 and a_MK.shape[1] % 8 == 0 and b_NK.shape[0] % 8 == 0)
    if fits and (torch.compiler.is_compiling() or _int_mm_is_exact(device)):
        return torch._int_mm(a_MK, b_NK.t())
    return (a_MK.double() @ b_NK.double().t()).to(torch.int32)


@torch.library.custom_op("tauon::int_matmul", mutates_args=())
def _int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product as one operation of a traced program, of any number of rows (`_int_mm` asks for more than 16 when it is traced)."""
    return (a.double() @ b.double().t()).to(torch.int32)


@_int_matmul.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=torch.int32)


@functools.cache
def _int_mm_is_exact(device: str) -> bool:
    """Whether the device's kernel gives the sums of the largest products (some processors saturate pairs of products at 16 bits)."""
    a = torch.tensor([-127, 127], dtype=torch.int8, device=device).repeat(32, 32)
    b = a[:24].clone()
    b[::2] = 127
    try:
        return torch.equal(torch._int_mm(a, b.t()).double(), a.double() @ b.double().t())
    except RuntimeError:
        return False


def quantize_groups(weight_NK: Tensor, group: int, bits: int = 4) -> tuple[Tensor, Tensor]:
    """Return (integers NK, int8, from -2^(bits-1) to 2^(bits-1) - 1; scales NG, float32) by rounding to nearest, symmetric.

    The last group is shorter where `group` does not divide K.
    """
    K = weight_NK.shape[1]
    top = 2 ** (bits - 1) - 1
    scale_NG = group_scales(weight_NK, group, bits)
    q = (weight_NK.float() / _per_input(scale_NG, group, K)).round_().clamp_(-top - 1, top)
    return q.to(torch.int8), scale_NG


def group_scales(weight_NK: Tensor, group: int, bits: int = 4) -> Tensor:
    """Return the scale of each group, NG: its largest absolute value becomes 2^(bits-1) - 1."""
    N = len(weight_NK)
    padded: Tensor = torch.nn.functional.pad(weight_NK.detach().float(), (0, -weight_NK.shape[1] % group))
    scale_NG: Tensor = padded.view(N, -1, group).abs().amax(2).clamp_min(_TINY) / (2 ** (bits - 1) - 1)
    return scale_NG


def _per_input(values_NG: Tensor, group: int, inputs: int) -> Tensor:
    return values_NG.repeat_interleave(group, 1)[:, :inputs]


def dequantize_groups(q_NK: Tensor, scale_NG: Tensor, group: int) -> Tensor:
    """Return weights NK, float32."""
    return q_NK.float() * _per_input(scale_NG, group, q_NK.shape[1])


def pack_int4(q_NK: Tensor) -> Tensor:
    """Return numbers from -8 to 7 as bytes, N x ceil(K / 2) (uint8), the even column in the low half.

    >>> pack_int4(torch.tensor([[-8, 7, 1]], dtype=torch.int8))
    tensor([[240, 137]], dtype=torch.uint8)
    """
    u = (torch.nn.functional.pad(q_NK, (0, q_NK.shape[1] % 2)).to(torch.int16) + 8).to(torch.uint8)
    return u[:, ::2] | (u[:, 1::2] << 4)


def unpack_int4(packed: Tensor, inputs: int) -> Tensor:
    """Return what was packed, N x inputs (int8)."""
    return torch.stack((packed & 15, packed >> 4), 2).flatten(1)[:, :inputs].to(torch.int8) - 8
