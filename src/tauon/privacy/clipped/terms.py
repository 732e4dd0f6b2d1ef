"""What one use of a weight adds to each unit's gradient, kept in the form in which its norm is cheapest.

`Outer`  sum_t g_ut a_ut^T, as the factors: the norm from two Gram matrices (Li et al. 2021, arXiv:2110.05679, section 4), the clipped sum as one
         matrix product (book-keeping, Bu et al. 2022, arXiv:2210.00038)
`Rows`   vectors that are added to rows of a table: never units x table
`Dense`  each unit's gradient itself: where that is less work, or nothing better is known

Knows no layer and no clipping. Shapes: U units (examples, or users of several rows each), T positions, I inputs, O outputs, V rows of a table,
D their width. Products run in the dtype of their factors; squares and sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Dense", "Grams", "Outer", "Rows", "Term", "joint", "outer"]

Scaled = dict[tuple[object, ...], Tensor]
PIECE = 2**22
"""Numbers in one piece of per-unit gradients, 16 MiB: larger ones the C library takes from, and returns to, the system each time."""


class Term:
    """One use of one weight."""

    squared: Tensor
    """U: squared norm of this use's gradient, float32."""
    reads_weight: bool = False
    """Whether `add` computes with the weight once more: it must be there then, also where shards are gathered for a pass alone."""

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        """`out` + sum_u factor_u g_u, in place where `out` is given; float32, in the weight's shape."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Each unit's gradient, (U, *shape of the weight), float32."""
        raise NotImplementedError

    def inner(self, other: Term) -> Tensor:
        """U: inner products with another use's gradients, float32."""
        return (self.dense() * other.dense()).flatten(1).sum(1)


class Grams:
    """The Gram matrices of inputs that several layers share (queries, keys and values; gate and up), each made once."""

    def __init__(self) -> None:
        self.last: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_UTI: Tensor) -> Tensor:
        """UTT: x x^T."""
        for other, gram in self.last:
            if same(other, x_UTI):
                return gram
        gram = torch.bmm(x_UTI, x_UTI.mT)
        self.last = [*self.last[-1:], (x_UTI, gram)]
        return gram

    def forget(self) -> None:
        """Free what is kept."""
        self.last = []


def same(a: Tensor, b: Tensor) -> bool:
    """Whether both are one piece of memory, seen alike."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def dense_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether to form each unit's gradient (T I O multiplications that the sum would cost anyway, but I O numbers to write and to read
    twice) rather than two Gram matrices (T^2 (I + O) more multiplications).

    Measured with float32 and AVX-512: a number costs as much as 40 multiplications where memory is at hand, and 150 where the system
    first has to give it. It must not take more memory than factors would.
    """
    small = inputs * outputs <= 2 * positions * (inputs + outputs)
    return positions > 1 and small and 100 * inputs * outputs < positions**2 * (inputs + outputs)


def outer(a_UTI: Tensor, g_UTO: Tensor, grams: Grams, shape: Sequence[int] | None = None) -> Term:
    """The gradient sum_t g_ut a_ut^T (U O I) in the form that costs least; `shape`: of the weight, where it is not (O, I)."""
    _, T, I = a_UTI.shape
    O = g_UTO.shape[2]
    if dense_is_cheaper(T, I, O):
        return Dense.product(a_UTI, g_UTO, shape)
    return Outer(a_UTI, g_UTO, grams, shape)


class Outer(Term):
    """sum_t g_ut a_ut^T of a weight (O, I)."""

    def __init__(self, a_UTI: Tensor, g_UTO: Tensor, grams: Grams | None = None, shape: Sequence[int] | None = None) -> None:
        self.a, self.g, self.shape = a_UTI, g_UTO, shape
        if a_UTI.shape[1] == 1:
            self.squared = a_UTI.float().square().sum((1, 2)) * g_UTO.float().square().sum((1, 2))
        else:
            inputs = grams(a_UTI) if grams is not None else torch.bmm(a_UTI, a_UTI.mT)
            self.squared = total(inputs, torch.bmm(g_UTO, g_UTO.mT))

    @property
    def key(self) -> tuple[object, ...]:
        """Which piece of memory its inputs are."""
        return self.a.data_ptr(), self.a.shape, self.a.stride()

    def add(self, factors_U: Tensor, out: Tensor | None, scaled: Scaled | None = None) -> Tensor:
        """See `Term`. `scaled`: inputs that were scaled for another layer already."""
        a, g = self.a, self.g
        if scaled is not None and self.key in scaled:
            a = scaled[self.key]
        elif scaled is None and g.shape[2] < a.shape[2]:
            g = g * factors_U.to(g.dtype)[:, None, None]
        else:
            a = a * factors_U.to(a.dtype)[:, None, None]
            if scaled is not None:
                scaled[self.key] = a
        g_NO, a_NI = g.flatten(0, 1), a.flatten(0, 1)
        if g_NO.dtype != torch.float32:
            whole = (g_NO.t() @ a_NI).float()
            whole = whole if self.shape is None else whole.view(self.shape)
            return whole if out is None else out.add_(whole)
        if out is None:
            whole = g_NO.t() @ a_NI
            return whole if self.shape is None else whole.view(self.shape)
        out.view(g_NO.shape[1], a_NI.shape[1]).addmm_(g_NO.t(), a_NI)
        return out

    def dense(self) -> Tensor:
        whole = torch.bmm(self.g.mT, self.a).float()
        return whole if self.shape is None else whole.view(-1, *self.shape)

    def inner(self, other: Term) -> Tensor:
        if isinstance(other, Outer):
            return total(torch.bmm(self.a, other.a.mT), torch.bmm(self.g, other.g.mT))
        return other.inner(self)


class Rows(Term):
    """Vectors g_utd added to rows `ids_UT` of a table (V, D). Rows `skip` never learn."""

    def __init__(self, ids_UT: Tensor, g_UTD: Tensor, rows: int, skip: int | None = None) -> None:
        if skip is not None:
            g_UTD = g_UTD * (ids_UT != skip).to(g_UTD.dtype)[:, :, None]
        self.ids, self.g, self.rows = ids_UT, g_UTD, rows
        U, T = ids_UT.shape
        if T == 1:
            self.squared = g_UTD.float().square().sum((1, 2))
            return
        # vectors of one unit with one row are added up before they are squared
        key = ids_UT + rows * torch.arange(U, device=ids_UT.device)[:, None]
        keys, at = key.flatten().unique(return_inverse=True)
        sums = torch.zeros(len(keys), g_UTD.shape[2], dtype=torch.float32, device=g_UTD.device).index_add_(
            0, at, g_UTD.flatten(0, 1).float()
        )
        self.squared = torch.zeros(U, device=g_UTD.device).index_add_(0, keys // rows, sums.square().sum(1))

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.zeros(self.rows, self.g.shape[2], dtype=torch.float32, device=self.g.device)
        return out.index_add_(0, self.ids.flatten(), (self.g.float() * factors_U[:, None, None]).flatten(0, 1))

    def dense(self) -> Tensor:
        U, _, D = self.g.shape
        key = self.ids + self.rows * torch.arange(U, device=self.ids.device)[:, None]
        whole = torch.zeros(U * self.rows, D, dtype=torch.float32, device=self.g.device)
        return whole.index_add_(0, key.flatten(), self.g.flatten(0, 1).float()).view(U, self.rows, D)

    def inner(self, other: Term) -> Tensor:
        if isinstance(other, Rows):
            alike = (self.ids[:, :, None] == other.ids[:, None, :]).to(self.g.dtype)
            return total(alike, torch.bmm(self.g, other.g.mT))
        if isinstance(other, Outer):  # a head that is also the embedding: sum_ts g_s[id_t] (a_s . e_t)
            at = self.ids[:, None, :].expand(-1, other.g.shape[1], -1)
            return total(other.g.gather(2, at), torch.bmm(other.a, self.g.to(other.a.dtype).mT))
        if isinstance(other, Dense):
            picked = other.dense().gather(1, self.ids[:, :, None].expand(-1, -1, self.g.shape[2]))
            return (picked * self.g.float()).sum((1, 2))
        return other.inner(self)


class Dense(Term):
    """Each unit's gradient, in pieces along U."""

    def __init__(self, pieces: list[Tensor]) -> None:
        self.pieces = pieces
        self.squared = torch.cat([torch.linalg.vector_norm(p.flatten(1), dim=1).square() for p in pieces])

    @classmethod
    def of(cls, g: Tensor) -> Dense:
        """From (U, *shape)."""
        return cls([g.float()])

    @classmethod
    def product(cls, a_UTI: Tensor, g_UTO: Tensor, shape: Sequence[int] | None = None) -> Dense:
        """From factors, a piece at a time: its norm is taken while it is in cache."""
        U, _, I = a_UTI.shape
        O = g_UTO.shape[2]
        step = max(1, PIECE // (I * O))
        term = cls.__new__(cls)
        term.pieces, squared = [], []
        for u in range(0, U, step):
            piece = torch.bmm(g_UTO[u : u + step].mT, a_UTI[u : u + step]).float()
            squared.append(torch.linalg.vector_norm(piece, dim=(1, 2)).square())
            term.pieces.append(piece if shape is None else piece.view(-1, *shape))
        term.squared = torch.cat(squared)
        return term

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        u = 0
        for piece in self.pieces:
            flat, factors = piece.flatten(1), factors_U[u : u + len(piece)]
            u += len(piece)
            if out is None:
                out = torch.mv(flat.t(), factors).view(piece.shape[1:])
            else:
                out.view(-1).addmv_(flat.t(), factors)
        assert out is not None
        return out

    def dense(self) -> Tensor:
        return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)

    def inner(self, other: Term) -> Tensor:
        if isinstance(other, Rows):
            return other.inner(self)
        return (self.dense() * other.dense()).flatten(1).sum(1)


def total(x_UTS: Tensor, y_UTS: Tensor) -> Tensor:
    """U: sum of the products of two matrices' entries, float32."""
    if x_UTS.dtype == y_UTS.dtype == torch.float32:
        return torch.bmm(x_UTS.flatten(1)[:, None], y_UTS.flatten(1)[:, :, None]).flatten()
    return (x_UTS.float() * y_UTS.float()).sum((1, 2))


def joint(terms: Sequence[Term]) -> Tensor:
    """U: squared norm of the sum of several uses' gradients: tied weights, layers used again."""
    squared = terms[0].squared.clone()
    for i, term in enumerate(terms[1:], 1):
        squared += term.squared
        for before in terms[:i]:
            squared += 2 * before.inner(term)
    return squared.clamp_(min=0)
