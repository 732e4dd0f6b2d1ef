"""Pipeline parallelism of a job: makes gradients and computes validation losses through a pipeline schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tauon.distributed import PipelineStages, pieces_of_batch, shard_targets
from tauon.train.step import REDUCED, TrainJob
from tauon.types import Batch

__all__ = ["through_pipeline"]


class _WithHidden:
    """Replaces the model in `task.loss`: returns hidden states that are already computed; everything else is the last stage's."""

    def __init__(self, model: nn.Module, hidden: Tensor) -> None:
        self._model, self._hidden = model, hidden

    def __call__(self, *_: Any) -> Tensor:
        return self._hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def through_pipeline(job: TrainJob, stages: PipelineStages) -> TrainJob:
    """Return the job with gradients made by the pipeline."""

    def run(batch: Batch, task_loss: Any, *, backward: bool) -> Tensor:
        extra = {} if batch.segments is None else {"segments_BT": batch.segments}
        pieces = pieces_of_batch(stages.config, len(batch))
        last = stages.parts[-1]

        def loss(hidden: Tensor, rows: Tensor) -> Tensor:
            part = batch.rows(int(rows[0]), int(rows[-1]) + 1)
            with job.policy.precision.context():
                value: Tensor = task_loss(_WithHidden(last, hidden), part)
            return value

        with job.policy.precision.context():
            return stages.run(batch.inputs, extra, len(batch), pieces, loss, backward=backward)

    def make(job: TrainJob, batch: Batch) -> Tensor:
        mesh = job.mesh
        batch = shard_targets(batch, mesh.at["context"], mesh.layout.context)
        weight = mesh.sum(job.task.weight(batch), *REDUCED).clamp(min=1e-9)
        scale = mesh.reduce_size
        total = run(batch, lambda model, part: job.task.loss(model, part)[0] / weight * scale, backward=True)
        return total / scale

    def score(job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]:
        batch = shard_targets(batch, job.mesh.at["context"], job.mesh.layout.context)
        sums: list[Tensor] = []

        def losses(model: Any, part: Batch) -> Tensor:
            sums.append(job.task.losses(model, part)[0].double().sum())
            return sums[-1]

        run(batch, losses, backward=False)
        total = torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.float64, device=job.policy.device)
        return total, job.task.weight(batch).double()

    job.functions = replace(job.functions, make=make, score=score)
    return job
