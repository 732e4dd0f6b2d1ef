"""Check before training that the model does not mix examples, and that the loss is a sum over examples. Otherwise clipping has no effect.

One example of a small batch is replaced by another, given weight 0, and removed, with the same random draws: the losses of all other examples
must not change. This also finds draws that depend on the position in the batch. The check is for the current weights of the model.
Layers known to mix examples are refused earlier, by `ClippedSum`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.models.randomness import key_layers, keyed_rows
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["check_independent"]

ROWS = 6


def check_independent(model: nn.Module, task: Task, batch: Batch, *, tolerance: float = 1e-3) -> None:
    """Raise `RecipeError` if one example's loss depends on another, or the loss of a batch is not the sum over its examples.

    Uses up to six rows of `batch`, and needs two. The model's buffers and the random state do not change.
    """
    batch = batch.rows(0, min(ROWS, len(batch)))
    if len(batch) < 2:
        return
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    try:
        key_layers(model)
        with torch.no_grad(), torch.random.fork_rng([batch.inputs.device] if batch.inputs.is_cuda else []):
            _compare(model, task, batch, tolerance)
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(buffers[name])


def _compare(model: nn.Module, task: Task, batch: Batch, tolerance: float) -> None:
    n = len(batch)
    if batch.draws is None:
        batch = replace(batch, draws=torch.arange(n, device=batch.inputs.device))

    def losses(of: Batch) -> Tensor:
        with keyed_rows(of.draws, 0):
            return task.losses(model, of)[0].double()

    loss_B = losses(batch)
    if loss_B.shape != (n,):
        raise RecipeError(
            f"the task's losses have shape {tuple(loss_B.shape)} for {n} examples. Private training needs one loss per example."
        )
    if not bool(loss_B.isfinite().all()):
        batch = _finite(batch, loss_B, losses)
        n = len(batch)
        if n < 2:
            return
        loss_B = losses(batch)
    with keyed_rows(batch.draws, 0):
        total = float(task.loss(model, batch)[0])
    size = float(loss_B.abs().mean()) + 1e-12
    if abs(total - float(loss_B.sum())) > tolerance * size * n:
        raise RecipeError(
            f"the loss of a batch is {total:.6g}, but the sum of its examples' losses is {float(loss_B.sum()):.6g}. Private training needs a loss "
            "that is a sum over examples: no mean over the batch, no penalty on weights, no term that compares examples."
        )
    for i in (0, n - 1):
        others = [j for j in range(n) if j != i]
        for what, changed, at in (
            ("replaced", _with(batch, i, others[len(others) // 2]), others),
            ("given weight 0", _without(batch, i), others),
            ("taken away", _map(batch, lambda x, others=others: x[others]), list(range(n - 1))),
        ):
            moved = (losses(changed)[at] - loss_B[others]).abs()
            if not bool(moved.isfinite().all()) or float(moved.max()) > tolerance * size:
                j = others[int(moved.nan_to_num(torch.inf).argmax())]
                raise RecipeError(
                    f"the loss of example {j} changed by {float(moved.max()):.3g} when example {i} was {what}: the model or task mixes "
                    "examples, so clipping cannot bound the influence of one. Look for batch norms (use group or layer norm), losses divided by "
                    "the batch's weight, contrastive losses, and random draws by the position in the batch (use dropout, attention and "
                    "uniform_rows of tauon.models.randomness instead of torch's)."
                )


def _finite(batch: Batch, loss_B: Tensor, losses: Callable[[Batch], Tensor]) -> Batch:
    """Rows with a finite loss. Raises `RecipeError` if a loss is finite alone but not in the batch: another example changed it."""
    for j in (~loss_B.isfinite()).nonzero()[:, 0].tolist():
        if bool(losses(batch.rows(j, j + 1)).isfinite().all()):
            raise RecipeError(
                f"the loss of example {j} is {float(loss_B[j]):g} in a batch, but finite alone: the model or task mixes examples, so clipping cannot "
                "bound the influence of one. Look for batch norms (use group or layer norm)."
            )
    kept = loss_B.isfinite().nonzero()[:, 0]
    return _map(batch, lambda x: x[kept.to(x.device)])


def _with(batch: Batch, i: int, source: int) -> Batch:
    """The batch with row `i` replaced by row `source`."""

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[i] = x[source]
        return x

    return _map(batch, put)


def _without(batch: Batch, i: int) -> Batch:
    weights = batch.weights.clone()
    weights[i] = 0
    return replace(batch, weights=weights)


def _map(batch: Batch, change: Any) -> Batch:
    found = {f.name: v for f in fields(batch) if (v := getattr(batch, f.name)) is not None}
    return replace(batch, **{name: change(v) for name, v in found.items()})
