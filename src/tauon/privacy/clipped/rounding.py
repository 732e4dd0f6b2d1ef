"""Error bounds of floating-point products and sums, for turning computed norms into upper bounds.

A sum of products in which each takes at most n roundings, in any order, is off by at most gamma(n) times the sum of their absolute values,
gamma(n) = n u / (1 - n u), u the unit roundoff (Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 3). This holds for every
library that multiplies and adds one by one; faster algorithms (Winograd, Strassen) are not covered, and rounded operands only if
`coarseness` reports them. Sums of long vectors are computed in two levels, the second in float64, so that n is small.
Shapes: U units, T and S positions, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

__all__ = [
    "ROW",
    "UNIT",
    "Gram",
    "Pair",
    "add_product",
    "bf16_operands",
    "coarseness",
    "gamma",
    "pair",
    "sum_of_products",
    "sum_of_squares",
    "unit_of",
]

UNIT = 2.0**-24
"""Unit roundoff of float32."""
DEPTH = 1024
"""Number of products accumulated in sequence in a matrix product."""
ROW = 256
"""Number of squares accumulated in sequence."""
MINUTE = 2.0**-90
"""Added to squared lengths. Products below 2^-126 may underflow; a bound gamma(n) |x| |y| with lengths of at least this size covers all of
them.
"""


def gamma(n: float, unit: float = UNIT) -> float:
    """gamma(n), plus 1% for the rounding of the bounds themselves; infinite if the bound is void."""
    return 1.01 * n * unit / (1 - n * unit) if n * unit < 0.5 else math.inf


def unit_of(dtype: torch.dtype) -> float:
    """Unit roundoff of `dtype`, 0 for float32 and finer: sums are float32."""
    return 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2


def coarseness(device: torch.device) -> float:
    """Relative rounding of float32 operands before matrix products (`torch.set_float32_matmul_precision`); 0: none."""
    backends: Any = torch.backends
    asked = {
        "cuda": [backends.cuda.matmul],
        "cpu": [backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv],
    }.get(device.type, [])
    return max({"bf16": 2.0**-8, "tf32": 2.0**-11}.get(b.fp32_precision, 0.0) for b in [backends, *asked])


def sum_of_squares(x: Tensor) -> Tensor:
    """U, float64: squared norms of x (U, ...), with a relative error of at most gamma(ROW + 4)."""
    flat = x.reshape(len(x), -1)
    whole = flat.shape[1] // ROW * ROW
    if flat.shape[1] <= 2 * ROW:
        short: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).double().square()
        return short
    found: Tensor = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, ROW)), dim=2, dtype=torch.float32).double().square().sum(1)
    if whole < flat.shape[1]:
        found += torch.linalg.vector_norm(flat[:, whole:], dim=1, dtype=torch.float32).double().square()
    return found


def sum_of_products(x_UTS: Tensor, y_UTS: Tensor) -> Tensor:
    """U, float64: sums of the products of two tensors' entries, off by gamma(S + 2) of the sum of their absolute values, S the last dimension."""
    S = x_UTS.shape[-1]
    x, y = x_UTS.reshape(-1, 1, S), y_UTS.reshape(-1, S, 1)
    return torch.bmm(x.float(), y.float()).view(len(x_UTS), -1).double().sum(1)


@dataclass(frozen=True)
class Gram:
    """x y^T of each unit (UTS), with the values for an error bound."""

    values: Tensor
    """UTS, float32."""
    rows: Tensor
    """UT: at least the length of each row of x."""
    columns: Tensor
    """US: the same of y."""
    depth: int
    """Number of roundings per product."""
    unit: float
    """Relative error of the sums if stored in bf16."""

    @classmethod
    def of(cls, x_UTI: Tensor) -> Gram:
        """Of x with itself: lengths are the diagonal."""
        values, depth, unit = _products(x_UTI, x_UTI)
        squares = values.diagonal(dim1=1, dim2=2).clamp(min=0)
        lengths = (squares * (1 + 3 * (gamma(depth) + unit)) + MINUTE).sqrt()
        return cls(values, lengths, lengths, depth, unit)

    @classmethod
    def between(cls, x_UTI: Tensor, y_USI: Tensor) -> Gram:
        """Of x with y."""
        values, depth, unit = _products(x_UTI, y_USI)
        return cls(values, lengths_of(x_UTI), lengths_of(y_USI), depth, unit)

    def scaled(self, c_UT: Tensor) -> Gram:
        """Of positions that are multiplied by c, on both sides."""
        lengths = self.rows * (c_UT.abs() * (1 + 4 * UNIT))
        return Gram(self.values * c_UT[:, :, None] * c_UT[:, None, :], lengths, lengths, self.depth + 4, self.unit)


def lengths_of(x_UTI: Tensor) -> Tensor:
    """UT: at least the length of each row."""
    I = x_UTI.shape[2]
    lengths: Tensor = torch.linalg.vector_norm(x_UTI, dim=2, dtype=torch.float32)
    return (lengths.square() * (1 + 3 * gamma(I + 4)) + MINUTE).sqrt()


def _products(x_UTI: Tensor, y_USI: Tensor) -> tuple[Tensor, int, float]:
    """(x y^T in float32, roundings on each product, relative error of the finished sums)."""
    I = x_UTI.shape[2]
    if x_UTI.dtype != torch.float32:
        if x_UTI.device.type == "cuda" and x_UTI.dtype != torch.float64:
            return torch.bmm(x_UTI, y_USI.mT, out_dtype=torch.float32), I, 0.0
        return torch.bmm(x_UTI, y_USI.mT).float(), I, unit_of(x_UTI.dtype)
    first = min(I, DEPTH)
    values = torch.bmm(x_UTI[..., :first], y_USI[..., :first].mT)
    for i in range(first, I, DEPTH):
        values.baddbmm_(x_UTI[..., i : i + DEPTH], y_USI[..., i : i + DEPTH].mT)
    return values, first + -(-I // DEPTH), 0.0


@dataclass(frozen=True)
class Pair:
    """sum_ts a_ts g_ts of two Gram matrices: the inner product of sum_t g_t a_t^T with another such sum, or with itself."""

    value: Tensor
    """U."""
    error: Tensor
    """U: error bound."""
    size: Tensor
    """U: sum_t |a_t| |g_t|, if both sides are the same."""
    moved: Tensor
    """U: bound of the norm of the sum if each a_t changes by at most its own length, in any direction: sqrt(sum_ts |g_ts| |a_t| |a_s|)."""


def pair(a: Gram, g: Gram) -> Pair:
    """Inner product from two Gram matrices, with error bound."""
    S = a.values.shape[2]
    of_g, of_a = _weighted(g.values, a.rows, a.columns), _weighted(a.values, g.rows, g.columns)
    rows, columns = (a.rows * g.rows).sum(1), (a.columns * g.columns).sum(1)
    error = gamma(a.depth + 2) * of_g + gamma(g.depth + 2) * of_a + gamma(a.depth + 2) * gamma(g.depth + 2) * rows * columns
    error = error + gamma(S + 4) * torch.minimum(of_g, of_a)
    if unit := a.unit + g.unit:
        both = sum_of_products(a.values.abs(), g.values.abs()).float()
        error = (error + 1.01 * (unit + unit * unit) * both) * (1 + unit)
    moved = (of_g * (1 + 2 * g.unit) + gamma(g.depth + 2) * rows * columns).sqrt()
    return Pair(sum_of_products(a.values, g.values).float(), error, rows, moved)


def _weighted(x_UTS: Tensor, rows_UT: Tensor, columns_US: Tensor) -> Tensor:
    """U: sum_ts |x_ts| r_t c_s."""
    return (torch.bmm(x_UTS.abs(), columns_US[:, :, None])[:, :, 0] * rows_UT).sum(1)


def add_product(out: Tensor, g_NO: Tensor, a_NI: Tensor) -> Tensor:
    """Add g^T a to `out` (O, I), in place, sums and result in float32."""
    if g_NO.dtype == torch.float32:
        return out.addmm_(g_NO.t(), a_NI)
    if g_NO.dtype == torch.float64:
        return out.add_((g_NO.t() @ a_NI).float())
    if g_NO.device.type == "cuda":
        return out.add_(torch.mm(g_NO.t(), a_NI, out_dtype=torch.float32))
    if g_NO.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        with bf16_operands():
            return out.addmm_(g_NO.float().t(), a_NI.float())
    return out.addmm_(g_NO.float().t(), a_NI.float())


@contextmanager
def bf16_operands() -> Iterator[None]:
    """Context in which a CPU with bf16 matrix units may round float32 operands to bf16, which is exact for bf16 operands."""
    matmul: Any = cast(Any, torch.backends.mkldnn).matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
