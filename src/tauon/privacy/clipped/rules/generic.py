"""Generic rule for modules without a rule of their own: run with separate weights for each unit, under `torch.func.vmap`.

Exact if the module treats rows alike and vmap supports its operations; needs memory for units x weights. Random draws (dropout) differ between
units, as in a batch; keyed draws (`models.randomness`) do not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.models.randomness import part_of_rows, seeds_of_rows
from tauon.privacy.clipped.record import Record, tap

__all__ = ["vmap_rule"]


def vmap_rule(layer: nn.Module, record: Record, *args: Any, **kwargs: Any) -> Any:
    """Run `layer` and its children with separate weights for each unit."""
    from torch.utils import _pytree as pytree

    names = {n: (m, leaf) for n, m, leaf in _own(layer, record)}
    plain = {n: p.detach() for n, p in layer.named_parameters() if n not in names}
    values, spec = pytree.tree_flatten((args, kwargs))
    first = next((v for v in values if isinstance(v, Tensor) and v.ndim), None)
    if first is not None and record.shared(layer, first):
        raise RecipeError(
            f"{type(layer).__name__} was called with an input that all examples share, and has no rule for that. Expand its input over the batch first."
        )
    if not torch.is_grad_enabled():
        return _class_of(layer).forward(layer, *args, **kwargs)
    units = record.units
    each: dict[str, Tensor] = {}
    for name, (module, leaf) in names.items():
        p = module._parameters[leaf]
        assert p is not None

        def done(g: Tensor, module: nn.Module = module, leaf: str = leaf) -> None:
            record.keep(module, leaf, g.float())

        each[name] = tap(record, p.detach().expand(units, *p.shape), done)
    buffers = dict(layer.named_buffers())
    cut = [_cut(record, v, type(layer).__name__) if isinstance(v, Tensor) and v.ndim else v for v in values]
    dims = [0 if isinstance(v, Tensor) and v.ndim else None for v in values]

    seeds = seeds_of_rows()
    seeds_UR = None if seeds is None else seeds.view(units, -1)

    def one(weights: dict[str, Tensor], seeds_R: Tensor | None, *flat: Any) -> Any:
        a, k = pytree.tree_unflatten(list(flat), spec)
        with _plainly(layer), part_of_rows(seeds_R):
            return torch.func.functional_call(layer, {**plain, **buffers, **weights}, a, k)

    try:
        in_dims, how = (0, None if seeds is None else 0, *dims), "different" if seeds is None else "same"  # keyed: one call number for all
        out = torch.func.vmap(one, in_dims=in_dims, randomness=how)(each, seeds_UR, *cut)
    except (RuntimeError, ValueError, NotImplementedError) as err:
        raise RecipeError(
            f"{type(layer).__name__} cannot be run with separate weights per example ({str(err).splitlines()[0]}). "
            "Write a rule for it (docs/adding-a-layer-rule.md), or freeze it."
        ) from err
    return pytree.tree_map(lambda v: v.flatten(0, 1) if isinstance(v, Tensor) and v.ndim > 1 else v, out)


def _cut(record: Record, x: Tensor, what: str) -> Tensor:
    return record.by_unit(x, what)


def _own(layer: nn.Module, record: Record) -> list[tuple[str, nn.Module, str]]:
    found = []
    for prefix, module in layer.named_modules():
        for leaf, p in module._parameters.items():
            if p is not None and record.wants(module, leaf):
                found.append((f"{prefix}.{leaf}" if prefix else leaf, module, leaf))
    return found


def _class_of(layer: nn.Module) -> Any:
    return type(layer).__mro__[1] if "_clipped" in layer.__dict__ else type(layer)


class _plainly:
    """Context in which `layer` and its children have their original classes."""

    def __init__(self, layer: nn.Module) -> None:
        self.modules = [m for m in layer.modules() if "_clipped" in m.__dict__]

    def __enter__(self) -> None:
        self.classes = [type(m) for m in self.modules]
        for m in self.modules:
            m.__class__ = type(m).__mro__[1]

    def __exit__(self, *error: object) -> None:
        for m, kind in zip(self.modules, self.classes, strict=True):
            m.__class__ = kind
