"""NF4: four bits per weight, for the frozen matrices of adapted layers (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E).

Weights are cut into blocks of 64; each is divided by its largest magnitude (a float32) and rounded to the nearest of 16 values, the
quantiles of a normal distribution: 4.5 bits a weight. The magnitudes are not quantised again, as the paper does to save 0.4 bits more.
Plain torch, so that it runs wherever torch does; a matrix exists whole only while one product needs it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BLOCK", "CODES", "Rounded", "dequantize", "nf4_linear", "quantize"]

BLOCK = 64
CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(CODES))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(two codes a byte, uint8; largest magnitude of each block, float32) of a matrix, its blocks along the rows one after the other."""
    flat = weight.detach().float().flatten()
    padded = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    largest = padded.abs().amax(1)
    scaled = padded / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, torch.tensor(_MIDDLES, device=weight.device)).to(torch.uint8).flatten()
    return codes[0::2] | codes[1::2] << 4, largest


def dequantize(packed: Tensor, largest: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the matrix from its codes (the inverse of `quantize`, up to rounding)."""
    values = torch.tensor(CODES, device=packed.device)
    codes = torch.stack((packed & 15, packed >> 4), dim=1).flatten().int()
    whole = (values[codes].view(-1, BLOCK) * largest[:, None]).flatten()
    return whole[: shape[0] * shape[1]].view(shape).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, largest: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(packed, largest)
        ctx.shape = shape
        return F.linear(x, dequantize(packed, largest, shape, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dy = grads[0]
        packed, largest = ctx.saved_tensors
        dx = dy @ dequantize(packed, largest, ctx.shape, dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[4] else None


def nf4_linear(x: Tensor, packed: Tensor, largest: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
    """Give x W^T + b in the dtype of x, or of autocast; W is formed for the product, and again for its gradient."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        out: Tensor = _Linear.apply(x, packed, largest, shape, bias)
    return out


class Rounded:
    """A weight in a file, after quantization. It can be indexed by slices, but is always read as a whole."""

    def __init__(self, source: Any) -> None:
        self.source, self.shape = source, tuple(source.shape)

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        return self.read()[where]

    def read(self) -> Tensor:
        """Return the whole matrix, float32."""
        whole = self.source if isinstance(self.source, Tensor) else self.source.read()
        rows, columns = self.shape
        packed, largest = quantize(whole)
        return dequantize(packed, largest, (rows, columns), torch.float32)
