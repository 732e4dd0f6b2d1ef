"""TRAK: the data attribution of a kernel machine with the model's gradients as features (Park et al. 2023, arXiv:2303.14186).

    score(q, i) = mean over models of phi(q)^T (Phi^T Phi)^-1 phi(i)  *  mean over models of (1 - p_i)

phi is the projected gradient of the model's output function, the margin log(p / (1 - p)) of the correct class; p_i the probability of the correct
class of the training example. All parameters are projected together into `columns` numbers (`projection`, with a sum over parameters).

Shapes: B examples, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauon.explain.influence.encoder import Block, Progress, batches
from tauon.explain.influence.gradients import ExampleGradients, loss_value, margin_value, on_device_of, untouched
from tauon.explain.influence.projection import Projection
from tauon.explain.influence.tracin import left_out
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = ["Trak", "TrakEncoder", "soft_threshold"]

MEANING = (
    "Positive: training on this example raised the probability of the query's correct class (it helped); negative: it lowered it. The size is in "
    "log-odds, to first order; trust the order more than the size."
)


@dataclass(frozen=True)
class Trak:
    """Settings of TRAK, for classifiers; give several models trained on the same data."""

    columns: int = 1024
    """Numbers of the projected gradient."""
    dense: bool = False
    """Project by dense matrices of signs, as the paper does, rather than from both sides: a better score, at parameters x columns bytes for each
    model and many more multiplications."""
    ridge: float = 1e-6
    """Share of the mean of the diagonal that is added to Phi^T Phi, so that it can be inverted."""
    threshold: int | None = None
    """Keep this many examples for each query by soft-thresholding (paper, section 3.2); None: all."""
    parameters: tuple[str, ...] = ("*",)
    """Patterns of parameter names."""
    batch: int = 256
    """Examples in one pass."""
    seed: int = 0
    """Of the projections; each model has its own."""
    kind = "trak"

    def fit(self, models: Sequence[nn.Module], task: Task, data: Dataset, progress: Progress | None = None) -> TrakEncoder:
        """One pass over the data for each model, for Phi^T Phi."""
        encoder = TrakEncoder(self, models, task, {})
        done = 0
        for m in range(len(models)):
            gram = torch.zeros(self.columns, self.columns, dtype=torch.float64)
            for batch in batches(data, self.batch):
                phi_BK = encoder.features(m, batch).double()
                gram += phi_BK.t() @ phi_BK
                done += len(batch)
                if progress is not None:
                    progress(done, len(models) * len(data))
            values, vectors = torch.linalg.eigh(gram)
            values = values.clamp(min=0) + self.ridge * gram.diagonal().mean().clamp(min=1e-30)
            # rows W phi with W = (Phi^T Phi)^-1/2 have the inner products phi^T (Phi^T Phi)^-1 phi'
            encoder.whiten[str(m)] = ((vectors * values.rsqrt()) @ vectors.t()).float()
        return encoder

    def restore(self, models: Sequence[nn.Module], task: Task, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrakEncoder:
        """See `Method`."""
        return TrakEncoder(self, models, task, dict(tensors))


class TrakEncoder:
    """Rows: for each model, the whitened features."""

    weighted = True

    def __init__(self, config: Trak, models: Sequence[nn.Module], task: Task, whiten: dict[str, Tensor]) -> None:
        self.models, self.task, self.whiten = models, task, whiten
        self.gradients = [ExampleGradients(m, config.parameters) for m in models]
        self.columns = config.columns * len(models)
        self.blocks = [Block(0, self.columns)]
        shapes = {name: tuple(p.shape) for name, p in models[0].named_parameters()}
        self.projections = [
            {
                n: Projection(n, shapes[n], columns=config.columns, seed=config.seed + 1 + m, exact=False, dense=config.dense)
                for n in self.gradients[0].names
            }
            for m in range(len(models))
        ]
        self.facts: dict[str, Any] = {
            "method": "trak", "meaning": MEANING, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
            "left_out": left_out(models[0], self.gradients[0].names),
        }  # fmt: skip

    def features(self, m: int, batch: Batch) -> Tensor:
        """Return BK, the projected gradients of the margin by model `m`."""
        with self.gradients[m].of(margin_value, batch) as terms:
            parts = [self.projections[m][name](found) for name, found in terms.items()]
            return torch.stack(parts).sum(0).detach().cpu()

    def encode(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        rows = [self.features(m, batch) @ self.whiten[str(m)].t() for m in range(len(self.models))]
        return torch.cat(rows, 1) / math.sqrt(len(self.models))

    def importance(self, batch: Batch) -> Tensor:
        """See `Encoder`."""
        total = torch.zeros(len(batch))
        for model in self.models:
            with untouched(model), torch.no_grad():
                total += -torch.expm1(-loss_value(self.task)(model, on_device_of(model, batch))).cpu()
        return total / len(self.models)

    def tensors(self) -> dict[str, Tensor]:
        """See `Encoder`."""
        return dict(self.whiten)


def soft_threshold(scores_QN: Tensor, count: int) -> Tensor:
    """Move every score towards 0 by the (count + 1)-th largest absolute one of its row: at most `count` stay.

    >>> soft_threshold(torch.tensor([[3.0, -2.0, 1.0]]), 2)
    tensor([[ 2., -1.,  0.]])
    """
    if count >= scores_QN.shape[1]:
        return scores_QN
    limit_Q1 = scores_QN.abs().topk(count + 1, dim=1).values[:, -1:]
    return scores_QN.sign() * (scores_QN.abs() - limit_Q1).clamp(min=0)
