"""Healing: training a model again after parts or weights were removed, by the same steps as any training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tauon.compress.base import CompressStep, Subject
from tauon.compress.compress import Heal
from tauon.compress.training.config import HealConfig
from tauon.compress.training.distil import distilled
from tauon.compress.training.masks import hold_masks
from tauon.compress.training.soft import FAMILIES
from tauon.errors import DataError, TrainingError
from tauon.optim import AdamWConfig
from tauon.train import BatchSource, GradientHealth, Hook, Precision, StepPolicy, TrainJob, train
from tauon.train.statistics import RunningStatistics, running_statistics
from tauon.types import Batch, StepInfo

__all__ = ["Healer", "healer"]


def healer(
    source: BatchSource, config: HealConfig, *, teacher: nn.Module | None = None, precision: str = "fp32", microbatch: int | None = None,
) -> Heal:  # fmt: skip
    """Return the callback `heal` of `compress_model`: it trains the copy in place, on its device, with its masks held.

    Args:
        source: batches of training examples (`Loader`), whole batches in this process.
        config: steps, learning rate, and how much of the teacher's outputs counts.
        teacher: the model before it was compressed, which is left as it is; None: the task alone.
        precision: of the matrix products: fp32 or bf16.
        microbatch: examples of one forward and backward pass. Left out: the whole batch.
    """
    return Healer(source, config, teacher, precision, microbatch)


@dataclass
class Healer:
    """See `healer`. Each call continues with batches that the calls before it have not seen."""

    source: BatchSource
    config: HealConfig
    teacher: nn.Module | None
    precision: str
    microbatch: int | None
    done: int = 0
    """Steps of all calls."""
    healed: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Weights before, hashed, to weights after: a search that tries other layers to quantise heals the same model again."""

    def __call__(self, subject: Subject, step: CompressStep) -> None:
        before = _digest(subject)
        if before not in self.healed:
            self._train(subject, step)
            self.healed[before] = {name: t.detach().clone() for name, t in subject.model.state_dict().items()}
        subject.model.load_state_dict(self.healed[before])

    def _train(self, subject: Subject, step: CompressStep) -> None:
        model, config = subject.model, self.config
        floating = [p for p in model.parameters() if p.is_floating_point()]
        if not floating:
            raise DataError(f"{step.kind_}: nothing is left that can be trained")
        trained_before = [p.requires_grad for p in floating]
        for p in floating:
            p.requires_grad_(True)
        job = self._job(subject, floating[0].device)
        teacher_was = None if self.teacher is None else [p.requires_grad for p in self.teacher.parameters()]
        if self.teacher is not None and config.teacher and job.task.family in FAMILIES:
            job = distilled(job, self.teacher, temperature=config.temperature, weight=config.weight)
        job = hold_masks(job, subject.masks)

        def show(job: TrainJob, info: StepInfo) -> str | None:
            subject.progress(f"heal after {step.kind_}", info.step, info.total_steps)
            return None

        hooks: list[Hook] = [show]
        try:
            with torch.random.fork_rng([]):
                train(job, hooks=hooks)
        except TrainingError as err:
            raise DataError(f"healing after {step.kind_} failed: {err}. Lower heal.lr={config.lr:g}, or heal: null.") from err
        finally:
            self.done += config.steps
            for p, trains in zip(floating, trained_before, strict=True):
                p.requires_grad_(trains)
                p.grad = None
            if self.teacher is not None and teacher_was is not None:
                for p, trains in zip(self.teacher.parameters(), teacher_was, strict=True):
                    p.requires_grad_(trains)
            model.eval()

    def _job(self, subject: Subject, device: torch.device) -> TrainJob:
        config, model = self.config, subject.model
        optim = AdamWConfig(lr=config.lr, clip_norm=1.0)
        first = self.source.batch_at(self.done)
        policy = StepPolicy(
            total_steps=config.steps, seed=subject.seed, schedule=optim.schedule, precision=Precision(self.precision, str(device)),
            device=device, microbatch=self.microbatch or len(first), clip_norm=optim.clip_norm,
        )  # fmt: skip
        statistics = RunningStatistics(model) if running_statistics(model) else None
        return TrainJob(
            model, optim.build(model), _From(self.source, self.done), subject.task, policy, GradientHealth(None, 10), statistics=statistics,
        )  # fmt: skip


def _digest(subject: Subject) -> str:
    """Return the hash of a model's weights and masks."""
    digest = hashlib.sha256()
    for name, t in (*subject.model.state_dict().items(), *subject.masks.items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _From:
    """Batches from a later step on."""

    source: BatchSource
    start: int

    def batch_at(self, step: int) -> Batch:
        return self.source.batch_at(self.start + step)
