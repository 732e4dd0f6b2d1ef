"""The record of one microbatch: its number of rows, and the terms of each weight's gradient.

Gradients of layer outputs are recorded in the backward pass (`tap`); terms are made at once, while both factors are in cache. Only autograd
saves anything in the forward pass, so activation checkpointing works as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.privacy.clipped.terms import Dense, Grams, Term, outer

__all__ = ["Record", "tap"]


Shape = tuple[int, ...]


class Record:
    """State of one `recording`."""

    def __init__(self, rows_per_unit: int, names: dict[tuple[int, str], str]) -> None:
        self.rows_per_unit = rows_per_unit
        self.names = names
        """(id of a module, leaf) -> name of the parameter in the model."""
        self.on = False
        self.rows: int | None = None
        """Rows of the model's input."""
        self.examples: int | None = None
        """Number of examples, if different (preference pairs)."""
        self.terms: dict[str, list[Term]] = {}
        self.grams = Grams()
        self.ids: dict[str, list[Tensor]] = {}
        """For embedding tables: the ids, UT; used by a head with tied weights."""
        self.alone: dict[int, list[Shape]] = {}
        """id of a module -> shapes of its inputs, per call, for a batch of one row."""
        self.known: dict[object, dict[int, list[Shape]]] = {}
        """The same for each batch shape, without the rows."""
        self.calls: dict[int, int] = {}
        self.calibrating = False
        self.anchor: Tensor | None = None
        self.added_over: dict[int, Any] = {}
        """By id of a layer: process group over which each unit's gradient is summed."""

    def clear(self) -> None:
        """Discard the microbatch."""
        self.rows = self.examples = None
        self.terms = {}
        self.ids = {}
        self.calls = {}
        self.grams.forget()

    @property
    def units(self) -> int:
        """U. Raises `RecipeError` if the rows are not a multiple of `rows_per_unit`."""
        if self.rows is None:
            raise RecipeError("no forward pass of the model has been recorded: run it inside `recording()`.")
        examples = self.rows if self.examples is None else self.examples
        if examples % self.rows_per_unit:
            raise RecipeError(
                f"{examples} rows are not a multiple of {self.rows_per_unit} rows per unit. Set train.microbatch to a multiple."
            )
        return examples // self.rows_per_unit

    def here(self, device: torch.device) -> Tensor:
        """A scalar that requires a gradient, so that there is a backward pass for layers whose input requires none."""
        if self.anchor is None or self.anchor.device != device:
            self.anchor = torch.zeros((), device=device, requires_grad=True)
        return self.anchor

    def by_unit(self, x: Tensor, what: str) -> Tensor:
        """(rows x n, ...) as (U, rows of a unit x n, ...)."""
        units = self.units
        if x.shape[0] % units:
            raise RecipeError(
                f"{what} was called with {x.shape[0]} rows, which is not a multiple of the batch's {self.rows}: its gradient per example is not "
                "known. Keep the batch in the first dimension."
            )
        return x.reshape(units, x.shape[0] // units, *x.shape[1:])

    def shared(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether this call's input is shared by all rows of the batch (e.g. positions): it has the same shape for a batch of one row."""
        if self.calibrating:
            self.alone.setdefault(id(layer), []).append(tuple(x.shape))
            return False
        call = self.calls.get(id(layer), 0)
        self.calls[id(layer)] = call + 1
        seen, rows = self.alone.get(id(layer)), self.rows or 1
        if not seen or rows == 1:
            return False
        alone = seen[call % len(seen)]  # modulo: a checkpointed block is run again
        if tuple(x.shape) == alone:
            return True
        if x.shape[0] != alone[0] * rows:
            raise RecipeError(
                f"{type(layer).__name__} was called with shape {tuple(x.shape)} for {rows} rows, and {alone} for one row: its gradient per example is "
                "not known. Keep the batch in the first dimension."
            )
        return False

    def name(self, layer: nn.Module, leaf: str) -> str:
        """The parameter's name in the model."""
        return self.names[id(layer), leaf]

    def wants(self, layer: nn.Module, leaf: str) -> bool:
        """Whether the layer has this parameter and it is trainable."""
        return (id(layer), leaf) in self.names

    def keep(self, layer: nn.Module, leaf: str, term: Term | Tensor) -> None:
        """Record a use of a parameter: a term, or each unit's gradient (U, *shape)."""
        if id(layer) in self.added_over:
            term = term.dense() if isinstance(term, Term) else term.float()
            dist.all_reduce(term, group=self.added_over[id(layer)])
        found = term if isinstance(term, Term) else Dense.of(term)
        uses = self.terms.setdefault(self.name(layer, leaf), [])
        for i, before in enumerate(uses):
            if isinstance(before, Dense) and isinstance(found, Dense) and (both := before.plus(found)) is not None:
                uses[i] = both
                return
        uses.append(found)

    def keep_outer(self, layer: nn.Module, leaf: str, a: Tensor, g: Tensor, *, shape: tuple[int, ...] | None = None) -> None:
        """Record a use of a matrix, from the input (rows, ..., I) and the gradient of the output (rows, ..., O)."""
        what = self.name(layer, leaf)
        a_UTI, g_UTO = (self.by_unit(x, what).flatten(1, -2) for x in (a, g))
        self.keep(layer, leaf, outer(a_UTI, g_UTO, self.grams, shape))

    def keep_sum(self, layer: nn.Module, leaf: str, g: Tensor) -> None:
        """Record a use of a vector that is added to the last dimension, from the gradient of the output (rows, ..., O)."""
        g_UTO = self.by_unit(g, self.name(layer, leaf)).flatten(1, -2)
        self.keep(layer, leaf, g_UTO[:, 0].float() if g_UTO.shape[1] == 1 else g_UTO.sum(1, dtype=torch.float32))


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, done: Callable[..., None], *kept: Tensor) -> Tensor:
        ctx.done = done
        ctx.save_for_backward(*kept)
        if y._is_view() or (y.is_leaf and y.requires_grad):
            return y.view_as(y)
        ctx.mark_dirty(y)  # returned unchanged; a view could not be modified in place later
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept = ctx.saved_tensors  # read once: activation checkpointing unpacks them once
        with torch.autocast(grads[0].device.type, enabled=False):
            ctx.done(grads[0], *kept)
        return (grads[0], None, None, *(None for _ in kept))


def tap(record: Record, y: Tensor, done: Callable[..., None], *kept: Tensor) -> Tensor:
    """Return `y`. In the backward pass, call `done(gradient of y, *kept)` once, without autocast; `kept` are saved by autograd."""
    if not torch.is_grad_enabled():
        return y
    return cast(Tensor, _Tap.apply(y, record.here(y.device), done, *(k.detach() for k in kept)))
