"""Clipping rules: how a layer runs during a recording, and the terms of its weights' gradients. A registry by class.

A rule runs its layer with weights that require no gradient, so that autograd does not compute theirs, and records a term for each weight when
the gradient of the output arrives. `register_rule` is the extension point: see docs/adding-a-layer-rule.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from tauon.distributed.pieces import local_part
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.terms import Term

__all__ = ["Forward", "GradientRule", "register_rule", "registered_rules", "rule_of"]

Forward = Callable[..., Any]
"""(layer, record, *args, **kwargs) -> output of the layer, which it runs and taps."""

GradientRule = Callable[..., "dict[str, Tensor | Term]"]
"""(layer, input, gradient of the output) -> each row's gradient of each parameter, (rows, *shape), by its name in the layer."""

_RULES: dict[type[nn.Module], Forward] = {}


def register_rule(*kinds: type[nn.Module], forward: bool = False) -> Callable[[Any], Any]:
    """Decorator that registers the clipping rule of the layer classes `kinds`; also for subclasses that keep the class's `forward`.

    The plain form takes (layer, input, gradient of the output), rows first in both, and returns each row's gradient by parameter name;
    the layer's first argument is its input. With `forward=True` the function runs the layer itself: (layer, record, *args, **kwargs).

    >>> from torch import nn
    >>> class Scale(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.ones(width))
    ...     def forward(self, x):
    ...         return x * self.weight
    >>> @register_rule(Scale)
    ... def scale(layer, x, g):
    ...     return {"weight": (g * x).flatten(1, -2).sum(1)}
    """

    def enrol(function: Any) -> Any:
        run = function if forward else _from_gradients(function)
        for kind in kinds:
            _RULES[kind] = run
        return function

    return enrol


def registered_rules() -> dict[type[nn.Module], Forward]:
    """Every class that has a rule."""
    return dict(_RULES)


def rule_of(layer: nn.Module) -> Forward | None:
    """The rule of the layer's class, or of the nearest base class whose `forward` it inherits."""
    for kind in type(layer).__mro__:
        if kind in _RULES:
            return _RULES[kind] if type(layer).forward is kind.forward else None
    return None


def _from_gradients(function: GradientRule) -> Forward:
    def run(layer: nn.Module, record: Record, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = bare(layer)(x, *args, **kwargs)
        shared = record.shared(layer, x)

        def done(g: Tensor, x: Tensor) -> None:
            for leaf, each in function(layer, x, g).items():
                if record.wants(layer, leaf):
                    record.keep(layer, leaf, each if isinstance(each, Term) else units_of(record, layer, leaf, each))

        return tap(record, spread(record, y) if shared else y, done, spread(record, x) if shared else x)

    return run


def units_of(record: Record, layer: nn.Module, leaf: str, each: Tensor) -> Tensor:
    """Gradients of rows (rows, *shape), summed to those of units."""
    return record.by_unit(each.float(), record.name(layer, leaf)).sum(1)


def spread(record: Record, x: Tensor) -> Tensor:
    """Expand a tensor shared by all rows to one per row."""
    return x.expand(record.rows or 1, *x.shape)


def bare(layer: nn.Module) -> Callable[..., Any]:
    """The layer's own forward; trainable weights are read without gradient (see `reading`)."""

    def call(*args: Any, **kwargs: Any) -> Any:
        layer.__dict__["_clipped_inside"] = True
        try:
            return type(layer).__mro__[1].forward(layer, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            layer.__dict__["_clipped_inside"] = False

    return call


def weight_of(layer: nn.Module, leaf: str) -> Any:
    """The layer's own parameter, also during a recording, without gradient; None if it has none."""
    p = layer._parameters.get(leaf)
    return None if p is None else local_part(p.detach())


def leaves(layer: nn.Module) -> Iterable[str]:
    """Names of the layer's own parameters."""
    return [n for n, p in layer._parameters.items() if p is not None]
