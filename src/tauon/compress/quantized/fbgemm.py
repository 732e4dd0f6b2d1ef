"""Products of float rows, rounded to integers on the way, with packed int8 weights: one call of FBGEMM, which torch's x86 wheels contain.

The integers are unsigned inside (x + 128, and the weights' sums are subtracted), which is what VNNI multiplies; the sums are exact. Processors without
VNNI add pairs of products in 16 bits, where these overflow: `fbgemm_is_exact` tries it out.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = ["PackedInt8", "fbgemm_is_exact"]

_ZERO = 128
"""The unsigned integer that means 0."""


class PackedInt8:
    """Int8 weights NK with one scale for each output, in FBGEMM's layout."""

    def __init__(self, weight_q: Tensor, scale_N: Tensor) -> None:
        self._source = weight_q, scale_N, _versions(weight_q, scale_N)
        zeros = torch.zeros(len(scale_N), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor")  # torch will drop the tensor type in which it takes the weights
            weight: Any = torch._make_per_channel_quantized_tensor(weight_q, scale_N.double(), zeros, 0)  # type: ignore[attr-defined]
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            self._packed = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = before

    def is_of(self, weight_q: Tensor, scale_N: Tensor) -> bool:
        """Whether these are the weights that were packed, unchanged."""
        q, scale, versions = self._source
        return q is weight_q and scale is scale_N and versions == _versions(q, scale)

    def multiply(self, x_MK: Tensor) -> Tensor:
        """Return q W^T times the scales, MN (float32), with q: `x_MK` rounded and clipped to -128..127."""
        out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x_MK, 1.0, _ZERO, self._packed)
        return out


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(0 if t.is_inference() else t._version for t in tensors)


@functools.cache
def fbgemm_is_exact() -> bool:
    """Whether FBGEMM is there and gives the exact sums of the largest products, at several sizes."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            return all(_is_exact(rows, inputs) for rows in (1, 3, 24) for inputs in (64, 1030))
    except (AttributeError, RuntimeError):  # a version of torch without it
        return False


def _is_exact(rows: int, inputs: int) -> bool:
    q = torch.full((24, inputs), 127, dtype=torch.int8)
    q[::2] = -127
    q[:, ::3] = 127
    x = q[:rows].float()
    return torch.equal(PackedInt8(q, torch.ones(24)).multiply(x).double(), x.double() @ q.double().t())
