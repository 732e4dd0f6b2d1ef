"""Int8 quantization with one scale per block of 256 (Dettmers et al. 2022, arXiv:2110.02861, with linear codes).

x ~ code * scale, scale = max|x| / 127 over the block: the error of an element is at most half its block's scale. A block of
zeros is exact. Codes and scales are packed in one tensor of bytes, 1.016 bytes per element.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "from_int8", "packed_size", "to_int8"]

BLOCK = 256
"""Elements per scale."""


def packed_size(n: int) -> int:
    """Packed bytes of `n` elements: complete blocks, each with a float32 scale."""
    return -(-n // BLOCK) * (BLOCK + 4)


def to_int8(x_N: Tensor) -> Tensor:
    """Quantize a flat float tensor to bytes (uint8, `packed_size(N)`). Infinity and NaN are lost: check for them before."""
    blocks = -(-x_N.numel() // BLOCK)
    x_KB = torch.nn.functional.pad(x_N.detach().float(), (0, blocks * BLOCK - x_N.numel())).view(blocks, BLOCK)
    scale_K1 = x_KB.abs().amax(dim=1, keepdim=True) / 127
    codes_KB = (x_KB / scale_K1.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([codes_KB.flatten().view(torch.uint8), scale_K1.flatten().view(torch.uint8)])


def from_int8(packed: Tensor, n: int) -> Tensor:
    """Dequantize `n` numbers (float32)."""
    blocks = -(-n // BLOCK)
    codes_KB = packed[: blocks * BLOCK].view(torch.int8).view(blocks, BLOCK)
    scale_K1 = packed[blocks * BLOCK :].clone().view(torch.float32).view(blocks, 1)  # cloned: a view must be aligned to 4 bytes
    return (codes_KB * scale_K1).flatten()[:n]
