"""Learning rates that differ from parameter to parameter: by layer (Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020,
arXiv:2003.10555, whose layer-wise decay this is), and by name. Parameter groups are split; their other settings do not change.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tauon.errors import Problem, RecipeError

__all__ = ["scale_rates"]


def scale_rates(
    optimizer: Optimizer, model: nn.Module, layer_of: Callable[[str], tuple[int, int]], layer_decay: float | None, lr_scale: Mapping[str, float]
) -> None:  # fmt: skip
    """Multiply each parameter's learning rate, in place: by layer_decay^(last layer - its own), and by the factor of the last pattern of
    `lr_scale` that matches its name.

    Raises `RecipeError` if the model has no sequence of blocks. A pattern may match nothing here: `model` may be one stage of a pipeline.
    """
    if layer_decay is None and not lr_scale:
        return
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    called: dict[int, list[str]] = {}
    for n, p in model.named_parameters(remove_duplicate=False):  # a tied weight has two names
        called.setdefault(id(p), []).append(n)
    factors: dict[int, float] = {}
    for name, p in named:
        factor = 1.0
        if layer_decay is not None:
            layer, layers = layer_of(name)
            if not layers:
                raise RecipeError(
                    [Problem("optim.layer_decay", "is set, but this model has no sequence of blocks. Use optim.lr_scale instead.")]
                )
            factor = layer_decay ** (layers - 1 - layer)
        matching = [f for pattern, f in lr_scale.items() if any(fnmatch.fnmatchcase(n, pattern) for n in called[id(p)])]
        factors[id(p)] = factor * (matching[-1] if matching else 1.0)
    for part in getattr(optimizer, "parts", [optimizer]):
        split: list[dict[str, Any]] = []
        for group in part.param_groups:
            by_factor: dict[float, list[Any]] = {}
            for p in group["params"]:
                by_factor.setdefault(factors[id(p)], []).append(p)
            split += [{**group, "params": ps, "lr": group["lr"] * f, "peak_lr": group["peak_lr"] * f} for f, ps in by_factor.items()]
        part.param_groups[:] = split
    if hasattr(optimizer, "parts"):
        optimizer.param_groups = [g for part in optimizer.parts for g in part.param_groups]
