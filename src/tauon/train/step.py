"""One optimizer step, whole. Three seams and no others: make gradients, exchange them, update.

A wrapper (privacy, parallelism, a parameter server) replaces one seam of the job and returns the job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.distributed import Layout, Mesh, Traffic, my_targets, synchronising, whole_gradients
from tauon.optim import ScheduleConfig, Standing, clip_adaptive, clip_gradients, clip_layers
from tauon.tasks import Task
from tauon.train.ema import EMA
from tauon.train.health import GradientHealth
from tauon.train.precision import Precision
from tauon.train.statistics import RunningStatistics
from tauon.types import Batch

__all__ = [
    "PLATEAU",
    "REDUCED",
    "BatchSource",
    "Stateful",
    "TrainJob",
    "mesh_exchange",
    "optimizer_update",
    "plain_gradients",
    "step_seed",
    "train_step",
]


REDUCED = ("replicate", "shard", "context")
"""Dimensions of the mesh whose processes see different tokens."""


PLATEAU = "plateau"
"""The note in which a job keeps what the plateau schedule has seen."""


class BatchSource(Protocol):
    """Where batches come from: a pure function of the step, so that resuming needs only its number."""

    def batch_at(self, step: int) -> Batch:
        """Batch of step `step` (from 0), this rank's rows."""
        ...


class Make(Protocol):
    """The first seam."""

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor: ...


class Score(Protocol):
    """The loss without gradients."""

    def __call__(self, job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]: ...


class Act(Protocol):
    """The second and the third seam."""

    def __call__(self, job: TrainJob) -> None: ...


class Measure(Protocol):
    """Between the second and the third seam: clip the gradient, and say its norm before clipping by norm."""

    def __call__(self, job: TrainJob) -> Tensor: ...


class Stateful(Protocol):
    """State beside weights and optimizer that a wrapper brings."""

    def tensors(self) -> dict[str, Tensor]:
        """What to save, by name; the same names every time."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave, bit for bit."""
        ...


def plain_gradients(job: TrainJob, batch: Batch) -> Tensor:
    """Gradient of the mean loss of the batch, microbatch by microbatch, into `.grad`; returns this process's share of the mean loss.

    Each microbatch is divided by the whole batch's weight (tokens or examples) over all processes, so that accumulation and data
    parallelism equal the large batch.
    """
    mesh = job.mesh
    batch = my_targets(batch, mesh.at["context"], mesh.layout.context)
    weight = mesh.sum(job.task.weight(batch), *REDUCED).clamp(min=1e-9)
    loss = torch.zeros((), device=job.device)
    for start in range(0, len(batch), job.microbatch):
        with job.precision.context():
            total, _ = job.task.loss(job.model, batch.rows(start, start + job.microbatch))
        share = total / weight
        with synchronising(job.model, now=start + job.microbatch >= len(batch)):
            # Processes average their gradients; what is wanted is the sum of their shares.
            (share if mesh.reduce_size == 1 else share * mesh.reduce_size).backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    return loss


def plain_scores(job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum of losses, sum of weights) of this process's part of the batch, float64, without gradients."""
    batch = my_targets(batch, job.mesh.at["context"], job.mesh.layout.context)
    with job.precision.context():
        loss_B, weight_B = job.task.losses(job.model, batch)
    return loss_B.double().sum(), weight_B.double().sum()


def mesh_exchange(job: TrainJob) -> None:
    """What backward has not exchanged already: gradients that are still partial sums over tensor-parallel processes."""
    if job.mesh.layout.tensor > 1:
        whole_gradients(job.model)


def clip_here(job: TrainJob) -> Tensor:
    """Where the gradients are in `.grad`: by value, by layer, by unit, by norm, as far as each is asked for."""
    if job.clip_value is not None and (job.clip_layer is not None or job.clip_adaptive is not None):
        clip_gradients(job.model.parameters(), None, job.clip_value, job.mesh)
    if job.clip_layer is not None:
        clip_layers(job.model.parameters(), job.clip_layer)
    if job.clip_adaptive is not None:
        clip_adaptive(job.model.named_parameters(), job.clip_adaptive)
    return clip_gradients(job.model.parameters(), job.clip_norm, job.clip_value, job.mesh)


def all_is_here(job: TrainJob) -> None:
    """Weights and optimizer state of one process are where they belong."""


def optimizer_update(job: TrainJob) -> None:
    """Set the learning rate of this step, then let the optimizer move the weights."""
    job.set_rate()
    job.optimizer.step()


@dataclass
class TrainJob:
    """Everything that a step needs, and the little state that moves. Wrappers take one and return one."""

    model: nn.Module
    optimizer: Optimizer
    schedule: ScheduleConfig
    loader: BatchSource
    task: Task
    total_steps: int
    seed: int
    precision: Precision
    device: torch.device
    microbatch: int
    health: GradientHealth
    clip_norm: float | None = None
    clip_value: float | None = None
    clip_layer: float | None = None
    clip_adaptive: float | None = None
    ema: EMA | None = None
    statistics: RunningStatistics | None = None
    """Of models that keep running ones (batch norm)."""
    mesh: Mesh = field(default_factory=lambda: Mesh(Layout()))
    """This process's place among those that compute together."""
    examples_at: Callable[[int], int] | None = None
    """Examples of step n, all processes together. None: as many as each of them has."""
    replicas: int = 1
    """Jobs like this one that train beside it on other rows of the batch, itself included (local SGD, DiLoCo)."""
    make: Make = plain_gradients
    exchange: Act = mesh_exchange
    update: Act = optimizer_update
    clip: Measure = clip_here
    gather: Act = all_is_here
    """Bring weights and optimizer state into `model` and `optimizer`, where they are kept elsewhere: called before anything reads them."""
    score: Score = plain_scores
    """How validation computes a loss."""
    step: int = 0
    """Steps done."""
    examples: int = 0
    tokens: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    """State of hooks (early stopping, say) that must survive a resume. JSON values."""
    extra: dict[str, Stateful] = field(default_factory=dict)
    """More state that a resume needs (an outer optimizer, say): a group of tensors each, by name."""
    traffic: Traffic = field(default_factory=Traffic)
    """Bytes sent."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What a seam has to tell of this step (staleness, say): joins the step's metrics."""
    after: list[Act] = field(default_factory=list)
    """Called when a step is done, skipped or not (an outer step, say): what all replicas must do, whatever their gradients were."""
    shown: Standing | None = None
    """Weights that are validated and saved; None: the model's own."""

    def set_rate(self) -> float:
        """Give every group of parameters the learning rate of this step; returns it as a share of the peak."""
        factor = self.schedule.factor(self.step, self.total_steps)
        if PLATEAU in self.notes:
            factor *= self.notes[PLATEAU]["factor"]
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of every random draw inside step `step` (dropout): nothing depends on what ran before."""
    digest = hashlib.blake2b(f"{seed}/step/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def train_step(job: TrainJob, batch: Batch) -> dict[str, Any]:
    """Make, exchange, clip, check, update: the step that every recipe takes. Metrics are plain numbers."""
    torch.manual_seed(step_seed(job.seed, job.step, job.mesh.draws))
    if job.statistics is not None:
        job.statistics.remember()
    loss = job.make(job, batch)
    job.exchange(job)
    norm = job.clip(job)
    loss = job.mesh.sum(loss, *REDUCED, "pipeline")
    metrics: dict[str, Any] = {"loss": loss.item(), "grad_norm": norm.item()}  # the step's one wait for the device
    skip = job.health.check(job.step + 1, metrics["loss"], metrics["grad_norm"])
    if skip is None:
        job.update(job)
        if job.ema is not None:
            job.ema.update(job.step)
    else:
        metrics["skipped"] = skip
        if job.statistics is not None:
            job.statistics.put_back()
    job.optimizer.zero_grad(set_to_none=True)  # None, not zero: saves one write over all parameters
    examples = job.examples_at(job.step) if job.examples_at is not None else len(batch) * job.mesh.layout.data * job.replicas
    job.step += 1
    job.examples += examples
    job.tokens += (
        examples * batch.targets.shape[1] if batch.targets.dtype == torch.int64 and batch.targets.ndim == 2 and batch.lengths is None else 0
    )
    metrics["lr"] = job.optimizer.param_groups[0]["lr"]
    for act in job.after:
        act(job)
    if sent := job.traffic.take():
        metrics["sent_bytes"], metrics["sent"] = sum(sent.values()), sent
    metrics |= job.measured
    job.measured.clear()
    return metrics
