"""Freezes parameters by name, and batch statistics of layers without trainable parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from tauon.errors import Problem, RecipeError

__all__ = ["freeze", "trainable"]


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze, in place, the parameters whose names match a pattern. `RecipeError` if a pattern matches none, or all are frozen."""
    if not patterns:
        return
    named = dict(model.named_parameters(remove_duplicate=False))  # a tied weight by either name
    for pattern in patterns:
        matches = [p for n, p in named.items() if fnmatch.fnmatchcase(n, pattern)]
        if not matches:
            message = f"{pattern!r} matches no parameter. Available: {', '.join([*named][:8])}{', ...' if len(named) > 8 else ''}."
            raise RecipeError([Problem("train.freeze", message)])
        for p in matches:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise RecipeError(
            [Problem("train.freeze", f"{list(patterns)} freezes all parameters, so nothing is left to train. Remove some patterns.")]
        )
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if getattr(module, "running_mean", None) is not None and own and not any(p.requires_grad for p in own):
            module.eval()  # else its running statistics, and so its output, would keep changing
            module.train = _stay.__get__(module)  # type: ignore[method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def trainable(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
