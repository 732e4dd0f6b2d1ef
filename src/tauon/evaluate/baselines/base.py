"""`Baseline`: a name, a sentence, and predictions of batches in the form of a task's; `Training`: what a baseline may be fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tauon.metrics import Scorer, Scoring
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["Baseline", "BaselineTask", "Training"]

MOST_ROWS = 20_000
"""Training examples that a baseline is fitted to at most."""
MOST_READ = 100_000_000
"""Input numbers that are read at once (400 MB): pictures and recordings are large."""
MOST_NUMBERS = 20_000_000
"""Features times examples that a linear baseline is fitted to at most."""


@dataclass(frozen=True)
class Baseline:
    """A reference that needs no training, or little."""

    name: str
    """Short, in words: "the most frequent class"."""
    about: str
    """One sentence: how it predicts, and from how many examples."""
    predict: Callable[[Batch], dict[str, Any]]
    """What the task's `predict` returns for a model, from the batch alone."""


class BaselineTask:
    """A task that asks a baseline instead of the model, and is scored as the task is."""

    def __init__(self, task: Any, baseline: Baseline) -> None:
        self.task, self.baseline, self.family = task, baseline, task.family

    def predict(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The baseline's predictions; `model` is not used."""
        return self.baseline.predict(batch)

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """The task's own scorer."""
        scorer: Scorer = self.task.scorer(dataset, scoring)
        return scorer

    def counted(self, outputs: Any) -> Any:
        """Which examples count, as the task says."""
        return getattr(self.task, "task", self.task).counted(outputs)


@dataclass(frozen=True)
class Training:
    """The training examples as they are given to a baseline: without augmentation, a random choice of at most `rows`."""

    dataset: Dataset
    seed: int = 0
    fits: bool = True
    """Whether models may be fitted to the inputs. False: only shares of labels (which private training may not publish either: see `fit_baselines`)."""
    tokenizer: Any = None

    @property
    def spec(self) -> DataSpec:
        return self.dataset.spec

    @property
    def part(self) -> str:
        """What shares and means are of, in words: `dataset` is the evaluated part where nothing may be fitted (`fit_baselines`)."""
        return "the training part" if self.fits else "the evaluated part"

    def named(self, name: str) -> str:
        """Return the name of a baseline of shares or means, which says so if they are of the evaluated part."""
        return name if self.fits else f"{name} of the evaluated part"

    def batch(self, rows: int = MOST_ROWS) -> Batch:
        """Return up to `rows` examples, in the order of the data set; fewer where they are large (`MOST_READ` numbers in all)."""
        dataset: Any = self.dataset
        plain = dataset.without_augmentation() if hasattr(dataset, "without_augmentation") else dataset
        n, rows = len(plain), max(1, min(rows, MOST_READ // max(1, math.prod(self.spec.input_shape or ()))))
        picked = np.arange(n) if n <= rows else np.sort(np.random.default_rng(self.seed).choice(n, rows, replace=False))
        batch: Batch = plain.batch(picked.astype(np.int64))
        return batch

    def class_counts(self) -> np.ndarray:
        """Return the number of examples of each class: those that preparation counted, else of a sample."""
        labels, counted = self.spec.labels, self.dataset.facts.get("classes")
        if isinstance(counted, Mapping) and labels and set(counted) <= {str(label) for label in labels}:
            return np.array([float(counted.get(str(label), 0)) for label in labels])
        targets = self.batch().targets.long()
        return np.bincount(targets.numpy(), minlength=self.spec.outputs or 1).astype(np.float64)
