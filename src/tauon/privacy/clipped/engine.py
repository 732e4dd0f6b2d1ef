"""Exact per-example clipping in one backward pass: book-keeping (Bu et al. 2022, arXiv:2210.00038; Li et al. 2021, arXiv:2110.05679).

While a microbatch is recorded, weights want no gradient of their own: each layer's input and its output's gradient are kept, each unit's norm
comes from them, and then the sum of the clipped gradients is formed, once. The unclipped gradient never is.

    clipped = ClippedSum(model)
    for rows in microbatches:
        with clipped.recording():
            (task.loss(model, rows)[0] * scale).backward()
        norms_U = sum(clipped.squared_norms().values()).sqrt()
        clipped.add((C / norms_U).clamp(max=1))
        clipped.forget()

Knows no noise and no accounting. Shapes: U units (rows // rows_per_unit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauon.distributed import is_dtensor
from tauon.errors import RecipeError
from tauon.privacy.clipped.reading import plain_again, recorded_class, rule_for
from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rounding import unit_of
from tauon.privacy.clipped.rules.norm import refusal
from tauon.privacy.clipped.terms import PIECE, Outer, Term, bounded, formed, norms_of

__all__ = ["ClippedSum", "place"]


def place(parameter: nn.Parameter, whole: Tensor) -> None:
    """Add the sum of this process's clipped gradients, in the parameter's whole shape, to its `.grad`: of a sharded one, what belongs to its
    shard, summed over the processes that share it. The one place where layouts come in.
    """
    if is_dtensor(parameter):
        from torch.distributed.tensor import DTensor, Partial

        mesh = parameter.device_mesh
        summed = DTensor.from_local(whole.to(parameter.dtype), mesh, [Partial()] * mesh.ndim, run_check=False)
        whole = summed.redistribute(mesh, parameter.placements)
    if parameter.grad is None:
        parameter.grad = whole.to(parameter.dtype)
    elif parameter.grad is not whole:
        parameter.grad.add_(whole)


class ClippedSum:
    """Sums of clipped per-unit gradients of a model's trainable parameters."""

    def __init__(self, model: nn.Module, *, rows_per_unit: int = 1, place: Callable[[nn.Parameter, Tensor], None] = place) -> None:
        """`rows_per_unit`: as many rows in a row are one unit (the sequences of one user): their gradients are added before they are clipped.
        `place`: adds a clipped sum to a parameter's `.grad`, as its layout wants it.

        Raises `RecipeError` naming each layer in which one example reaches another, and the way out.
        """
        if rows_per_unit < 1:
            raise RecipeError(f"rows_per_unit={rows_per_unit}, and a unit has at least one row.")
        wrong = [said for name, m in model.named_modules() if (said := refusal(name or type(model).__name__, m)) is not None]
        if wrong:
            raise RecipeError(" ".join(wrong))
        self.model, self.place = model, place
        first: dict[int, str] = {}
        names: dict[tuple[int, str], str] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for prefix, module in model.named_modules():
            for leaf, p in module._parameters.items():
                if p is None or not p.requires_grad:
                    continue
                name = first.setdefault(id(p), f"{prefix}.{leaf}" if prefix else leaf)
                names[id(module), leaf] = name
                self.parameters[name] = p
        if not names:
            raise RecipeError("no parameter of the model trains, so that there is nothing to clip.")
        self.record = Record(rows_per_unit, names)
        self._formed: dict[str, tuple[Tensor, Tensor]] = {}
        """By parameter: units whose gradient is formed, and the norms that were told of it."""
        self._lost: set[str] = set()
        """Parameters of which some unit's gradient is not finite: all others are formed, and nothing else is added."""

    @contextmanager
    def recording(self, examples: int | None = None) -> Iterator[None]:
        """Inside, forward and backward of one microbatch happen. What was recorded before is forgotten.

        `examples`: how many there are. Left out: as many as the model is given rows (of pairs of answers, it is given two rows each).

        Raises `RecipeError` where a parameter got a gradient that cannot be told apart by example.
        """
        if self.record.on:
            raise RecipeError("recording() inside recording(): record one microbatch at a time.")
        self.forget()
        self.record.on, self.record.examples = True, examples
        before = {name: _mark(p) for name, p in self._current().items()}
        changed: list[nn.Module] = []
        try:
            for module in self.model.modules():
                leaves = tuple(leaf for leaf in module._parameters if self.record.wants(module, leaf))
                run = rule_for(module, leaves)
                root = module is self.model
                if run is None and not leaves and not root:
                    continue
                module.__dict__["_clipped"] = self.record
                module.__class__ = recorded_class(cast(Any, type(module)), leaves, run, root)
                changed.append(module)
            yield
        finally:
            for module in changed:
                plain_again(module)
            self.record.on = False
        leaked = [name for name, p in self._current().items() if _mark(p) != before[name]]
        if leaked:
            self.forget()
            raise RecipeError(
                f"{', '.join(leaked[:4])} got a gradient outside the layers that are recorded: a loss that reads parameters (a penalty, say), or "
                "a module that keeps them elsewhere. Only losses that are a sum over examples can be clipped; take weight decay as the optimizer's."
            )

    def squared_norms(self) -> dict[str, Tensor]:
        """U, float32: squared norm of what each unit adds to each trainable parameter's sum for a factor of 1, by the parameter's name; zeros
        where it was not used.

        Never less than that norm, whatever was rounded on the way here and is rounded in `add`; more by what the bounds of rounding say, at
        most 2% of the norm. Where they say more (positions that cancel) the gradient is formed, now and in `add`, and its own norm is told.

        A gradient that is not finite has an infinite norm, and `add` leaves it out: whether one example overflows must not show in the sum.
        """
        U, self._formed, self._lost = self.record.units, {}, set()
        device = next(iter(self.parameters.values())).device
        with torch.no_grad():
            bounds = {name: bounded(terms) for name, terms in self.record.terms.items()}
            found = {name: bounds[name].squared if name in bounds else torch.zeros(U, device=device) for name in self.parameters}
            loose = {name: self._agreed(name, b.loose) for name, b in bounds.items() if b.loose is not None}
            if loose and bool((any_of := torch.stack(list(loose.values())).any(1)).any()):
                for name in [n for n, there in zip(loose, any_of.tolist(), strict=True) if there]:
                    self._measure(name, loose[name].nonzero()[:, 0], found)
            self._leave_out(found)
            for name, p in self.parameters.items():
                if unit := unit_of(p.dtype):  # its .grad is rounded to it
                    found[name] = found[name] * (1 + unit) ** 2 * (1 + 1e-6)
        return found

    def estimates(self) -> dict[str, Tensor]:
        """The same as they were computed, without bounds of rounding: what tests compare with other ways. Not for clipping by."""
        with torch.no_grad():
            return {name: bounded(terms).estimate for name, terms in self.record.terms.items()}

    def _agreed(self, name: str, loose_U: Tensor) -> Tensor:
        """The same for all processes that must form gradients together."""
        for group in {id(t.group): t.group for t in self.record.terms[name] if t.group is not None}.values():
            together = loose_U.to(torch.int32)
            dist.all_reduce(together, op=dist.ReduceOp.MAX, group=group)
            loose_U = together > 0
        return loose_U

    def _leave_out(self, found: dict[str, Tensor]) -> None:
        """Gradients that are not finite, parameter by parameter. What is kept of the others is multiplied together with theirs, where zero times
        infinity is no number: so the others are formed.
        """
        wrong = {name: ~found[name].isfinite() for name in self.record.terms}
        wrong = {name: self._agreed(name, w) for name, w in wrong.items()}
        if not wrong or not bool(torch.stack(list(wrong.values())).any()):
            return
        for name, wrong_U in wrong.items():
            if bool(wrong_U.any()):
                self._lost.add(name)
                self._formed.pop(name, None)
                self._measure(name, (~wrong_U).nonzero()[:, 0], found)
                found[name] = found[name].masked_fill(wrong_U, torch.inf)

    def _pieces(self, name: str, units: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(place of the first in `units`, gradients of some of them), as many at a time as memory is lent."""
        terms = self.record.terms[name]
        step = max(1, PIECE // max(1, self.parameters[name].numel()))
        for start in range(0, len(units), step):
            yield start, formed(terms, units[start : start + step])

    def _measure(self, name: str, units: Tensor, found: dict[str, Tensor]) -> None:
        """Norms of gradients as they are formed, in place of bounds."""
        none = torch.zeros(0, dtype=torch.float64, device=units.device)
        norms = torch.cat([none, *(norms_of(whole) for _, whole in self._pieces(name, units))])
        self._formed[name] = units, norms
        found[name] = found[name].index_copy(0, units, (norms.square() * (1 + 1e-6)).float())

    @property
    def reads_weights(self) -> bool:
        """Whether `add` needs the weights themselves (`Term.reads_weight`)."""
        return any(t.reads_weight for terms in self.record.terms.values() for t in terms)

    def add(self, factors_U: Tensor | dict[str, Tensor]) -> None:
        """Add sum_u factor_u g_u to the float32 `.grad` of each trainable parameter. A dict: a vector for each parameter."""
        uses: dict[tuple[object, ...], int] = {}
        for terms in self.record.terms.values():
            for t in terms:
                if isinstance(t, Outer):
                    uses[t.key] = uses.get(t.key, 0) + 1
        scaled: dict[tuple[object, ...], Tensor] = {}
        with torch.no_grad():
            for name, parameter in self._current().items():
                factors = factors_U[name] if isinstance(factors_U, dict) else factors_U
                terms = self.record.terms.get(name, [])
                units, norms = self._formed.get(name, (None, None))
                together = factors if units is None else factors.index_fill(0, units, 0.0)
                in_place = not is_dtensor(parameter) and parameter.dtype == torch.float32
                out = parameter.grad if in_place else None
                for t in terms if name not in self._lost else ():
                    shared = not isinstance(factors_U, dict) and units is None and isinstance(t, Outer) and uses[t.key] > 1
                    out = _added(t, together, out, scaled if shared else None)
                if name in self._lost and out is None:
                    out = torch.zeros(parameter.shape, device=factors.device)
                if units is not None and norms is not None and out is not None:
                    for start, whole in self._pieces(name, units):
                        told = norms[start : start + len(whole)]
                        # formed once more it has the same norm, or it is made to have
                        ratio = (told / norms_of(whole)).nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0).to(factors.dtype)
                        out.view(-1).addmv_(whole.flatten(1).t(), factors[units[start : start + len(whole)]] * ratio)
                self.place(parameter, torch.zeros(parameter.shape, device=factors.device) if out is None else out)

    def forget(self) -> None:
        """Free everything that was kept of the microbatch."""
        self.record.clear()
        self._formed, self._lost = {}, set()

    def detach(self) -> None:
        """Leave the model as it was found."""
        self.forget()
        for module in self.model.modules():
            plain_again(module)

    def _current(self) -> dict[str, nn.Parameter]:
        """The parameters as they are now: wrappers may have put others in their place."""
        return self.parameters


def _added(term: Term, factors_U: Tensor, out: Tensor | None, scaled: dict[tuple[object, ...], Tensor] | None) -> Tensor:
    return term.add(factors_U, out, scaled) if isinstance(term, Outer) else term.add(factors_U, out)


def _mark(p: nn.Parameter) -> tuple[int, int]:
    return (0, 0) if p.grad is None else (id(p.grad), p.grad._version)
