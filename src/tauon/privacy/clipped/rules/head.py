"""Output heads whose weight a loss takes directly: the chunked cross-entropy (`tasks/losses.py`), token by token or summed.

The gradient of a unit is sum_t p_t h_t^T, p the softmax minus one at the target. Its norm comes from the Gram matrices of p and of h, in
chunks of complete units while the logits exist; or, if a unit has more positions than the width of the head, from the gradient itself. For the
clipped sum, p is stored if it is small, and computed again otherwise. A head that is tied to the embedding has a cross term with it,
2 sum_ts p_s[id_t] (h_s . e_t). Shapes: N tokens, U units, T tokens of a unit, D width, V vocabulary, S tokens looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.distributed.pieces import is_dtensor, local_slices
from tauon.errors import Problem, RecipeError
from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rounding import (
    ROW,
    UNIT,
    Gram,
    add_product,
    coarseness,
    gamma,
    lengths_of,
    pair,
    sum_of_products,
    sum_of_squares,
    unit_of,
)
from tauon.privacy.clipped.terms import Outer, Rows, Term
from tauon.tasks.losses import chunk_rows, softmax_and_nll

__all__ = ["Head"]

KEPT = 2**23
"""Maximum number of stored probabilities, 32 MiB of float32; beyond, computing them twice is cheaper than the memory."""
AT_ONCE = 2**26
"""Maximum logits of one unit at a time."""


class Head:
    """Products with a weight (V, D) of `layer`."""

    def __init__(self, record: Record, layer: nn.Module, leaf: str, weight_VD: Tensor) -> None:
        self.record, self.layer, self.leaf, self.weight = record, layer, leaf, weight_VD
        self.name = record.name(layer, leaf)
        stored = layer._parameters[leaf]
        self.parts: tuple[int, Any] | None = None
        """For a head split over tensor-parallel processes: this process's first row, and the group."""
        if is_dtensor(stored) and weight_VD.shape != stored.shape:
            self.parts = (local_slices(stored)[0].start, stored.device_mesh.get_group())

    def _whole(self, what: str) -> None:
        if self.parts is not None:
            raise RecipeError(
                [
                    Problem(
                        "parallel.tensor",
                        f"splits the head, and {what} with a split head cannot be clipped per example. Set parallel.shard instead.",
                    )
                ]
            )

    def times(self, x: Tensor) -> Tensor:
        """X W^T, rows first."""
        self._whole("a product")
        return cast(Tensor, _Times.apply(x, self.weight, self.record.here(x.device), self))

    def linear_cross_entropy(self, hidden_ND: Tensor, target_N: Tensor, token_weight_N: Tensor) -> Tensor:
        """See `tasks.losses.linear_cross_entropy`."""
        out: Tensor = _Summed.apply(hidden_ND, target_N, token_weight_N, self.record.here(hidden_ND.device), self)
        return out

    def token_nll(self, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
        """See `tasks.losses.token_nll`."""
        self._whole("a loss of each token")
        out: Tensor = _Each.apply(hidden_ND, target_N, self.record.here(hidden_ND.device), self)
        return out

    def of_examples(self, hidden_ND: Tensor, bias_V: Tensor | None, example_N: Tensor) -> Tensor:
        """H W^T + b, where row n belongs to example `example_N[n]` (sorted), with any number of rows per example."""
        self._whole("a loss of some positions")
        if bias_V is not None:
            bias_V = cast(Any, bias_V).plain
        out: Tensor = _Ragged.apply(hidden_ND, self.weight, bias_V, example_N, self.record.here(hidden_ND.device), self)
        return out

    def units(self, tokens: int) -> int:
        """U. Raises `RecipeError` if units have different numbers of tokens."""
        return self.record.by_unit(torch.empty(tokens, 0), self.name).shape[0]

    def scored(self, h_ND: Tensor, target_N: Tensor, c_N: Tensor) -> _Scored:
        """Value, gradient and norms of sum_n c_n nll_n: see `_Scored`."""
        return _Scored(self, h_ND, target_N, c_N)


class _Scored:
    """One pass over the logits for the loss sum_n c_n nll_n: its value, gradient for h, and each unit's squared norm."""

    def __init__(self, head: Head, h_ND: Tensor, target_N: Tensor, c_N: Tensor) -> None:
        N, V = len(h_ND), len(head.weight)
        self.head, self.h, self.target, self.c = head, h_ND, target_N, c_N
        self.w = head.weight.to(h_ND.dtype)
        self.U = head.units(N)
        self.T = N // self.U
        ids = head.record.ids.get(head.name, [])
        self.p = h_ND.new_empty(N, V) if N * V <= KEPT else None
        self.picked: list[tuple[Tensor, Tensor]] = (
            [] if self.p is not None else [(i, h_ND.new_empty(self.U, self.T, i.shape[1])) for i in ids]
        )
        self.grad_h = torch.empty_like(h_ND)
        self.loss = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        self.by_gradient = self.T * (V + h_ND.shape[1]) > V * h_ND.shape[1] or self.T * V > AT_ONCE
        self.alone = self.by_gradient and unit_of(h_ND.dtype) > 0
        """Whether the sum is made from each unit's gradient, formed again in the same way as for its norm, and then scaled: with bf16, scaling
        before adds rounding. For short units the norm accounts for it."""
        self.squared, self.error, self.size, self.moved = torch.zeros(4, self.U, dtype=torch.float32, device=h_ND.device)
        if self.by_gradient:
            for u in range(self.U):
                self._unit(u)
        else:
            for u, rows, p, nll in self._chunks(self.p):
                self._row_results(rows, p, nll)
                self._short_units(u, rows, p)
        # the sum: formed again, or all positions of all units at once
        self.rounding = 8 * UNIT * self.size if self.alone else gamma(self.T + 8) * self.size + gamma(1, unit_of(h_ND.dtype)) * self.moved
        if self.head.parts is not None:  # each process's rows of the head add to the gradient of h
            dist.all_reduce(self.grad_h, group=self.head.parts[1])

    def _row_results(self, rows: slice, p: Tensor, nll: Tensor) -> None:
        self.loss += (nll[:, 0] * self.c[rows]).sum()
        torch.mm(p, self.w, out=self.grad_h[rows]).mul_(self.c[rows, None].to(p.dtype))

    def _short_units(self, u: int, rows: slice, p: Tensor) -> None:
        """A chunk of complete units: Gram matrices."""
        n = len(p) // self.T
        p_UTV, h_UTD, c_UT = p.view(n, self.T, -1), self.h[rows].view(n, self.T, -1), self.c[rows].view(n, self.T)
        found = pair(Gram.of(h_UTD).scaled(c_UT), Gram.of(p_UTV))
        units = slice(u, u + n)
        self.squared[units], self.error[units], self.size[units], self.moved[units] = found.value, found.error, found.size, found.moved
        for i, out in self.picked:
            torch.gather(p_UTV, 2, i[units, None, :].expand(-1, self.T, -1), out=out[units])

    def _unit(self, u: int) -> None:
        """A long unit: its gradient itself, piece by piece."""
        whole = torch.zeros(self.w.shape, dtype=torch.float32, device=self.w.device)
        for rows, p, nll in self._pieces(u, self.p):
            self._row_results(rows, p, nll)
            add_product(whole, p, self.scaled(rows, self.c))
            self.size[u] += (lengths_of(p[None]) * lengths_of(self.h[None, rows]) * self.c[rows].abs() * (1 + 4 * UNIT)).sum()
            for i, out in self.picked:
                first = rows.start - u * self.T
                out[u, first : first + len(p)] = p[:, i[u]]
        self.squared[u] = sum_of_squares(whole[None])[0]
        off = 0 if self.alone else gamma(self.T + 8) * self.size[u]
        self.error[u] = gamma(ROW + 8) * self.squared[u] + (2 * self.squared[u].sqrt() + off) * off

    def scaled(self, rows: slice, by_N: Tensor) -> Tensor:
        """Rows of h, each times its factor."""
        return (self.h[rows] * by_N[rows, None]).to(self.h.dtype)

    def _pieces(self, u: int, into: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, p minus one at the target, nll) of a unit's rows."""
        step = chunk_rows(self.T, len(self.w), self.h.device)
        for first in range(u * self.T, (u + 1) * self.T, step):
            rows = slice(first, min((u + 1) * self.T, first + step))
            yield rows, *self._softmax(rows, into)

    def _chunks(self, into: Tensor | None) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """(first unit, rows, p minus one at the target, nll) in chunks of complete units."""
        step = max(1, chunk_rows(len(self.h), len(self.w), self.h.device) // self.T)
        for u in range(0, self.U, step):
            rows = slice(u * self.T, min(self.U, u + step) * self.T)
            yield u, rows, *self._softmax(rows, into)

    def _softmax(self, rows: slice, into: Tensor | None) -> tuple[Tensor, Tensor]:
        h, at = self.h[rows], self.target[rows, None]
        if self.head.parts is not None:
            p, nll = softmax_over_parts((h @ self.w.t()).float(), self.target[rows], *self.head.parts)
            if into is not None:
                into[rows] = p
            return (p.to(h.dtype) if into is None else into[rows]), nll
        z = torch.mm(h, self.w.t(), out=into[rows]) if into is not None and h.dtype == torch.float32 else (h @ self.w.t()).float()
        p, nll = softmax_and_nll(z, at, h, self.w)
        p = p.scatter_add_(1, at, torch.full_like(nll, -1.0)).to(h.dtype)
        if into is not None and p.data_ptr() != into[rows].data_ptr():
            into[rows] = p
            p = into[rows]
        return p, nll

    def again(self) -> Iterator[tuple[int, slice, Tensor]]:
        """(first unit, rows, p) of complete units, or of a part of one: stored, or computed again with the same products in the same pieces, as
        others would round differently.
        """
        if self.p is not None:
            step = 1 if self.by_gradient else self.U
            for u in range(0, self.U, step):
                rows = slice(u * self.T, (u + step) * self.T)
                yield u, rows, self.p[rows]
        elif self.by_gradient:
            for u in range(self.U):
                for rows, p, _ in self._pieces(u, None):
                    yield u, rows, p
        else:
            for u, rows, p, _ in self._chunks(None):
                yield u, rows, p


class _HeadTerm(Term):
    """scale * sum_t c_t p_t h_t^T of each unit."""

    def __init__(self, scored: _Scored, scale: Tensor) -> None:
        self.scored, self.scale = scored, scale
        length = scale.float().abs()
        self.squared, self.error = scored.squared * length.square(), scored.error * length.square() * (1 + 8 * UNIT)
        self.size, self.rounding = scored.size * length, scored.rounding * length * (1 + 8 * UNIT)
        self.reads_weight = scored.p is None
        self.group = None if scored.head.parts is None else scored.head.parts[1]
        if coarseness(scored.h.device) and scored.h.dtype == torch.float32:
            self.error = None

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        s = self.scored
        if out is None:
            out = torch.zeros(s.w.shape, dtype=torch.float32, device=s.w.device)
        if s.alone:
            for u, whole in self._each():
                out.add_(whole.mul_(factors_U[u] * self.scale))
            return out
        c_N = (s.c.view(s.U, s.T) * (factors_U * self.scale)[:, None]).flatten()
        for _, rows, p in s.again():
            add_product(out, p, s.scaled(rows, c_N))
        return out

    def _each(self) -> Iterator[tuple[int, Tensor]]:
        """(u, its gradient before it is scaled) of long units, as `_Scored._unit` forms them."""
        s = self.scored
        whole, rows_done = torch.empty(0), 0
        for u, rows, p in s.again():
            if not rows_done:
                whole = torch.zeros(s.w.shape, dtype=torch.float32, device=s.w.device)
            for at in range(0, len(p), chunk_rows(s.T, len(s.w), s.h.device)):  # the stored values: in the same pieces
                part = slice(at, at + chunk_rows(s.T, len(s.w), s.h.device))
                here = slice(rows.start + at, min(rows.stop, rows.start + part.stop))
                add_product(whole, p[part], s.scaled(here, s.c))
            rows_done += len(p)
            if rows_done == s.T:
                yield u, whole
                rows_done = 0

    def dense(self, units: Tensor | None = None) -> Tensor:
        s = self.scored
        wanted = list(range(s.U)) if units is None else units.tolist()
        whole = torch.zeros(len(wanted), *s.w.shape, dtype=torch.float32, device=s.w.device)
        at = {u: i for i, u in enumerate(wanted)}
        by_N = s.c * self.scale.float()
        for first, rows, p in s.again():
            n = max(1, len(p) // s.T)
            for u in range(first, first + n):
                if u in at:
                    size = len(p) // n
                    part = slice((u - first) * size, (u - first + 1) * size)
                    here = slice(rows.start + part.start, rows.start + part.stop)
                    whole[at[u]].addmm_(p[part].float().t(), s.h[here].float() * by_N[here, None])
        return whole

    def inner(self, other: Term) -> tuple[Tensor, Tensor]:
        s = self.scored
        if not isinstance(other, (Rows, Outer)):
            return super().inner(other)
        c_UT, scale = s.c.view(s.U, s.T), self.scale.float()
        off = self.size * other.size
        if isinstance(other, Rows):
            against = torch.bmm(s.h.view(s.U, s.T, -1).float(), other.g.float().mT) * c_UT[:, :, None]
            off = off * gamma(s.h.shape[1] + other.ids.shape[1] + s.T + 16)
            for i, picked in s.picked:
                if i.shape == other.ids.shape and torch.equal(i, other.ids):
                    return (sum_of_products(picked, against) * scale).float(), off
        else:
            off = off * gamma(s.h.shape[1] + len(s.w) + other.g.shape[1] + s.T + 16)
        found = torch.zeros(s.U, dtype=torch.float64, device=s.h.device)
        for u, rows, p in s.again():
            n = max(1, len(p) // s.T)
            units, p_UTV = slice(u, u + n), p.view(n, len(p) // n, -1)
            if isinstance(other, Rows):
                at = other.ids[units, None, :].expand(-1, p_UTV.shape[1], -1)
                here = against.flatten(0, 1)[rows].view(n, p_UTV.shape[1], -1)
                found[units] += sum_of_products(p_UTV.gather(2, at), here)
            else:
                h_UTD = (s.h[rows].float() * s.c[rows, None]).view(n, p_UTV.shape[1], -1)
                products = torch.bmm(p_UTV.float(), other.g[units].float().mT)
                found[units] += sum_of_products(products, torch.bmm(h_UTD, other.a[units].mT.float()))
        return (found * scale).float(), off


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, target_N: Tensor, c_N: Tensor, anchor: Tensor, head: Head) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            ctx.scored = head.scored(hidden_ND.detach(), target_N, c_N.float())
        return cast(Tensor, ctx.scored.loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        scored, ctx.scored = ctx.scored, None
        dh, scored.grad_h = scored.grad_h * grads[0].to(scored.h.dtype), None
        scored.head.record.keep(scored.head.layer, scored.head.leaf, _HeadTerm(scored, grads[0]))
        return dh, None, None, None, None


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, target_N: Tensor, anchor: Tensor, head: Head) -> Tensor:
        ctx.head = head
        ctx.save_for_backward(hidden_ND, target_N)
        w, V = head.weight.to(hidden_ND.dtype), len(head.weight)
        step = chunk_rows(len(hidden_ND), V, hidden_ND.device)
        parts = [
            F.cross_entropy((hidden_ND[i : i + step] @ w.t()).float(), target_N[i : i + step], reduction="none")
            for i in range(0, len(hidden_ND), step)
        ]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden_ND, target_N = ctx.saved_tensors
        head = ctx.head
        with torch.autocast(hidden_ND.device.type, enabled=False):
            scored = head.scored(hidden_ND, target_N, grads[0].float())
            dh, scored.grad_h = scored.grad_h, None
            head.record.keep(head.layer, head.leaf, _HeadTerm(scored, torch.ones((), device=dh.device)))
        return dh, None, None, None


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, head: Head) -> Tensor:
        y = F.linear(x, weight)
        ctx.head, ctx.dtype = head, x.dtype
        ctx.save_for_backward(x.to(y.dtype), weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (x, weight), g = ctx.saved_tensors, grads[0]
        head = ctx.head
        with torch.autocast(g.device.type, enabled=False):
            dx = (g @ weight.to(g.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
            head.record.keep_outer(head.layer, head.leaf, x, g)
        return dx, None, None, None


class _Ragged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight: Tensor, bias: Tensor | None, example_N: Tensor, anchor: Tensor, head: Head) -> Tensor:
        z = F.linear(h_ND, weight, bias)
        ctx.head = head
        ctx.save_for_backward(h_ND.to(z.dtype), weight, example_N)
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (h, weight, example_N), g = ctx.saved_tensors, grads[0]
        head, record = ctx.head, ctx.head.record
        with torch.autocast(g.device.type, enabled=False):
            dh = (g @ weight.to(g.dtype)).to(h.dtype)
            unit_N = example_N // record.rows_per_unit
            U, N = record.units, len(unit_N)
            starts_U = torch.searchsorted(unit_N.contiguous(), torch.arange(U, device=unit_N.device))
            at_N = torch.arange(N, device=unit_N.device) - starts_U[unit_N]
            longest = int(at_N.max()) + 1 if N else 1
            a, b = h.new_zeros(U, longest, h.shape[1]), g.new_zeros(U, longest, g.shape[1])
            a[unit_N, at_N], b[unit_N, at_N] = h, g
            record.keep(head.layer, head.leaf, Outer(a, b))
            if record.wants(head.layer, "bias"):
                record.keep(head.layer, "bias", b.sum(1, dtype=torch.float32))
        return dh, None, None, None, None, None


def softmax_over_parts(z_NV: Tensor, target_N: Tensor, first: int, group: Any) -> tuple[Tensor, Tensor]:
    """(softmax minus one at the target, of this process's part of the vocabulary; -log p of the target, N1), from its logits: overwritten."""
    top_N1 = z_NV.amax(1, keepdim=True)
    dist.all_reduce(top_N1, op=dist.ReduceOp.MAX, group=group)
    at_N = target_N - first
    here_N = (at_N >= 0) & (at_N < z_NV.shape[1])
    at_N1 = at_N.clamp(0, z_NV.shape[1] - 1)[:, None]
    z_NV -= top_N1
    sums = torch.cat([z_NV.exp().sum(1, keepdim=True), z_NV.gather(1, at_N1) * here_N[:, None]], 1)
    dist.all_reduce(sums, group=group)
    log_N1 = sums[:, :1].log()
    p_NV = (z_NV - log_N1).exp_()
    return p_NV.scatter_add_(1, at_N1, -here_N[:, None].to(p_NV.dtype)), log_N1 - sums[:, 1:]
