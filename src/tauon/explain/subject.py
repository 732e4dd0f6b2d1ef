"""A trained model together with its data, as explanations need them: its outputs, its cases, its examples in a form that a person can read.

Reads no run and no file: the stage supplies the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tauon.data import Tokenizer, without_augmentation
from tauon.errors import DataError
from tauon.explain.base import Cases, Link, Work, linked
from tauon.explain.inputs import Reading, cases_of
from tauon.explain.readable import ReadableTable
from tauon.metrics.ordinal import median_class
from tauon.tasks import Task
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["Sample", "Subject", "TrainingRecords", "refuse_not_finite"]

Report = Callable[[str, int, int], None]
"""(what, done, total): progress of long work."""


def no_report(what: str, done: int, total: int) -> None:
    """Report nothing."""


def no_note(message: str) -> None:
    """Note nothing."""


def look_of(inputs: NDArray[Any]) -> NDArray[np.float64]:
    """Return what is compared with the training examples: (N, columns, 2) lowest and highest value of each column of windows NTK; (N, 2, 1) mean
    and spread of images NCHW.
    """
    x = inputs.astype(np.float64)
    if x.ndim == 4:
        flat = x.reshape(len(x), -1)
        return np.stack([flat.mean(1), flat.std(1)], 1)[:, :, None]
    return np.stack([x.min(1), x.max(1)], 2)


@dataclass
class Sample:
    """Some examples of one part, and what the model makes of them. N examples, C outputs."""

    rows: NDArray[np.int64]
    """Their numbers in the part."""
    outputs: NDArray[np.float32]
    """NC: probabilities of classes, or values in the model's scale."""
    losses: NDArray[np.float32]
    """N."""
    targets: NDArray[Any]
    """N classes, or N... values."""
    ordered: bool = False
    """Whether the classes are ordered, so that the answer is the median class."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def answers(self) -> NDArray[np.int64]:
        """The answer to each example, N: the largest output."""
        found: NDArray[np.int64] = median_class(self.outputs) if self.ordered else self.outputs.argmax(1)
        return found


@dataclass(frozen=True)
class TrainingRecords:
    """What explanations by training examples need beside the data."""

    fingerprint: str
    """Of the training data."""
    index: Path
    """Folder of the index of training examples."""
    early: Callable[[], Sequence[tuple[int, nn.Module]]] = tuple
    """Loads (step, model) of each checkpoint of early training."""
    refusal: str = ""
    """Why training examples must not be shown."""


def refuse_not_finite(outputs_NC: NDArray[Any]) -> None:
    """Raise `DataError` if the model's answer to an example is not a number."""
    lost = int((~np.isfinite(outputs_NC)).any(1).sum())
    if lost:
        raise DataError(
            f"the model's outputs are not finite for {lost:,} of {len(outputs_NC):,} examples, so nothing can be explained. If its training diverged, "
            "train it again with a lower optim.lr"
        )


@dataclass
class Subject:
    """What is explained. Data sets are used without augmentation."""

    model: nn.Module
    """In evaluation mode."""
    task: Task
    spec: DataSpec
    train: Dataset
    heldout: Dataset
    part: str
    """Name of the held-out part: test, validation, train."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    report: Report = no_report
    note: Callable[[str], None] = no_note
    """Called with what a person should know before long work starts."""
    seed: int = 0
    records: TrainingRecords | None = None
    """None: no explanations by training examples."""

    def __post_init__(self) -> None:
        self.train, self.heldout = without_augmentation(self.train), without_augmentation(self.heldout)
        self._learnt = frozenset(name for name, p in self.model.named_parameters() if p.requires_grad)

    @property
    def partly_learnt(self) -> bool:
        """Whether only some of the weights were trained: those of adapters."""
        return len(self._learnt) < sum(1 for _ in self.model.parameters())

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Ask for gradients of the weights that were trained, inside the block."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        try:
            for name, p in self.model.named_parameters():
                p.requires_grad_(name in self._learnt)
            yield
        finally:
            for p, wanted in flags:
                p.requires_grad_(wanted)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def input_kind(self) -> str:
        """`Task.input_kind`."""
        return self.task.input_kind

    @cached_property
    def kind(self) -> str:
        """`Cases.kind` of its examples."""
        return self.cases(self.heldout.batch(np.zeros(1, np.int64))).kind

    @property
    def classes(self) -> bool:
        """Whether the outputs are classes, or the tokens of a vocabulary: one of them is the answer."""
        return self.task.family in ("classification", "ordinal") or self.input_kind == "tokens"

    @property
    def reading(self) -> Reading:
        """What the outputs mean."""
        link: Link = "softmax" if self.classes else "sigmoid" if self.task.family == "multi-label" else "identity"
        return Reading(link, tuple(getattr(self.task, "quantiles", ())))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        labels = self.spec.labels
        if self.input_kind == "tokens":
            vocab = range(self.spec.vocab or 0)
            return tuple(str(t) if self.tokenizer is None else self.tokenizer.decode([t]) for t in vocab)
        n = self.spec.outputs or 1
        return tuple(map(str, labels)) if labels else tuple(f"output {i}" for i in range(n))

    @cached_property
    def table(self) -> ReadableTable | None:
        """The columns of a table as a person knows them; None for other data."""
        shape = self.spec.input_shape
        if self.input_kind != "arrays" or shape is None or len(shape) != 1:
            return None
        return ReadableTable.of(self.preprocess, shape[0])

    def draw(self, dataset: Dataset, n: int) -> NDArray[np.int64]:
        """Return the numbers of at most n examples, drawn by the seed, ascending."""
        order = np.random.Generator(np.random.Philox(key=self.seed)).permutation(len(dataset))
        return np.sort(order[:n]).astype(np.int64)

    @cached_property
    def background(self) -> Batch:
        """Training examples that stand for what is absent."""
        return self.train.batch(self.draw(self.train, self.background_size))

    background_size: int = 64

    @cached_property
    def training_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(lowest, highest) of each column of a series, or of the brightness and contrast of an image, over a sample of training examples."""
        found = [look_of(self.train.batch(rows).inputs.numpy()) for rows in np.array_split(self.draw(self.train, 1_000), 8) if len(rows)]
        looks = np.concatenate(found)
        return looks.min((0, 2)), looks.max((0, 2))

    def cases(self, batch: Batch, targets: Tensor | None = None, model: nn.Module | None = None) -> Cases:
        """Return the cases of a batch; `model`: another one in place of the subject's."""
        around = self.background if self.input_kind == "arrays" else None
        groups = None if self.table is None else self.table.groups
        return cases_of(
            self.model if model is None else model, self.input_kind, self.spec, batch, targets=targets, background=around, groups=groups,
            reading=self.reading,
        )  # fmt: skip

    def batches(self, dataset: Dataset, rows: NDArray[np.int64], at_once: int) -> Iterator[tuple[slice, Batch]]:
        """Yield (place, batch) of some examples."""
        for start in range(0, len(rows), at_once):
            part = slice(start, min(len(rows), start + at_once))
            yield part, dataset.batch(rows[part]).to(self.device)

    def sample(self, n: int, *, work: Work, what: str = "the model's answers") -> Sample:
        """Return the model's answers to at most n held-out examples."""
        return self.answers_to(self.draw(self.heldout, n), work=work, what=what)

    def answers_to(
        self, rows: NDArray[np.int64], *, work: Work, what: str = "the model's answers", dataset: Dataset | None = None
    ) -> Sample:
        """Return the model's answers to these held-out examples, or to those of another data set."""
        if not len(rows):
            raise DataError(f"the {self.part} part has no examples, so nothing can be explained")
        dataset = self.heldout if dataset is None else dataset
        outputs, losses, targets = [], [], []
        with torch.no_grad():
            for part, batch in self.batches(dataset, rows, work.at_once):
                cases = self.cases(batch)
                found = []
                for inner in work.chunks(len(batch)):
                    x = cases.inputs[inner]
                    found.append(cases.probabilities(cases.answers(x, torch.arange(inner.start, inner.stop, device=x.device))))
                outputs.append(torch.cat(found).cpu().numpy())
                loss_B, weight_B = self.task.losses(self.model, batch)
                losses.append((loss_B / weight_B.clamp(min=1e-12)).float().cpu().numpy())
                targets.append(self.truth(batch))
                self.report(what, part.stop, len(rows))
        refuse_not_finite(np.concatenate(outputs))
        return Sample(rows, np.concatenate(outputs), np.concatenate(losses), np.concatenate(targets), self.task.family == "ordinal")

    def truth(self, batch: Batch) -> NDArray[Any]:
        """Return the true classes or values of a batch; of running text, the token that follows each row."""
        found: NDArray[Any] = (batch.targets[:, -1] if self.input_kind == "tokens" else batch.targets).cpu().numpy()
        return found

    def predict(self, inputs: NDArray[np.float32], at_once: int = 4096) -> NDArray[np.float64]:
        """Return outputs (or probabilities) of inputs of a table, NF -> NC, float64."""
        found = []
        with torch.no_grad():
            for start in range(0, len(inputs), at_once):
                x = torch.from_numpy(np.ascontiguousarray(inputs[start : start + at_once])).to(self.device)
                out = self.reading.values(self.model(x).float().flatten(1))
                found.append(linked(out, self.reading.link or "identity").double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)))
