"""What a compression step is (`CompressStep`), what it works on (`Subject`) and what it is calibrated with (`Calibration`).

A step is a frozen config that changes a private copy of a model and returns facts. It reads no run and writes no file. Steps of strength zero
(`CompressStep.zero`) leave the outputs of every model as they are, bit by bit.

Shapes: B batch, F features.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Registered
from tauon.errors import DataError
from tauon.models import ModelConfig
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = [
    "PHASES",
    "Calibration",
    "CompressStep",
    "LayerStep",
    "Phase",
    "Progress",
    "Subject",
    "calibration_from",
    "no_progress",
]

Phase = Literal["structured", "low-rank", "sparsity", "quantisation"]
PHASES: tuple[Phase, ...] = ("structured", "low-rank", "sparsity", "quantisation")
"""The order of steps: parts are removed first, what is left is factorised, then made sparse, and quantised last. Healing (training) may follow
each of the first three."""

Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Calibration:
    """Batches on which activations are observed. Their targets are read only to refuse a sample of a single class."""

    batches: tuple[Batch, ...]

    def __post_init__(self) -> None:
        if not self.batches or not sum(len(b) for b in self.batches):
            raise DataError("calibration data is empty: give at least one batch of examples that look like those to be predicted")
        for batch in self.batches:
            if batch.inputs.is_floating_point() and not bool(torch.isfinite(batch.inputs).all()):
                raise DataError("calibration data has NaN or infinite inputs: ranges of activations cannot be observed")

    def __len__(self) -> int:
        return sum(len(b) for b in self.batches)

    def check_classes(self, task: Task) -> None:
        """Raise `DataError` if all examples are of one class: ranges observed on one class do not hold for the others."""
        if task.family != "classification" or len(self) < 2:
            return
        targets = torch.cat([b.targets.flatten() for b in self.batches if not b.targets.is_floating_point()] or [torch.arange(2)])
        if len(targets.unique()) < 2:
            raise DataError(
                f"all {len(self)} calibration examples are of class {int(targets[0])}: take a sample of all classes "
                "(shuffle before taking the first examples)"
            )


def calibration_from(dataset: Dataset, *, examples: int = 128, batch: int = 32, seed: int = 0) -> Calibration:
    """Draw `examples` examples without replacement, as epoch 0 shows them. `DataError` if the data set is empty."""
    n = len(dataset)
    index = np.random.default_rng(seed).permutation(n)[:examples]
    return Calibration(tuple(dataset.batch(index[i : i + batch]) for i in range(0, len(index), batch)))


@dataclass
class Subject:
    """The private copy that steps change."""

    model: nn.Module
    task: Task
    calibration: Calibration | None
    config: ModelConfig | None
    """The model's resolved config; a step that removes parts replaces it. None: the model is of no family and cannot be saved."""
    seed: int = 0
    progress: Progress = no_progress
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Parameter name to a mask (bool, true: kept) that healing has to apply after every update."""

    def run(self, batches: Sequence[Batch] | None = None) -> None:
        """Run the task's forward pass over the calibration batches, without gradients: for hooks that observe."""
        with torch.no_grad():
            for i, batch in enumerate(self.batches() if batches is None else batches):
                self.task.predict(self.model, batch)
                self.progress("calibrate", i + 1, len(self.batches()))

    def batches(self) -> tuple[Batch, ...]:
        """Return the calibration batches. Raises `DataError` if there are none."""
        if self.calibration is None:
            raise DataError("this step observes activations: give calibration data")
        return self.calibration.batches


class CompressStep(Registered, family="compression"):
    """One way to make a model smaller or faster."""

    phase: ClassVar[Phase]
    needs_calibration: ClassVar[bool] = False
    heals: ClassVar[bool] = True
    """Whether training may follow."""

    @classmethod
    def zero(cls) -> Self:
        """Return the step of strength zero, which changes no output."""
        raise NotImplementedError

    def apply(self, subject: Subject) -> dict[str, Any]:
        """Change `subject.model` (and `subject.config`) and return facts (JSON values). Raises `DataError` with the reason if it cannot."""
        raise NotImplementedError


class LayerStep(CompressStep):
    """A step that treats layers one by one."""

    only: tuple[str, ...] = ("*",)
    """Patterns (fnmatch) of the names of the layers that are changed; empty: none."""
    skip: tuple[str, ...] = Field(())
    """Patterns of the names of layers that stay as they are."""

    @classmethod
    def zero(cls) -> Self:
        return cls(only=())

    def chosen(self, model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, Any]]:
        """Yield (name, module) of the layers of these exact types that the patterns choose."""
        for name, module in list(model.named_modules()):
            if type(module) in kinds and _matches(name, self.only) and not _matches(name, self.skip):
                yield name, module


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)
