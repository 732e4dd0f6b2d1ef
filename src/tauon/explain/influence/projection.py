"""Random projections of gradients that keep inner products on average: E <P x, P y> = <x, y> (Johnson & Lindenstrauss 1984).

A matrix's gradient G is multiplied from both sides, L G R^T with Gaussian L and R (Choe et al. 2024, arXiv:2405.13954, "LoGra"): from its
factors, sum_t (L g_t)(R a_t)^T, it is never formed. A short vector is kept as it is. `dense` multiplies the whole gradient by a matrix of
signs, as TRAK does: closer for as many columns, and slower. The matrices are functions of the seed and the parameter's name, so an index stores the
seed only.

Shapes: B examples, T positions, O rows and I columns of the matrix, K columns of the result.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from tauon.privacy.clipped import Outer, Rows, Term

__all__ = ["Projection"]

PIECE = 2**24
"""Elements of gradients formed at once: 64 MiB."""


class Projection:
    """Linear map of one parameter's gradients to `columns` numbers.

    >>> half = Projection("w", (100, 50), columns=64, seed=0)
    >>> half.columns
    64
    """

    def __init__(self, name: str, shape: Sequence[int], *, columns: int, seed: int, exact: bool = True, dense: bool = False) -> None:
        """`exact`: keep a gradient of at most `columns` numbers as it is (fewer columns then). `dense`: numel x columns bytes of memory."""
        self.shape = tuple(shape)
        numel, self.rows = math.prod(self.shape), self.shape[0] if self.shape else 1
        self.inside = numel // max(1, self.rows)
        self.left: Tensor | None = None
        self.right: Tensor | None = None
        self.signs: Tensor | None = None
        self.identity = exact and numel <= columns
        if self.identity:
            self.columns = numel
            return
        draws = torch.Generator().manual_seed((seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63)
        self.columns = columns
        if dense:
            self.signs = torch.randint(0, 2, (numel, columns), generator=draws, dtype=torch.int8).mul_(2).sub_(1)
            return
        # both sides about equally long; a vector has one side. `columns` is met exactly
        k = 1 if self.inside == 1 else _divisor(columns)
        self.left = torch.randn(columns // k, self.rows, generator=draws) / math.sqrt(columns // k)
        self.right = torch.randn(k, self.inside, generator=draws) / math.sqrt(k) if self.inside > 1 else torch.ones(1, 1)

    def __call__(self, terms: Sequence[Term]) -> Tensor:
        """Return BK, the projection of the sum of `terms` for each example."""
        total = self._one(terms[0])
        for term in terms[1:]:
            total = total + self._one(term)
        return total

    def _one(self, term: Term) -> Tensor:
        if self.identity:
            return term.dense().flatten(1)
        if self.signs is not None:
            return self._by_signs(term)
        assert self.left is not None
        assert self.right is not None
        device = term.squared.device
        left, right = self.left.to(device), self.right.to(device)
        if isinstance(term, Outer):
            return torch.bmm((term.g.float() @ left.t()).mT, term.a.float() @ right.t()).flatten(1)
        if isinstance(term, Rows):
            return torch.bmm(left.t()[term.ids].mT, term.g.float() @ right.t()).flatten(1)
        examples, out = len(term.squared), []
        step = max(1, PIECE // (self.rows * self.inside))
        for start in range(0, examples, step):
            units = torch.arange(start, min(examples, start + step), device=device)
            each_BOI = term.dense(units).reshape(len(units), self.rows, self.inside)
            out.append((left @ (each_BOI @ right.t())).flatten(1))
        return torch.cat(out)

    def _by_signs(self, term: Term) -> Tensor:
        assert self.signs is not None
        each_BP = term.dense().flatten(1)
        out, step = torch.zeros(len(each_BP), self.columns, device=each_BP.device), max(1, PIECE // self.columns)
        for start in range(0, len(self.signs), step):
            out.addmm_(each_BP[:, start : start + step], self.signs[start : start + step].to(each_BP.device).float())
        return out / math.sqrt(self.columns)


def _divisor(n: int) -> int:
    """Return the largest divisor of n that is at most its square root."""
    return max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
