"""Training examples whose label is probably wrong: those that pull hardest on the model while the others pull the other way.

The rule is the mean, over checkpoints of early training, of the rank by self-influence (Pruthi et al. 2020, section 5.1: mislabelled examples have
strong influence on their own loss). Early: before the model has memorised them, for then their gradients are as small as the others'. A run
keeps such checkpoints with `train.keep_early`. Ranks, so that no checkpoint with large gradients decides alone.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tauon.errors import DataError
from tauon.explain.influence.encoder import Progress, batches
from tauon.explain.influence.gradients import ExampleGradients, loss_value
from tauon.privacy.clipped import Term
from tauon.tasks import Task
from tauon.types import Dataset

__all__ = ["Suspicious", "self_influence", "suspicious"]

MEANING = (
    "The first examples are those whose own gradient was largest in early training: their label contradicts what the others say about inputs "
    "like theirs. Wrong labels are among them, and so are rare and hard examples: look before you remove one."
)


@dataclass(frozen=True)
class Suspicious:
    """Training examples, most suspicious first."""

    order: np.ndarray
    """N: numbers of the examples, most suspicious first."""
    suspicion: np.ndarray
    """N: of each example (not sorted), from 0 to 1: mean over checkpoints of the share of examples with a smaller self-influence."""
    by_checkpoint: np.ndarray
    """(checkpoints, N): self-influence at each checkpoint, the squared norm of the gradient of the loss."""

    def top(self, share: float) -> np.ndarray:
        """Return the numbers of the most suspicious `share` of all examples, at least one."""
        return self.order[: max(1, round(share * len(self.order)))]

    def to_json(self, count: int = 20) -> dict[str, Any]:
        """JSON values: the first `count` examples."""
        first = self.order[:count]
        rows = [{"example": int(i), "suspicion": float(self.suspicion[i])} for i in first]
        return {"method": "self-influence", "checkpoints": len(self.by_checkpoint), "meaning": MEANING, "examples": rows}


def self_influence(
    model: nn.Module, task: Task, data: Dataset, *, parameters: Sequence[str] = ("*",), batch: int = 256, progress: Progress | None = None
) -> np.ndarray:
    """Return N: the squared norm of the gradient of each example's loss, float64. No gradient is formed where its norm follows from factors."""
    gradients, norms = ExampleGradients(model, parameters), []
    for rows in batches(data, batch):
        with gradients.of(loss_value(task), rows) as terms:
            each = [_squared(found).double().cpu() for found in terms.values()]
            norms.append(torch.stack(each).sum(0) if each else torch.zeros(len(rows), dtype=torch.float64))
        if progress is not None:
            progress(sum(map(len, norms)), len(data))
    return torch.cat(norms).numpy()


def _squared(terms: Sequence[Term]) -> torch.Tensor:
    if len(terms) == 1:
        return terms[0].squared.clamp(min=0)
    total = torch.stack([t.squared for t in terms]).sum(0)
    for i, term in enumerate(terms):
        for before in terms[:i]:
            total = total + 2 * before.inner(term)[0]
    return total.clamp(min=0)


def suspicious(models: Sequence[nn.Module], task: Task, data: Dataset, *, batch: int = 256, progress: Progress | None = None) -> Suspicious:
    """Rank the training examples by self-influence on `models`, the checkpoints of early training.

    Raises `DataError` without models, or if a gradient is not finite.
    """
    if not models:
        raise DataError("no checkpoints of early training. Train with train.keep_early=5, which keeps them.")
    found = []
    for m, model in enumerate(models):

        def tick(done: int, total: int, m: int = m) -> None:
            if progress is not None:
                progress(m * total + done, len(models) * total)

        found.append(self_influence(model, task, data, batch=batch, progress=tick))
    by_checkpoint = np.stack(found)
    if not np.isfinite(by_checkpoint).all():
        raise DataError(
            f"gradients of example {int(np.argwhere(~np.isfinite(by_checkpoint))[0, 1])} are not finite at one of the checkpoints."
        )
    ranks = np.stack([_ranks(row) for row in by_checkpoint]) / max(1, by_checkpoint.shape[1] - 1)
    suspicion = ranks.mean(0)
    return Suspicious(np.argsort(-suspicion, kind="stable"), suspicion, by_checkpoint)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts + 1) / 2)[inverse]
    return ranks
