"""What is recorded while a job trains: hooks that log, validate, stop early, and the saving of checkpoints.

The loop knows no hook by name, and these know no model and no data source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tauon.artifacts import CheckpointWriter
from tauon.data import DataSplits
from tauon.optim import Plateau
from tauon.plan import Plan
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

__all__ = ["TrainingRecord"]


class TrainingRecord:
    """The hooks of one training run. State that must survive a resume is in `job.notes`.

    `publish`: given the step and the state of a checkpoint, says what of it the checkpoint may hold, and keeps the rest elsewhere.
    """

    def __init__(
        self, config: TrainConfig, splits: DataSplits, plan: Plan, events: EventLog, trackers: Sequence[Tracker], writer: CheckpointWriter,
        about: dict[str, Any], on_event: Callable[..., None], *, flops: float,
        publish: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.splits, self.plan = config, splits, plan
        self.events, self.trackers, self.writer = events, trackers, writer
        self.about, self.on_event, self.publish = about, on_event, publish
        self.meter = Meter(flops)
        self.saved = -1
        self.at_most: int | None = None
        self.patience, self.min_delta = math.inf, 0.0
        if splits.validation is not None:  # read now, so that a key without effect is known to be one
            self.at_most = config.validate_examples
            if config.early_stopping is not None:
                self.patience, self.min_delta = config.early_stopping.patience, config.early_stopping.min_delta

    def begin(self, job: TrainJob) -> None:
        self.saved = job.step if job.step else -1
        if self.splits.validation is not None and isinstance(job.policy.schedule, Plateau):
            job.policy.schedule.observe(
                math.inf, None
            )  # reads its keys: without validation nothing does, and they are told to be without effect
        self.on_event("training", step=job.step, total_steps=job.policy.total_steps)

    def hooks(self) -> list[Hook]:
        """In order: measure, log, validate (and stop early)."""
        hooks: list[Hook] = [self.meter, self.log]
        if self.splits.validation is not None:
            hooks.append(every(self.plan.validate_every, self.validate))
        return hooks

    def log(self, job: TrainJob, info: StepInfo) -> None:
        """Every step into the event log and to the trackers."""
        metrics = dict(info.metrics)
        if "skipped" in metrics:
            self.events.log("skip", step=info.step, reason=metrics.pop("skipped"))
            self.on_event("skip", step=info.step, reason=info.metrics["skipped"])
        metrics.pop("eta_s", None)
        sent = metrics.pop("sent", None)
        if sent and sent != job.notes.get("sent"):  # by kind when it changes; in all at every step
            job.notes["sent"] = sent
            self.events.log("communication", step=info.step, bytes=sent)
        if (layers := metrics.pop("layers", None)) is not None:
            self.layers(job, info, layers)
        self.events.log("step", step=info.step, examples=info.examples, tokens=info.tokens, **metrics)
        for tracker in self.trackers:
            tracker.log(info.step, metrics)
        info.metrics.pop("sent", None)
        info.metrics.pop("layers", None)
        self.on_event("step", step=info.step, total_steps=info.total_steps, **info.metrics)

    def layers(self, job: TrainJob, info: StepInfo, layers: dict[str, LayerLook]) -> None:
        """A look at every layer, and what is wrong with some for several looks: told once for each kind of trouble."""
        found = lasting_complaints(layers, job.notes)
        self.events.log("layers", step=info.step, layers={name: look.to_json() for name, look in layers.items()}, complaints=found)
        known = job.notes.setdefault("complaints", [])
        for complaint in found:
            kind = complaint.partition(" in ")[0]
            if kind not in known:
                known.append(kind)
                self.on_event("warning", message=f"step {info.step}: {complaint}")

    def validate(self, job: TrainJob, info: StepInfo) -> str | None:
        """Validation loss; with early stopping, keep the best and say when to stop."""
        loss = validation_loss(job, self.validation_batches(job))
        observes = type(job.task).observe is not Task.observe
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
                    "note", message=f"validation loss has not fallen: the rate goes down to {job.notes[PLATEAU]['factor']:.3g} of its peak"
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
            "note", message=f"validation loss has not fallen for {self.patience} validations; the best was at step {best['step']}"
        )
        return STOP

    def validation_batches(self, job: TrainJob) -> Iterator[Batch]:
        """The validation examples in batches of one shape, so that nothing is compiled again: the last is filled up at weight zero.

        Data-parallel processes take turns, and all of them take as many turns.
        """
        dataset = self.splits.validation
        assert dataset is not None
        n = min(len(dataset), self.at_most or len(dataset))
        # A pipeline cuts the rows as it cuts those of a training batch.
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

    def save(self, job: TrainJob) -> None:
        """A checkpoint of this step, written in the background; the same step twice is once."""
        if self.saved == job.step:
            return
        groups, state = job_state(job)
        state = state | self.about | {"precision": job.policy.precision.name}
        self.writer.save(job.step, groups, state if self.publish is None else self.publish(job.step, state))
        self.saved = job.step
        self.events.log("checkpoint", step=job.step)
        self.on_event("checkpoint", step=job.step)
