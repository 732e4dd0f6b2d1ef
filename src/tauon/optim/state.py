"""Optimizer state as tensors by parameter name, for checkpoints, independent of the order of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.distributed import fill, is_dtensor
from tauon.errors import CheckpointError

__all__ = ["load_optimizer", "optimizer_tensors"]


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers), both keyed `<parameter>/<entry>`: `embed.weight/exp_avg` and the like. No copies."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    states = {p: _packed(part, held) for part in getattr(optimizer, "parts", [optimizer]) for p, held in part.state.items()}
    for name, p in model.named_parameters():
        for entry, value in states.get(p, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{name}/{entry}"] = value
    return tensors, numbers


def _packed(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Optimizer whose state is not only tensors and numbers: converts it with `packed` and `unpacked`."""
    plain: dict[str, Any] = optimizer.packed(state) if hasattr(optimizer, "packed") else state
    return plain


def load_optimizer(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Any], numbers: Mapping[str, Any], *, partial: bool = False
) -> None:
    """Restore what `optimizer_tensors` returned, bit for bit, with dtypes; for a sharded parameter, this process's part.

    `tensors`: tensors, or lazy readers from a file (`Checkpoint.lazy`). Raises `CheckpointError` for state of unknown parameters,
    unless the model is `partial`: one pipeline stage.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    for part in getattr(optimizer, "parts", [optimizer]):
        # whether the step counter is on the parameter's device (torch: fused and capturable optimizers), or on the CPU
        mine = {id(p): bool(g.get("fused") or g.get("capturable")) for g in part.param_groups for p in g["params"]}
        for name, p in model.named_parameters():
            if id(p) in mine and name in entries:
                held = {k: _placed(v, p, counter_with_p=mine[id(p)]) for k, v in entries.pop(name).items()}
                part.state[p] = part.unpacked(p, held) if hasattr(part, "unpacked") else held
        if hasattr(part, "take_up"):  # the model was loaded with averaged weights, not the trained ones
            part.take_up()
    if entries and not partial:
        raise CheckpointError(
            f"optimizer state of parameters that the model does not have: {', '.join(sorted(entries)[:5])}. Use the recipe it was trained with."
        )


def _placed(value: Any, p: Tensor, *, counter_with_p: bool) -> Any:
    """Entry of parameter `p` on its device and with its sharding; a step counter also there, or on the CPU."""
    if not hasattr(value, "shape"):
        return value
    if tuple(value.shape) != tuple(p.shape):
        own: Tensor = value.clone() if isinstance(value, Tensor) else value.read()
        return own.to(p.device) if counter_with_p or own.ndim else own
    if not is_dtensor(p):
        return (value if isinstance(value, Tensor) else value.read()).to(p.device)
    one = value[tuple(slice(0, 1) for _ in p.shape)]
    placed = torch.empty_like(p.detach(), dtype=one.dtype)
    fill(placed, value)
    return placed
