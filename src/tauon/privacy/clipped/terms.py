"""Terms: the contribution of one use of a weight to each unit's gradient, in the form with the cheapest norm.

`Outer`  sum_t g_ut a_ut^T, as the factors: the norm from two Gram matrices (Li et al. 2021, arXiv:2110.05679, section 4), the clipped sum as one
         matrix product (book-keeping, Bu et al. 2022, arXiv:2210.00038)
`Rows`   vectors that are added to rows of a table: never units x table
`Dense`  each unit's gradient itself: if that is cheaper, or there is no other form

A norm that is computed differently from the sum is not exactly the norm of what is added: Gram matrices suffer from cancellation. So each term
has error bounds for its square (`error`) and for what it adds (`rounding`); `bounded` makes an upper bound of them
(`rounding.py` has the constants). Independent of layers and of clipping. Shapes: U units (examples, or users of several rows each), T positions,
I inputs, O outputs, V rows of a table, D their width. Products run in the dtype of their factors; squares and sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauon.privacy.clipped.rounding import (
    MINUTE,
    ROW,
    UNIT,
    Gram,
    add_product,
    coarseness,
    gamma,
    pair,
    sum_of_products,
    sum_of_squares,
    unit_of,
)

__all__ = ["Bound", "Dense", "Grams", "Outer", "Rows", "Term", "bounded", "formed", "norms_of", "outer"]

Scaled = dict[tuple[object, ...], Tensor]
PIECE = 2**22
"""Elements in one piece of per-unit gradients, 16 MiB: the C library requests larger ones from the system each time."""
SHORTER = 0.02
"""Maximum relative slack of the rounding bounds; beyond, the gradient is formed and its own norm is used."""
FLOOR = 1e-10
"""Norms up to which no gradient is formed for accuracy."""


class Term:
    """One use of one weight."""

    squared: Tensor
    """U: squared norm of this use's gradient, float32."""
    error: Tensor | None = None
    """U: error bound of `squared`. None: unknown, so each unit's gradient is formed (`dense`), measured and added."""
    size: Tensor
    """U: sum over positions of |a_t| |g_t|, or another bound of the norm of each sum of the same numbers with other signs."""
    rounding: Tensor
    """U: bound on the norm of the difference between what `add` adds, at factor 1, and the gradient of `squared`."""
    reads_weight: bool = False
    """Whether `add` or `dense` read the weight again: it must then be available, also if shards are gathered only for a pass."""
    group: Any = None
    """Process group that must call `dense` together for the same units."""

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        """`out` + sum_u factor_u g_u, in place if `out` is given; float32, in the weight's shape."""
        raise NotImplementedError

    def dense(self, units: Tensor | None = None) -> Tensor:
        """The gradient of each of `units` (indices; None: all), (units, *shape of the weight), float32."""
        raise NotImplementedError

    def inner(self, other: Term) -> tuple[Tensor, Tensor]:
        """U: inner products with another use's gradients, float32, and their error bounds."""
        mine, theirs = (x.reshape(len(x), -1, x.shape[-1] if x.ndim > 1 else 1) for x in (self.dense(), other.dense()))
        off = gamma(mine.shape[2] + 8) * (sum_of_squares(mine) * sum_of_squares(theirs)).sqrt()
        return sum_of_products(mine, theirs), off + self.rounding * other.size + other.rounding * self.size


class Grams:
    """Cache of Gram matrices for inputs shared by several layers (queries, keys and values; gate and up)."""

    def __init__(self) -> None:
        self.last: list[tuple[Tensor, Gram]] = []

    def __call__(self, x_UTI: Tensor) -> Gram:
        """Of x with itself."""
        for other, gram in self.last:
            if same(other, x_UTI):
                return gram
        gram = Gram.of(x_UTI)
        self.last = [*self.last[-1:], (x_UTI, gram)]
        return gram

    def forget(self) -> None:
        """Free what is kept."""
        self.last = []


def same(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same view of the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def dense_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether to form each unit's gradient (T I O multiplications that the sum would cost anyway, but I O numbers to write and to read
    twice) rather than two Gram matrices (T^2 (I + O) more multiplications).

    Measured with float32 and AVX-512: writing a number costs as much as 40 multiplications in allocated memory, and 150 in new memory. It must
    not take more memory than the factors.
    """
    small = inputs * outputs <= 2 * positions * (inputs + outputs)
    return positions > 1 and small and 100 * inputs * outputs < positions**2 * (inputs + outputs)


def outer(a_UTI: Tensor, g_UTO: Tensor, grams: Grams, shape: Sequence[int] | None = None) -> Term:
    """The gradient sum_t g_ut a_ut^T (U O I) in the cheapest form; `shape`: of the weight, if it is not (O, I)."""
    _, T, I = a_UTI.shape
    O = g_UTO.shape[2]
    if dense_is_cheaper(T, I, O):
        return Dense.product(a_UTI, g_UTO, shape)
    return Outer(a_UTI, g_UTO, grams, shape)


class Outer(Term):
    """sum_t g_ut a_ut^T of a weight (O, I)."""

    def __init__(self, a_UTI: Tensor, g_UTO: Tensor, grams: Grams | None = None, shape: Sequence[int] | None = None) -> None:
        self.a, self.g, self.shape = a_UTI, g_UTO, shape
        T = a_UTI.shape[1]
        if T == 1:
            of_a, of_g = (sum_of_squares(x) + MINUTE for x in (a_UTI, g_UTO))
            self.squared = (of_a * of_g).float()
            self.error = self.squared * gamma(2 * ROW + 16)
            self.size = moved = (self.squared + self.error).sqrt()
        else:
            found = pair(grams(a_UTI) if grams is not None else Gram.of(a_UTI), Gram.of(g_UTO))
            self.squared, self.error, self.size, moved = found.value, found.error, found.size, found.moved
        # inputs are multiplied by the factor, which rounds each number, and then summed over positions
        self.rounding = gamma(T + 4) * self.size + gamma(1, unit_of(a_UTI.dtype)) * moved
        if coarseness(a_UTI.device) and a_UTI.dtype == torch.float32:
            self.error = None

    @property
    def key(self) -> tuple[object, ...]:
        """Identity of the memory of its inputs."""
        return self.a.data_ptr(), self.a.shape, self.a.stride()

    def add(self, factors_U: Tensor, out: Tensor | None, scaled: Scaled | None = None) -> Tensor:
        """See `Term`. `scaled`: inputs already scaled for another layer."""
        a, g = self.a, self.g
        if scaled is not None and self.key in scaled:
            a = scaled[self.key]
        elif scaled is None and g.shape[2] < a.shape[2] and g.dtype == torch.float32:
            g = g * factors_U[:, None, None]
        else:
            a = (a * factors_U[:, None, None]).to(a.dtype)
            if scaled is not None:
                scaled[self.key] = a
        g_NO, a_NI = g.flatten(0, 1), a.flatten(0, 1)
        if out is None and g_NO.dtype == torch.float32:
            whole = g_NO.t() @ a_NI
            return whole if self.shape is None else whole.view(self.shape)
        if out is None:
            out = torch.zeros(self.shape or (g_NO.shape[1], a_NI.shape[1]), dtype=torch.float32, device=a.device)
        add_product(out.view(g_NO.shape[1], a_NI.shape[1]), g_NO, a_NI)
        return out

    def dense(self, units: Tensor | None = None) -> Tensor:
        a, g = (x if units is None else x[units] for x in (self.a, self.g))
        whole = torch.bmm(g.mT.float(), a.float())
        return whole if self.shape is None else whole.view(-1, *self.shape)

    def inner(self, other: Term) -> tuple[Tensor, Tensor]:
        if isinstance(other, Outer):
            found = pair(Gram.between(self.a, other.a), Gram.between(self.g, other.g))
            return found.value, found.error
        return other.inner(self)


class Rows(Term):
    """Vectors g_utd added to rows `ids_UT` of a table (V, D). Rows `skip` get no gradient."""

    def __init__(self, ids_UT: Tensor, g_UTD: Tensor, rows: int, skip: int | None = None) -> None:
        if skip is not None:
            g_UTD = g_UTD * (ids_UT != skip).to(g_UTD.dtype)[:, :, None]
        self.ids, self.g, self.rows = ids_UT, g_UTD, rows
        U, T = ids_UT.shape
        if T == 1:
            self.squared = sum_of_squares(g_UTD).float()
            self.error = self.squared * gamma(ROW + 8)
            self.size = (self.squared + self.error).sqrt()
            self.rounding = 4 * UNIT * self.size
            return
        # vectors of one unit for the same row are summed before squaring
        key = ids_UT + rows * torch.arange(U, device=ids_UT.device)[:, None]
        keys, at, counts = key.flatten().unique(return_inverse=True, return_counts=True)
        unit = keys // rows
        sums = torch.zeros(len(keys), g_UTD.shape[2], dtype=torch.float32, device=g_UTD.device).index_add_(
            0, at, g_UTD.flatten(0, 1).float()
        )
        lengths_UT = torch.linalg.vector_norm(g_UTD, dim=2, dtype=torch.float32).double() * (1 + gamma(g_UTD.shape[2] + 4))
        by_key = torch.zeros(len(keys), dtype=torch.float64, device=g_UTD.device).index_add_(0, at, lengths_UT.flatten())
        by_unit = torch.zeros(2, U, dtype=torch.float64, device=g_UTD.device)
        by_unit.index_add_(1, unit, torch.stack([sum_of_squares(sums), by_key.square()]))
        self.squared, spread = by_unit[0].float(), by_unit[1].sqrt().float()
        most = torch.zeros(U, dtype=counts.dtype, device=counts.device).scatter_reduce_(0, unit, counts, "amax")
        self.rounding = 1.01 * UNIT * (most + 2).float() * spread  # each vector of a row is added to the others of it
        self.error = self.squared * gamma(ROW + 8) + (2 * self.squared.sqrt() + self.rounding) * self.rounding
        self.size = lengths_UT.sum(1).float()

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.zeros(self.rows, self.g.shape[2], dtype=torch.float32, device=self.g.device)
        return out.index_add_(0, self.ids.flatten(), (self.g.float() * factors_U[:, None, None]).flatten(0, 1))

    def dense(self, units: Tensor | None = None) -> Tensor:
        ids, g = (x if units is None else x[units] for x in (self.ids, self.g))
        U, _, D = g.shape
        key = ids + self.rows * torch.arange(U, device=ids.device)[:, None]
        whole = torch.zeros(U * self.rows, D, dtype=torch.float32, device=g.device)
        return whole.index_add_(0, key.flatten(), g.flatten(0, 1).float()).view(U, self.rows, D)

    def inner(self, other: Term) -> tuple[Tensor, Tensor]:
        D, g = self.g.shape[2], self.g.float()
        if isinstance(other, Rows):
            alike = (self.ids[:, :, None] == other.ids[:, None, :]).float()
            found, S = sum_of_products(alike, torch.bmm(g, other.g.float().mT)), other.ids.shape[1]
        elif isinstance(other, Outer):  # a head that is also the embedding: sum_ts g_s[id_t] (a_s . e_t)
            at = self.ids[:, None, :].expand(-1, other.g.shape[1], -1)
            found, S = sum_of_products(other.g.gather(2, at), torch.bmm(other.a.float(), g.mT)), self.ids.shape[1]
        elif isinstance(other, Dense):
            picked = other.dense().gather(1, self.ids[:, :, None].expand(-1, -1, D))
            found, S = sum_of_products(picked, g), D
        else:
            return other.inner(self)
        return found.float(), gamma(D + S + 8) * self.size * other.size


class Dense(Term):
    """Each unit's gradient, in pieces along U; added as measured."""

    def __init__(self, pieces: list[Tensor]) -> None:
        self.pieces = pieces
        self._measured(torch.cat([sum_of_squares(p) for p in pieces]))

    def _measured(self, squared: Tensor) -> None:
        """Store the norms; bounds are computed on demand, as most parameters are used once (`bounded`)."""
        self.squared = squared.float()

    @property
    def error(self) -> Tensor:  # type: ignore[override]
        """See `Term`."""
        return self.squared * gamma(ROW + 8)

    @property
    def size(self) -> Tensor:  # type: ignore[override]
        """See `Term`."""
        return (self.squared + self.error).sqrt()

    @property
    def rounding(self) -> Tensor:  # type: ignore[override]
        """See `Term`: factors are rounded as they are multiplied, and operands where products are coarse."""
        return self.size * (4 * UNIT + 2.1 * coarseness(self.squared.device))

    @classmethod
    def of(cls, g: Tensor) -> Dense:
        """From (U, *shape)."""
        return cls([g.float()])

    @classmethod
    def product(cls, a_UTI: Tensor, g_UTO: Tensor, shape: Sequence[int] | None = None) -> Dense:
        """From factors, one piece at a time: its norm is computed while it is in cache."""
        U, _, I = a_UTI.shape
        O = g_UTO.shape[2]
        step = max(1, PIECE // (I * O))
        term = cls.__new__(cls)
        term.pieces, squared = [], []
        for u in range(0, U, step):
            piece = torch.bmm(g_UTO[u : u + step].mT, a_UTI[u : u + step]).float()
            squared.append(sum_of_squares(piece))
            term.pieces.append(piece if shape is None else piece.view(-1, *shape))
        term._measured(torch.cat(squared))
        return term

    def plus(self, other: Dense) -> Dense | None:
        """The sum of both, if their pieces have the same sizes."""
        if type(self) is not Dense or type(other) is not Dense or [p.shape for p in self.pieces] != [p.shape for p in other.pieces]:
            return None
        return Dense([p + q for p, q in zip(self.pieces, other.pieces, strict=True)])

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        u = 0
        for piece in self.pieces:
            flat, factors = piece.reshape(len(piece), -1), factors_U[u : u + len(piece)]
            u += len(piece)
            if out is None:
                out = torch.mv(flat.t(), factors).view(piece.shape[1:])
            else:
                out.view(-1).addmv_(flat.t(), factors)
        assert out is not None
        return out

    def dense(self, units: Tensor | None = None) -> Tensor:
        if units is None:
            return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        size = len(self.pieces[0])  # all but the last are as long
        return torch.stack([self.pieces[u // size][u % size] for u in units.tolist()])

    def inner(self, other: Term) -> tuple[Tensor, Tensor]:
        if isinstance(other, Rows):
            return other.inner(self)
        return super().inner(other)


@dataclass(frozen=True)
class Bound:
    """Bounds of the norm of each unit's contribution to one parameter, at factor 1."""

    estimate: Tensor
    """U: its square as computed."""
    squared: Tensor
    """U: upper bound of its square."""
    loose: Tensor | None
    """U: whether the bound is so loose that the gradient should be formed. None: for no unit."""


def bounded(terms: Sequence[Term]) -> Bound:
    """The uses of one parameter together: tied weights, layers used again."""
    if len(terms) == 1 and isinstance(terms[0], Dense):
        only = terms[0].squared
        return Bound(only, only * ((1 + gamma(ROW + 8)) * (1 + 2.1 * (4 * UNIT + 2.1 * coarseness(only.device)))), None)
    if any(t.error is None for t in terms):
        nothing = torch.full_like(terms[0].squared, torch.inf)
        return Bound(nothing, nothing, torch.ones_like(nothing, dtype=torch.bool))
    squared, error = (sum_([x for t in terms if (x := getattr(t, what)) is not None]) for what in ("squared", "error"))
    rounding = sum_([t.rounding for t in terms])
    if len(terms) > 1:  # one after the other is added to the sum
        rounding += gamma(2 * len(terms)) * sum_([t.size for t in terms])
    for i, term in enumerate(terms[1:], 1):
        for before in terms[:i]:
            product, off = before.inner(term)
            squared += 2 * product.double()
            error += 2 * off.double()
    most = (squared + error).clamp(min=0).sqrt() + rounding
    tight = (most - squared.clamp(min=0).sqrt() <= SHORTER * most) & most.isfinite()
    return Bound(squared.clamp(min=0).float(), (most.square() * (1 + 4 * UNIT)).float(), ~(tight | (most <= FLOOR)))


def sum_(found: Sequence[Tensor]) -> Tensor:
    """U, float64."""
    return torch.stack(list(found)).double().sum(0)


def formed(terms: Sequence[Term], units: Tensor) -> Tensor:
    """The gradient of one parameter of each of `units`, all uses added up: (units, *shape), float32."""
    whole = terms[0].dense(units)
    for term in terms[1:]:
        whole = whole + term.dense(units)
    return whole


def norms_of(whole: Tensor) -> Tensor:
    """Upper bound of the norm of each unit's gradient, float64, also if squares overflow."""
    found = (sum_of_squares(whole) * (1 + gamma(ROW + 8))).sqrt()
    if not bool(found.isfinite().all()):
        found = torch.linalg.vector_norm(whole.reshape(len(whole), -1), dim=1, dtype=torch.float64) * (1 + 1e-6)
    return found * (1 + 8 * UNIT + 2.1 * coarseness(whole.device))
