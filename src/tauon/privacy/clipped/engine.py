"""Exact per-example clipping in one backward pass: book-keeping (Bu et al. 2022, arXiv:2210.00038; Li et al. 2021, arXiv:2110.05679).

While a microbatch is recorded, autograd computes no weight gradients: each layer's input and output gradient are saved, each unit's norm is
computed from them, and then the sum of the clipped gradients is formed, once. The unclipped gradient is never formed.

    clipped = ClippedSum(model)
    for rows in microbatches:
        with clipped.recording():
            (task.loss(model, rows)[0] * scale).backward()
        norms_U = sum(clipped.squared_norms().values()).sqrt()
        clipped.add((C / norms_U).clamp(max=1))
        clipped.forget()

Adds no noise, and does no accounting. Shapes: U units (rows // rows_per_unit).
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


def place(parameter: nn.Parameter, full: Tensor) -> None:
    """Add the sum of this process's clipped gradients, in the full shape of the parameter, to its `.grad`. For a sharded parameter: the
    values of its shard, summed over the processes. The only place that depends on the layout.
    """
    if is_dtensor(parameter):
        from torch.distributed.tensor import DTensor, Partial

        mesh = parameter.device_mesh
        summed = DTensor.from_local(full.to(parameter.dtype), mesh, [Partial()] * mesh.ndim, run_check=False)
        full = summed.redistribute(mesh, parameter.placements)
    if parameter.grad is None:
        parameter.grad = full.to(parameter.dtype)
    elif parameter.grad is not full:
        parameter.grad.add_(full)


class ClippedSum:
    """Sums of clipped per-unit gradients of a model's trainable parameters."""

    def __init__(self, model: nn.Module, *, rows_per_unit: int = 1, place: Callable[[nn.Parameter, Tensor], None] = place) -> None:
        """`rows_per_unit`: number of consecutive rows that are one unit (e.g. the sequences of one user); their gradients are added before
        clipping. `place`: adds a clipped sum to a parameter's `.grad`, in its layout.

        Raises `RecipeError` naming each layer that mixes examples, and how to replace it.
        """
        if rows_per_unit < 1:
            raise RecipeError(f"got rows_per_unit={rows_per_unit}: expected at least 1.")
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
            raise RecipeError("no parameter of the model requires a gradient, so there is nothing to clip. Unfreeze some parameters.")
        self.record = Record(rows_per_unit, names)
        self._formed: dict[str, tuple[Tensor, Tensor]] = {}
        """By parameter: units whose gradient is formed, and its norms as returned by `squared_norms`."""
        self._lost: set[str] = set()
        """Parameters for which some unit has a non-finite gradient: the gradients of all other units are formed, and only these are added."""

    @contextmanager
    def recording(self, examples: int | None = None) -> Iterator[None]:
        """Context for forward and backward of one microbatch. Discards the previous recording.

        `examples`: number of examples. Default: the rows of the model's input (for preference pairs, there are two rows each).

        Raises `RecipeError` if a parameter got a gradient outside the recorded layers.
        """
        if self.record.on:
            raise RecipeError("recording() was called inside recording(). Record one microbatch at a time.")
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
                f"{', '.join(leaked[:4])} got a gradient outside the recorded layers: from a loss term on parameters (a penalty), or a module that "
                "stores them elsewhere. Only losses that are a sum over examples can be clipped. For weight decay, use the optimizer's."
            )

    def squared_norms(self) -> dict[str, Tensor]:
        """U, float32: squared norm of each unit's contribution to the sum of each trainable parameter at factor 1, by parameter name; zero
        if the parameter was not used.

        An upper bound of that norm, including rounding here and in `add`; at most 2% above it. If the rounding bounds are larger (positions
        that cancel), the gradient is formed, here and in `add`, and its own norm is returned.

        A non-finite gradient has an infinite norm, and `add` skips it: the sum must not show whether one example overflows.
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
                if unit := unit_of(p.dtype):  # its .grad is rounded to this dtype
                    found[name] = found[name] * (1 + unit) ** 2 * (1 + 1e-6)
        return found

    def estimates(self) -> dict[str, Tensor]:
        """The squared norms without rounding bounds, for tests. Do not use them for clipping."""
        with torch.no_grad():
            return {name: bounded(terms).estimate for name, terms in self.record.terms.items()}

    def _agreed(self, name: str, loose_U: Tensor) -> Tensor:
        """The union over all processes that must form gradients together."""
        for group in {id(t.group): t.group for t in self.record.terms[name] if t.group is not None}.values():
            together = loose_U.to(torch.int32)
            dist.all_reduce(together, op=dist.ReduceOp.MAX, group=group)
            loose_U = together > 0
        return loose_U

    def _leave_out(self, found: dict[str, Tensor]) -> None:
        """Non-finite gradients, by parameter. Saved factors of all units are multiplied together, and zero times infinity is NaN: so the
        gradients of the other units are formed.
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
        """(index of the first in `units`, gradients of some of them), in pieces that fit the memory limit."""
        terms = self.record.terms[name]
        step = max(1, PIECE // max(1, self.parameters[name].numel()))
        for start in range(0, len(units), step):
            yield start, formed(terms, units[start : start + step])

    def _measure(self, name: str, units: Tensor, found: dict[str, Tensor]) -> None:
        """Norms of the formed gradients, instead of bounds."""
        none = torch.zeros(0, dtype=torch.float64, device=units.device)
        norms = torch.cat([none, *(norms_of(whole) for _, whole in self._pieces(name, units))])
        self._formed[name] = units, norms
        found[name] = found[name].index_copy(0, units, (norms.square() * (1 + 1e-6)).float())

    @property
    def reads_weights(self) -> bool:
        """Whether `add` reads the weights (`Term.reads_weight`)."""
        return any(t.reads_weight for terms in self.record.terms.values() for t in terms)

    def add(self, factors_U: Tensor | dict[str, Tensor]) -> None:
        """Add sum_u factor_u g_u to the float32 `.grad` of each trainable parameter. A dict: one vector per parameter."""
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
                        returned = norms[start : start + len(whole)]
                        # formed again, it has the same norm, or is scaled to it
                        ratio = (returned / norms_of(whole)).nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0).to(factors.dtype)
                        out.view(-1).addmv_(whole.flatten(1).t(), factors[units[start : start + len(whole)]] * ratio)
                self.place(parameter, torch.zeros(parameter.shape, device=factors.device) if out is None else out)

    def forget(self) -> None:
        """Free everything saved for the microbatch."""
        self.record.clear()
        self._formed, self._lost = {}, set()

    def detach(self) -> None:
        """Restore the model as it was before."""
        self.forget()
        for module in self.model.modules():
            plain_again(module)

    def _current(self) -> dict[str, nn.Parameter]:
        """The current parameters: wrappers may have replaced them."""
        return self.parameters


def _added(term: Term, factors_U: Tensor, out: Tensor | None, scaled: dict[tuple[object, ...], Tensor] | None) -> Tensor:
    return term.add(factors_U, out, scaled) if isinstance(term, Outer) else term.add(factors_U, out)


def _mark(p: nn.Parameter) -> tuple[int, int]:
    return (0, 0) if p.grad is None else (id(p.grad), p.grad._version)
