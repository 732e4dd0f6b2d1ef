"""A layer's activations, and the gradient of the explained output with respect to them, as rows of numbers.

Shapes: M rows, C channels, P positions, A numbers of a layer's activations (C where they are pooled over positions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain.base import Cases, Work, untouched
from tauon.explain.methods.layers import Arrangement, arrangement_of, called_modules, first_tensor, layer_gradients, layer_named

__all__ = ["layer_activations", "output_gradients"]

Floats = NDArray[np.float64]


def layer_activations(cases: Cases, layer: str, work: Work, *, pooled: bool = True) -> Floats:
    """Return a layer's activations of the cases' inputs, NA.

    Args:
        cases: the examples.
        layer: name of a module that the model calls once.
        work: how to compute.
        pooled: the mean over the layer's positions, where it has positions that lie over the input; else all its numbers.

    Raises:
        DataError: no example, a layer that does not exist or is not called once, or one that does not return a row for each example.
    """
    with untouched(cases.model):
        at = _Layer.of(cases, layer, pooled)
        found = []
        for part in work.chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=cases.inputs.device)
            found.append(at.means(rows, at.activations(cases.inputs[part], rows)))
    return torch.cat(found).double().cpu().numpy()


def output_gradients(cases: Cases, layer: str, work: Work, *, pooled: bool = True) -> Floats:
    """Return the gradient of each example's explained output with respect to a layer's activations, NA. Arguments as of `layer_activations`.

    With `pooled` it is the derivative of the output when a number is added at every position.
    """
    with untouched(cases.model):
        at = _Layer.of(cases, layer, pooled)
        found = []
        for part in work.chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=cases.inputs.device)
            found.append(at.sums(rows, layer_gradients(cases, cases.inputs[part], rows, at.module)[2]))
    return torch.cat(found).double().cpu().numpy()


@dataclass(frozen=True)
class _Layer:
    """A module, and how its positions lie over the features of the cases."""

    cases: Cases
    name: str
    module: nn.Module
    lies: Arrangement | None
    """None: all numbers are used."""

    @classmethod
    def of(cls, cases: Cases, name: str, pooled: bool) -> _Layer:
        if not len(cases):
            raise DataError("no example: concepts need activations of at least one")
        calls = called_modules(cases)
        module = layer_named(cases, name, calls).module
        lies = None
        if pooled:
            try:
                lies = arrangement_of(cases, calls, name)
            except DataError:  # no positions, or no certain ones
                lies = None
        return cls(cases, name, module, lies)

    def activations(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the module's output, M and its shape."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            tensor = first_tensor(out)
            assert tensor is not None  # `layer_named` refuses others
            kept.append(tensor.clone())  # what follows may work in place

        handle = self.module.register_forward_hook(keep)
        try:
            with torch.no_grad():
                self.cases.answers(x, rows)
        finally:
            handle.remove()
        return kept[0]

    def means(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return the mean over positions, padding excepted; or all numbers, MA."""
        there = self._there(rows, values)
        if self.lies is None:
            return values.float().flatten(1)
        flat = self.lies.channels_first(values).float().flatten(2)
        return flat.mean(2) if there is None else (flat * there).sum(2) / there.sum(2).clamp(min=1)

    def sums(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return the sum over positions, padding excepted; or all numbers, MA."""
        there = self._there(rows, values)
        if self.lies is None:
            return values.float().flatten(1)
        flat = self.lies.channels_first(values).float().flatten(2)
        return flat.sum(2) if there is None else (flat * there).sum(2)

    def _there(self, rows: Tensor, values: Tensor) -> Tensor | None:
        """Return which positions exist, M1P."""
        if len(values) != len(rows):
            raise DataError(f"layer {self.name!r} returns {len(values)} rows for {len(rows)} examples: name a layer of the complete batch")
        if self.cases.valid is None or self.lies is None or self.lies.grid != self.cases.grid:
            return None
        return self.cases.valid[rows].unsqueeze(1).to(values.device, torch.float32)
