"""Local SGD and DiLoCo around a training job: each process trains a replica, with an outer step every N steps.

The inner step is the job's ordinary step on this replica's rows of the batch: loss, clipping, gradient health and optimizer use no network.
The anchor is the run's model: it is validated, and saved as the group `model`. Group `outer` has the outer optimizer's state (the same
everywhere), group `replica` each process's own weights and inner optimizer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tauon.distributed import LowCommunication, OuterLoop, refuse_running_statistics
from tauon.errors import Problem, RecipeError
from tauon.optim import load_optimizer, optimizer_tensors
from tauon.train.step import TrainJob

__all__ = ["local_steps"]


def local_steps(job: TrainJob, config: LowCommunication, group: dist.ProcessGroup | None = None) -> TrainJob:
    """Return the job as one replica of `group` (None: all processes): an outer step after every H-th step, and after the last.

    The job's weights must be the same on all replicas (they are, from one seed), and its loader must give this replica's
    rows: `Loader(rank=..., world=...)`. Raises `RecipeError` for settings that do not work together.
    """
    refuse_running_statistics(job.model, config.kind_)
    loop = config.build({n: p for n, p in job.model.named_parameters() if p.requires_grad}, group=group, traffic=job.traffic)
    shares = getattr(job.loader, "world", loop.replicas)
    if shares != loop.replicas:
        raise RecipeError(
            f"the loader divides a batch among {shares} processes, but there are {loop.replicas} replicas: each needs its own rows. "
            "Use Loader(rank=..., world=number of replicas)."
        )
    if job.ema is not None:
        raise RecipeError(
            [
                Problem(
                    "train.ema",
                    "every replica would average its own weights. Remove it: the anchor, which is evaluated, is an average already.",
                )
            ]
        )

    if job.eval_weights is not None:
        raise RecipeError(
            [Problem("optim.kind", "every replica would average its own weights, and the outer step averages them too. Use adamw.")]
        )

    def outer(job: TrainJob) -> None:
        loop.after(job.step, last=job.step == job.policy.total_steps)

    job.policy = replace(job.policy, replicas=loop.replicas)
    job.functions = replace(job.functions, after=(*job.functions.after, outer))
    job.eval_weights = loop
    job.extra["outer"] = loop  # before `replica`: it reads the anchor from the model before that gets its own weights
    job.extra["replica"] = Replica(job, loop)
    return job


class Replica:
    """State of one replica: weights, inner optimizer and gradient health, under names that begin with `replica-<k>/`."""

    def __init__(self, job: TrainJob, loop: OuterLoop) -> None:
        self.job, self.loop = job, loop

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of this replica only: each process saves its own."""
        optim, _ = optimizer_tensors(self.job.optimizer, self.job.model)
        health = self.job.health.state()
        own = {f"model/{name}": w for name, w in self.loop.local.items()} | {f"optim/{key}": t for key, t in optim.items()}
        own["health"] = torch.tensor([health[k] for k in sorted(health)], dtype=torch.float64)
        return {f"replica-{self.loop.replica}/{name}": t for name, t in own.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore this replica from the tensors of all. A replica that did not exist when they were saved starts from the anchor, with
        the inner optimizer of one that did.
        """
        saved = {name.partition("/")[0] for name in tensors}
        k = self.loop.replica
        source = f"replica-{k if f'replica-{k}' in saved else k % len(saved)}"
        own = {name.removeprefix(f"{source}/"): t for name, t in tensors.items() if name.startswith(f"{source}/")}
        if source == f"replica-{k}":
            for name, w in self.loop.local.items():
                w.copy_(own[f"model/{name}"])
        numbers: dict[str, Any] = optimizer_tensors(self.job.optimizer, self.job.model)[1]
        state = {name.removeprefix("optim/"): t for name, t in own.items() if name.startswith("optim/")}
        load_optimizer(self.job.optimizer, self.job.model, state, numbers)
        names = sorted(self.job.health.state())
        values = dict(zip(names, own["health"].tolist(), strict=True))
        self.job.health.load({n: v if n == "mean" else int(v) for n, v in values.items()})
