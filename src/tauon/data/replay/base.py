"""What was done to the training data, done again to what comes later: raw rows in, the batch that a model reads out, one class a kind of data.

A kind joins with `@register_replay("kind")`; it is found by `preprocess["kind"]`, which every checkpoint holds. Nothing is fitted here, and no file is
read: that is the business of whoever has the rows (`tauon.predict`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from tauon.data.sources.tables import no_column
from tauon.errors import DataError
from tauon.types import Batch

__all__ = ["Replay", "Rows", "register_replay", "replay_kinds", "replay_of"]

Place = Callable[[int, str], str]


def _record(i: int, column: str) -> str:
    return f"record {i}: column {column!r}"


@dataclass(frozen=True)
class Rows:
    """Raw rows, column by column: lists, or arrays of pyarrow."""

    columns: Mapping[str, Any]
    """By name, of one length. A cell may be a whole picture or recording."""
    where: Place = _record
    """How an error calls a cell: (number of the row, column)."""
    hidden: frozenset[str] = frozenset()
    """Columns that are read and not written: pictures, recordings."""

    def __len__(self) -> int:
        return next((len(values) for values in self.columns.values()), 0)

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        cut = {name: values[start:stop] for name, values in self.columns.items()}
        return Rows(cut, _Places(_spans(self.where, len(self))).part(start, stop), self.hidden)

    def then(self, other: Rows) -> Rows:
        """These rows, then the others, which have the same columns."""
        if not len(self):
            return other
        joined = {name: _joined(values, other.columns[name]) for name, values in self.columns.items()}
        return Rows(joined, _Places(_spans(self.where, len(self)) + _spans(other.where, len(other))), self.hidden)

    def need(self, names: Sequence[str]) -> None:
        """`DataError` that names the first of these columns that is not here, and its nearest neighbour."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(
                f"{self.where(0, missing[0]).rpartition(': ')[0]}: {no_column(missing[0], [*self.columns])}. The model reads it"
            )


_Span = tuple[int, int, Place]
"""(rows, number of the first in its own file or piece, how that calls its cells)."""


@dataclass(frozen=True)
class _Places:
    """How rows of several pieces call their cells. Holds no row: pieces that were cut off must not stay in memory."""

    spans: tuple[_Span, ...]

    def __call__(self, i: int, column: str) -> str:
        for n, first, place in self.spans:
            if i < n:
                return place(first + i, column)
            i -= n
        return _record(i, column)

    def part(self, start: int, stop: int) -> _Places:
        """Of rows [start, stop)."""
        found: list[_Span] = []
        at = 0
        for n, first, place in self.spans:
            a, b = max(start - at, 0), min(stop - at, n)
            if a < b:
                found.append((b - a, first + a, place))
            at += n
        return _Places(tuple(found))


def _spans(where: Place, n: int) -> tuple[_Span, ...]:
    return where.spans if isinstance(where, _Places) else ((n, 0, where),)


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, list) and isinstance(b, list):
        return a + b
    if isinstance(a, np.ndarray):
        return np.concatenate([a, b])
    import pyarrow as pa

    return pa.concat_arrays([pa.array(a) if isinstance(a, list) else a, pa.array(b) if isinstance(b, list) else b])


@dataclass
class Replay:
    """Raw rows -> the batch that a model reads: the very numbers that the same row had in training."""

    preprocess: Mapping[str, Any]
    """Of the checkpoint: `checkpoint.state["preprocess"]`."""
    notes: dict[str, int] = field(default_factory=dict)
    """What a person should know at the end, with how often it happened."""

    reads: ClassVar[str] = "rows"
    """What its examples are, for whoever reads files: rows, pictures, recordings, texts, arrays, series."""
    refusal: ClassVar[str] = ""
    """Why there are no predictions for such data, and the way out."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that are read."""
        raise NotImplementedError

    def batch(self, rows: Rows) -> Batch:
        """The model's inputs, weights of one, and targets that are filler. Raises `DataError` that names row and column."""
        raise NotImplementedError

    def filler(self, n: int) -> Any:
        """Targets of the right shape that mean nothing: tasks look at their shape only."""
        import torch

        kind, labels = self.preprocess.get("targets"), self.preprocess.get("labels", ())
        if kind == "transcripts":
            return torch.full((n, 1), -1, dtype=torch.int64)
        if kind == "classes":
            return torch.zeros(n, dtype=torch.int64)
        scale = self.preprocess.get("target_scale")
        return torch.zeros(n, len(scale["center"]) if scale else max(1, len(labels)))

    def say(self, note: str, count: int) -> None:
        """Count something worth a note."""
        if count:
            self.notes[note] = self.notes.get(note, 0) + count


R = TypeVar("R", bound=type[Replay])
_KINDS: dict[str, type[Replay]] = {}


def register_replay(kind: str) -> Callable[[R], R]:
    """Class decorator: the class makes batches of rows for checkpoints whose `preprocess["kind"]` is `kind`. A taken name is a `ValueError`."""

    def enrol(cls: R) -> R:
        taken = _KINDS.get(kind)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"replay {kind!r} is already {taken.__module__}.{taken.__qualname__}")
        _KINDS[kind] = cls
        return cls

    return enrol


def replay_kinds() -> dict[str, type[Replay]]:
    """Every registered kind."""
    return dict(_KINDS)


def replay_of(preprocess: Mapping[str, Any]) -> Replay:
    """How rows become inputs for this checkpoint. `DataError` for a kind that nobody registered, or that gives no predictions."""
    kind = preprocess.get("kind")
    if kind not in _KINDS:
        raise DataError(
            f"data of kind {kind!r}: how rows of it become inputs is not known ({', '.join(sorted(_KINDS))} are). "
            "Install the package that brings this kind, or register it with tauon.data.register_replay"
        )
    cls = _KINDS[str(kind)]
    if cls.refusal:
        raise DataError(cls.refusal)
    return cls(preprocess)


def float_batch(replay: Replay, inputs: NDArray[np.float32]) -> Batch:
    """A batch of features with filler for the rest."""
    import torch

    return Batch(torch.from_numpy(inputs), replay.filler(len(inputs)), torch.ones(len(inputs)))
