"""Hooks of a training run: log metrics, validate, stop early, save checkpoints. They do not depend on the model or the data source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tauon.artifacts import CheckpointWriter
from tauon.data import DataSplits
from tauon.optim import Plateau
from tauon.plan import Plan
from tauon.plan.context import VALIDATION_SHARE
from tauon.tasks import Task
from tauon.tracking import EventLog, Tracker
from tauon.train import (
    PLATEAU,
    STOP,
    Hook,
    LayerLook,
    Meter,
    TrainConfig,
    TrainJob,
    every,
    job_state,
    lasting_complaints,
    validation_loss,
    validation_marks,
)
from tauon.types import Batch, StepInfo

__all__ = ["Checkpoints", "Logs", "TrainingRecord", "validation_examples"]


@dataclass(frozen=True)
class Logs:
    """Where metrics go: the run's event log, its trackers, and the caller."""

    events: EventLog
    trackers: Sequence[Tracker]
    on_event: Callable[..., None]


@dataclass(frozen=True)
class Checkpoints:
    """How checkpoints are written, and what they hold beside weights and counters."""

    writer: CheckpointWriter
    metadata: dict[str, Any]
    """The same in every checkpoint: model, task, data spec, preprocessing."""
    filter_state: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda step, state: state
    """(step, state) -> the state that may be saved; an extension stores the rest elsewhere."""


_FEWEST = 32
"""Validation examples that are used even if they take longer."""


def validation_examples(seconds: float, an_example: float, n: int) -> int:
    """Return how many of `n` validation examples fit in `seconds`, if a training step takes `an_example` seconds per example: a forward pass takes
    a third of it. At least 32.

    >>> validation_examples(1.0, 0.01, 1000), validation_examples(0.01, 0.01, 1000), validation_examples(100.0, 0.01, 1000)
    (300, 32, 1000)
    """
    return min(n, max(_FEWEST, round(3 * seconds / max(an_example, 1e-9))))


class TrainingRecord:
    """The hooks of one training run. State that must survive a resume is in `job.notes`."""

    def __init__(
        self, config: TrainConfig, splits: DataSplits, plan: Plan, logs: Logs, checkpoints: Checkpoints
    ) -> None:  # fmt: skip
        self.config, self.splits, self.plan, self.checkpoints = config, splits, plan, checkpoints
        self.events, self.trackers, self.on_event = logs.events, logs.trackers, logs.on_event
        self.writer, self.meter = checkpoints.writer, Meter(plan.flops_per_example)
        self.saved = -1
        self.at_most: int | None = None
        self.patience, self.min_delta = math.inf, 0.0
        if splits.validation is not None:  # read only here, so that keys without effect are reported as unread
            self.at_most = config.validate_examples
            if config.early_stopping is not None:
                self.patience, self.min_delta = config.early_stopping.patience, config.early_stopping.min_delta

    def begin(self, job: TrainJob) -> None:
        self.saved = job.step if job.step else -1
        if self.splits.validation is not None and isinstance(job.policy.schedule, Plateau):
            job.policy.schedule.observe(math.inf, None)  # reads the schedule's keys now; without validation they are reported as unread
        self.on_event("training", step=job.step, total_steps=job.policy.total_steps)

    def hooks(self) -> list[Hook]:
        """Return the hooks in order: measure, log, validate (and stop early)."""
        hooks: list[Hook] = [self.meter, self.log]
        if self.splits.validation is not None:
            hooks.append(every(self.plan.validate_every, self.validate))
        return hooks

    def log(self, job: TrainJob, info: StepInfo) -> None:
        """Write the metrics of a step to the event log and the trackers."""
        metrics = dict(info.metrics)
        if "skipped" in metrics:
            self.events.log("skip", step=info.step, reason=metrics.pop("skipped"))
            self.on_event("skip", step=info.step, reason=info.metrics["skipped"])
        metrics.pop("eta_s", None)
        bytes_sent = metrics.pop("sent", None)
        if bytes_sent and bytes_sent != job.notes.get("sent"):  # by kind only when it changes; the total is logged at every step
            job.notes["sent"] = bytes_sent
            self.events.log("communication", step=info.step, bytes=bytes_sent)
        if (layers := metrics.pop("layers", None)) is not None:
            self.layers(job, info, layers)
        self.events.log("step", step=info.step, examples=info.examples, tokens=info.tokens, **metrics)
        for tracker in self.trackers:
            tracker.log(info.step, metrics)
        info.metrics.pop("sent", None)
        info.metrics.pop("layers", None)
        self.on_event("step", step=info.step, total_steps=info.total_steps, **info.metrics)

    def layers(self, job: TrainJob, info: StepInfo, layers: dict[str, LayerLook]) -> None:
        """Log the statistics of every layer; warn of a problem that lasts for several measurements, once for each kind of problem."""
        complaints = lasting_complaints(layers, job.notes)
        self.events.log("layers", step=info.step, layers={name: look.to_json() for name, look in layers.items()}, complaints=complaints)
        known = job.notes.setdefault("complaints", [])
        for complaint in complaints:
            kind = complaint.partition(" in ")[0]
            if kind not in known:
                known.append(kind)
                self.on_event("warning", message=f"step {info.step}: {complaint}")

    def bound_validation(self, job: TrainJob, info: StepInfo) -> None:
        """With `train.time`, use only so many validation examples that validation takes its share of the time; decided once, and kept on resume."""
        dataset, time = self.splits.validation, self.config.time
        if time is None or dataset is None or "seconds" not in info.metrics:
            return
        if "validate_examples" not in job.notes:
            n = min(len(dataset), self.at_most or len(dataset))
            times = math.ceil(info.total_steps / self.plan.validate_every)
            most = validation_examples(time * VALIDATION_SHARE / times, float(info.metrics["seconds"]) / max(1, self.config.batch), n)
            job.notes["validate_examples"] = job.mesh.world.gather(most)[0]
            if most < n:
                self.on_event("note", message=f"validation uses {most:,} of {n:,} examples, so that train.time ({time:,.0f} s) is kept")
        self.at_most = job.notes["validate_examples"]

    def validate(self, job: TrainJob, info: StepInfo) -> str | None:
        """Log the validation loss; with early stopping, save the best checkpoint and return STOP when patience is used up."""
        self.bound_validation(job, info)
        loss = validation_loss(job, self.validation_batches(job))
        observes = getattr(job.task.observe, "__func__", None) is not Task.observe
        marks = validation_marks(job, self.validation_batches(job)) if observes else {}
        self.events.log("validate", step=info.step, loss=loss, **marks)
        for tracker in self.trackers:
            tracker.log(info.step, {"validation_loss": loss} | {f"validation_{k}": v for k, v in marks.items()})
        self.on_event("validate", step=info.step, loss=loss, **marks)
        if isinstance(job.policy.schedule, Plateau):
            before = job.notes.get(PLATEAU, {"factor": 1.0})["factor"]
            job.notes[PLATEAU] = job.policy.schedule.observe(loss, job.notes.get(PLATEAU))
            if job.notes[PLATEAU]["factor"] < before:
                self.on_event(
                    "note",
                    message=f"validation loss has not fallen: learning rate reduced to {job.notes[PLATEAU]['factor']:.3g} of its peak",
                )
        if self.config.early_stopping is None:
            return None
        best = job.notes.get("best", {"loss": math.inf, "step": 0})
        if loss < best["loss"] - self.min_delta:
            job.notes |= {"best": {"loss": loss, "step": info.step}, "since_best": 0}
            self.save(job)
            self.writer.protect(info.step)
            if best["step"]:
                self.writer.release(best["step"])
            return None
        job.notes["since_best"] = job.notes.get("since_best", 0) + 1
        if job.notes["since_best"] < self.patience:
            return None
        self.on_event(
            "note",
            message=f"early stopping: validation loss has not fallen for {self.patience} validations; the best was at step {best['step']}",
        )
        return STOP

    def validation_batches(self, job: TrainJob) -> Iterator[Batch]:
        """Yield the validation examples in batches of one shape, so that nothing is recompiled; the last is padded with weight-zero rows.

        Batches are dealt to the data-parallel processes in turn; every process gets the same number of batches.
        """
        dataset = self.splits.validation
        assert dataset is not None
        n = min(len(dataset), self.at_most or len(dataset))
        # A pipeline splits these rows into microbatches as it does those of a training batch.
        rows = job.policy.microbatch if job.mesh.layout.pipeline > 1 else max(1, min(job.policy.microbatch, 512))
        turns, turn = job.mesh.layout.data, job.mesh.data_rank
        rounds = -(-n // (rows * turns))
        for start in range(turn * rows, rounds * turns * rows, turns * rows):
            index = np.arange(start, start + rows, dtype=np.int64)
            batch = dataset.batch(np.minimum(index, n - 1))
            if start + rows > n:
                weights = batch.weights.clone()
                weights[max(0, n - start) :] = 0
                batch = replace(batch, weights=weights)
            yield batch

    def save(self, job: TrainJob, *, again: bool = False, wait: bool = False) -> None:
        """Save a checkpoint of this step in the background; a second call at the same step does nothing, unless the weights are others (`again`).
        `wait`: return when it is on disk, and raise if it could not be written.
        """
        if self.saved == job.step and not again:
            return
        groups, state = job_state(job)
        state = state | self.checkpoints.metadata | {"precision": job.policy.precision.name}
        self.writer.save(job.step, groups, self.checkpoints.filter_state(job.step, state))
        if wait:
            self.writer.wait()
        self.saved = job.step
        self.events.log("checkpoint", step=job.step)
        self.on_event("checkpoint", step=job.step)
