"""One optimizer step. It has three seams: make gradients, exchange them, update.

A job is its state, a frozen set of step functions, and a frozen policy. A wrapper (privacy, parallelism, a parameter server) replaces some of
the functions and returns the job.

On an accelerator the host never waits for the device inside a step: `launch_step` leaves loss and norm on the device, and they are read after
the next step was launched. The device decides whether to skip the step (`GradientHealth.judge`); a skipped step leaves weights, optimizer,
averages and running statistics unchanged. If the optimizer cannot do that (see `tauon.optim.skip`), and on a CPU, the host reads loss and norm
before the update and decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.distributed import Layout, Mesh, Traffic, shard_targets, synchronising, whole_gradients
from tauon.optim import AveragedWeights, ScheduleConfig, can_skip_on_device, clip_adaptive, clip_gradients, clip_layers, skipped_where
from tauon.tasks import Task
from tauon.train.ema import EMA
from tauon.train.health import GradientHealth
from tauon.train.precision import Precision
from tauon.train.readback import HostCopy
from tauon.train.statistics import RunningStatistics
from tauon.types import Batch

__all__ = [
    "PLATEAU",
    "REDUCED",
    "BatchSource",
    "LaunchedStep",
    "MeasuredLate",
    "Stateful",
    "StepFunctions",
    "StepPolicy",
    "TrainJob",
    "launch_step",
    "mesh_exchange",
    "optimizer_update",
    "plain_gradients",
    "plain_scores",
    "seed_draws",
    "step_seed",
    "train_step",
]


REDUCED = ("replicate", "shard", "context")
"""Mesh dimensions whose processes have different tokens."""


PLATEAU = "plateau"
"""Key of `job.notes` for the state of the plateau schedule."""


class BatchSource(Protocol):
    """Source of batches: a pure function of the step, so that a resume needs only its number."""

    def batch_at(self, step: int) -> Batch:
        """Return this rank's rows of the batch of step `step` (from 0)."""
        ...


class GradientFn(Protocol):
    """First seam: writes the gradients of a batch to `.grad`; returns this process's share of the mean loss."""

    def __call__(self, job: TrainJob, batch: Batch) -> Tensor: ...


class ScoreFn(Protocol):
    """Returns (sum of losses, sum of weights) of a batch, without gradients."""

    def __call__(self, job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]: ...


class StepFn(Protocol):
    """Second and third seam: exchange gradients; update weights."""

    def __call__(self, job: TrainJob) -> None: ...


class ClipFn(Protocol):
    """Between second and third seam: clips the gradient and returns its norm before clipping by norm."""

    def __call__(self, job: TrainJob) -> Tensor: ...


class MeasuredLate(Protocol):
    """A value of `TrainJob.measured` that is read together with the step's metrics."""

    def read(self, *, skipped: bool) -> Any: ...


class Stateful(Protocol):
    """State of a wrapper, besides weights and optimizer."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, by name; the same names every time."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors`, bit for bit."""
        ...


def plain_gradients(job: TrainJob, batch: Batch) -> Tensor:
    """Accumulate the gradient of the mean loss in `.grad`, microbatch by microbatch; return this process's share of the mean loss.

    Each microbatch is divided by the whole batch's weight (tokens or examples) over all processes, so that accumulation and data
    parallelism equal the large batch.
    """
    mesh = job.mesh
    batch = shard_targets(batch, mesh.at["context"], mesh.layout.context)
    weight = mesh.sum(job.task.weight(batch), *REDUCED).clamp(min=1e-9)
    loss = torch.zeros((), device=job.policy.device)
    rows = job.policy.microbatch
    for start in range(0, len(batch), rows):
        with job.policy.precision.context():
            total, _ = job.task.loss(job.model, batch if rows >= len(batch) else batch.rows(start, start + rows))
        share = total / weight
        with synchronising(job.model, now=start + rows >= len(batch)):
            # Processes average their gradients, but the sum of their shares is needed.
            (share if mesh.reduce_size == 1 else share * mesh.reduce_size).backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    return loss


def plain_scores(job: TrainJob, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (sum of losses, sum of weights) of this process's part of the batch, float64, without gradients."""
    batch = shard_targets(batch, job.mesh.at["context"], job.mesh.layout.context)
    with job.policy.precision.context():
        loss_B, weight_B = job.task.losses(job.model, batch)
    return loss_B.double().sum(), weight_B.double().sum()


def mesh_exchange(job: TrainJob) -> None:
    """Sum the gradients that backward leaves as partial sums over tensor-parallel processes."""
    if job.mesh.layout.tensor > 1:
        whole_gradients(job.model)


def clip_local_gradients(job: TrainJob) -> Tensor:
    """Clip the gradients in `.grad` by value, layer, unit or norm, as the policy sets; return the norm."""
    if job.policy.clip_value is not None and (job.policy.clip_layer is not None or job.policy.clip_adaptive is not None):
        clip_gradients(job.model.parameters(), None, job.policy.clip_value, job.mesh)
    if job.policy.clip_layer is not None:
        clip_layers(job.model.parameters(), job.policy.clip_layer)
    if job.policy.clip_adaptive is not None:
        clip_adaptive(job.model.named_parameters(), job.policy.clip_adaptive)
    return clip_gradients(job.model.parameters(), job.policy.clip_norm, job.policy.clip_value, job.mesh)


def no_gather(job: TrainJob) -> None:
    """Do nothing: weights and optimizer state of one process are already in place."""


def optimizer_update(job: TrainJob) -> None:
    """Set the learning rate of this step, then update the weights."""
    job.set_rate()
    job.optimizer.step()


@dataclass(frozen=True)
class StepFunctions:
    """The functions of a step. A wrapper replaces some: `job.functions = replace(job.functions, make=...)`."""

    make: GradientFn = plain_gradients
    exchange: StepFn = mesh_exchange
    clip: ClipFn = clip_local_gradients
    update: StepFn = optimizer_update
    after: tuple[StepFn, ...] = ()
    """Called after each step, also a skipped one (an outer step, for example): all replicas must do them."""
    gather: StepFn = no_gather
    """Copy weights and optimizer state into `model` and `optimizer` if they are kept elsewhere; called before they are read."""
    score: ScoreFn = plain_scores
    """Computes the validation loss."""


@dataclass(frozen=True)
class StepPolicy:
    """Settings of a job's steps; constant during training."""

    total_steps: int
    seed: int
    schedule: ScheduleConfig
    precision: Precision
    device: torch.device
    microbatch: int
    """Examples in one forward and backward pass."""
    clip_norm: float | None = None
    clip_value: float | None = None
    clip_layer: float | None = None
    clip_adaptive: float | None = None
    examples_at: Callable[[int], int] | None = None
    """Examples of step n, all processes together. None: the sum over the processes' batches."""
    replicas: int = 1
    """Number of replicas that train on other rows of the batch, including this one (local SGD, DiLoCo)."""
    reads_late: bool = False
    """Whether the host reads loss and norm only after the step, so that the device decides whether to skip it."""


@dataclass
class TrainJob:
    """A training in progress: its state, the functions that change it, and the policy. Wrappers take a job and return a job."""

    model: nn.Module
    optimizer: Optimizer
    loader: BatchSource
    task: Task
    policy: StepPolicy
    health: GradientHealth
    functions: StepFunctions = field(default_factory=StepFunctions)
    mesh: Mesh = field(default_factory=lambda: Mesh(Layout()))
    """This process's position in the layout."""
    ema: EMA | None = None
    statistics: RunningStatistics | None = None
    """Running statistics of models that have them (batch norm)."""
    eval_weights: AveragedWeights | None = None
    """Weights that are validated and saved; None: the model's own."""
    step: int = 0
    """Steps done."""
    examples: int = 0
    tokens: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    """State of hooks (early stopping, for example) that must survive a resume. JSON values."""
    extra: dict[str, Stateful] = field(default_factory=dict)
    """More state that a resume needs (an outer optimizer, for example): one group of tensors each, by name."""
    traffic: Traffic = field(default_factory=Traffic)
    """Bytes sent."""
    measured: dict[str, Any] = field(default_factory=dict)
    """More metrics of this step, from its functions (staleness, for example): numbers, or `MeasuredLate`."""

    def set_rate(self) -> float:
        """Set the learning rate of this step in every parameter group; return it as a share of the peak."""
        factor = self.policy.schedule.factor(self.step, self.policy.total_steps)
        if PLATEAU in self.notes:
            factor *= self.notes[PLATEAU]["factor"]
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor


@dataclass
class LaunchedStep:
    """A step that was launched on the device. `read` returns its metrics."""

    step: int
    """Steps done with this one, and examples and tokens seen: the job's counters when it was launched."""
    examples: int
    tokens: int
    health: GradientHealth
    metrics: dict[str, Any]
    numbers: HostCopy | None
    """Loss, norm, and whether the device skipped the step, being copied to the host; None: they are in `metrics`."""

    @property
    def late(self) -> bool:
        """Whether reading it now would make the host wait for the device."""
        return self.numbers is not None

    def read(self) -> dict[str, Any]:
        """Return the step's metrics as plain numbers. Read each step once, in order: raises `TrainingError` if too many in a row were skipped."""
        metrics = self.metrics
        if self.numbers is not None:
            loss, norm, bad = self.numbers.tolist()
            reason = self.health.record(self.step, loss, norm, bad > 0)
            metrics = {"loss": loss, "grad_norm": norm} | ({} if reason is None else {"skipped": reason}) | metrics
        skipped = "skipped" in metrics
        return {k: v.read(skipped=skipped) if hasattr(v, "read") else v for k, v in metrics.items()}


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of every random draw in step `step` (dropout): draws do not depend on earlier steps."""
    digest = hashlib.blake2b(f"{seed}/step/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the random draws of torch on `device` and on the CPU. `torch.manual_seed` also queues seeds for accelerators that are not in use,
    each with a stack trace: 100 us, a third of a step of a small model.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def train_step(job: TrainJob, batch: Batch) -> dict[str, Any]:
    """Do a step and return its metrics as plain numbers; waits for the device."""
    return launch_step(job, batch).read()


def launch_step(job: TrainJob, batch: Batch) -> LaunchedStep:
    """Make, exchange, clip, check, update: the step of every recipe."""
    run = job.functions
    seed_draws(step_seed(job.policy.seed, job.step, job.mesh.draws), job.policy.device)
    if job.statistics is not None:
        job.statistics.remember()
    loss = run.make(job, batch)
    run.exchange(job)
    norm = run.clip(job)
    loss = job.mesh.sum(loss, *REDUCED, "pipeline")
    late = job.policy.reads_late and can_skip_on_device(job.optimizer)
    metrics, numbers = ({}, _update_late(job, loss, norm)) if late else (_update_now(job, loss, norm), None)
    job.optimizer.zero_grad(set_to_none=True)  # None, not zero: saves one write over all parameters
    _count(job, batch)
    metrics["lr"] = job.optimizer.param_groups[0]["lr"]
    for act in job.functions.after:
        act(job)
    if sent := job.traffic.take():
        metrics["sent_bytes"], metrics["sent"] = sum(sent.values()), sent
    metrics |= job.measured
    job.measured.clear()
    return LaunchedStep(job.step, job.examples, job.tokens, job.health, metrics, numbers)


def _update_now(job: TrainJob, loss: Tensor, norm: Tensor) -> dict[str, Any]:
    """Read loss and norm, update unless they are bad, and return the metrics."""
    metrics: dict[str, Any] = {"loss": loss.item(), "grad_norm": norm.item()}  # the only wait for the device in a step
    reason = job.health.check(job.step + 1, metrics["loss"], metrics["grad_norm"])
    if reason is None:
        job.functions.update(job)
        if job.ema is not None:
            job.ema.update(job.step)
    else:
        metrics["skipped"] = reason
        if job.statistics is not None:
            job.statistics.put_back()
    return metrics


def _update_late(job: TrainJob, loss: Tensor, norm: Tensor) -> HostCopy:
    """Update unless the device finds loss or norm bad, without reading them. Returns loss, norm and bad, being copied to the host."""
    norm = norm.to(loss.device)  # a model without any gradient has a zero on the host
    bad = job.health.judge(loss, norm)
    with skipped_where(job.optimizer, bad):
        job.functions.update(job)
    if job.statistics is not None:  # before the average includes them
        job.statistics.put_back(bad)
    if job.ema is not None:
        job.ema.update(job.step, bad)
    return HostCopy(torch.stack([loss.detach().float(), norm.float(), bad]))


def _count(job: TrainJob, batch: Batch) -> None:
    """Advance the counters of steps, examples and tokens."""
    at = job.policy.examples_at
    examples = at(job.step) if at is not None else len(batch) * job.mesh.layout.data * job.policy.replicas
    job.step += 1
    job.examples += examples
    is_text = batch.targets.dtype == torch.int64 and batch.targets.ndim == 2 and batch.lengths is None
    job.tokens += examples * batch.targets.shape[1] if is_text else 0
