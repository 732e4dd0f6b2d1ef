"""An optimizer's state as tensors by parameter name, for checkpoints: readable by anyone, in any order of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.errors import CheckpointError

__all__ = ["load_optimizer", "optimizer_tensors"]


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers), both keyed `<parameter>/<entry>`: `embed.weight/exp_avg` and the like. No copies."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    state = optimizer.state
    for name, p in model.named_parameters():
        for entry, value in state.get(p, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{name}/{entry}"] = value
    return tensors, numbers


def load_optimizer(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what `optimizer_tensors` gave, bit for bit, dtypes included. Raises `CheckpointError` on state of unknown parameters."""
    entries: dict[str, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    for part in getattr(optimizer, "parts", [optimizer]):
        mine = {id(p) for g in part.param_groups for p in g["params"]}
        for name, p in model.named_parameters():
            if id(p) in mine and name in entries:
                # a step counter stays on the CPU unless the optimizer is capturable; moments live with their parameter
                part.state[p] = {
                    k: (v.to(p.device) if isinstance(v, Tensor) and v.shape == p.shape else v.clone() if isinstance(v, Tensor) else v)
                    for k, v in entries.pop(name).items()
                }
    if entries:
        raise CheckpointError(
            f"optimizer state of parameters that the model has not: {', '.join(sorted(entries)[:5])}. Use the recipe it was trained with."
        )
