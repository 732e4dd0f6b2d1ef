"""Replay of the training preprocessing: raw rows in, a batch for the model out, one class per kind of data.

Register a kind with `@register_replay("kind")`; it is found by `preprocess["kind"]` of a checkpoint. Nothing is fitted here, and no file
is read: callers supply the rows (`tauon.predict`).
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
    """Raw rows by column: lists, or pyarrow arrays."""

    columns: Mapping[str, Any]
    """Columns by name, all of one length. A cell may be a whole image or recording."""
    where: Place = _record
    """Name of a cell in error messages: (row number, column)."""
    hidden: frozenset[str] = frozenset()
    """Columns that are read but not written to the output: images, recordings."""

    def __len__(self) -> int:
        return next((len(values) for values in self.columns.values()), 0)

    def part(self, start: int, stop: int) -> Rows:
        """Return rows [start, stop)."""
        cut = {name: values[start:stop] for name, values in self.columns.items()}
        return Rows(cut, _Places(_spans(self.where, len(self))).part(start, stop), self.hidden)

    def then(self, other: Rows) -> Rows:
        """Return these rows followed by the others, which have the same columns."""
        if not len(self):
            return other
        joined = {name: _joined(values, other.columns[name]) for name, values in self.columns.items()}
        return Rows(joined, _Places(_spans(self.where, len(self)) + _spans(other.where, len(other))), self.hidden)

    def need(self, names: Sequence[str]) -> None:
        """Raise `DataError` for the first of these columns that is missing, with the closest existing name."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(
                f"{self.where(0, missing[0]).rpartition(': ')[0]}: {no_column(missing[0], [*self.columns])}. The model reads it"
            )


_Span = tuple[int, int, Place]
"""(rows, number of the first in its own file or piece, cell names)."""


@dataclass(frozen=True)
class _Places:
    """Cell names for rows joined from several pieces. Keeps no reference to rows, so that discarded pieces can be freed."""

    spans: tuple[_Span, ...]

    def __call__(self, i: int, column: str) -> str:
        for n, first, place in self.spans:
            if i < n:
                return place(first + i, column)
            i -= n
        return _record(i, column)

    def part(self, start: int, stop: int) -> _Places:
        """Return the names for rows [start, stop)."""
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
    """Base class: raw rows -> a batch with exactly the numbers that the same row had in training."""

    preprocess: Mapping[str, Any]
    """`checkpoint.state["preprocess"]`."""
    notes: dict[str, int] = field(default_factory=dict)
    """Notes to print at the end, with the number of occurrences."""

    reads: ClassVar[str] = "rows"
    """What its examples are, for code that reads files: rows, pictures, recordings, texts, arrays, series."""
    refusal: ClassVar[str] = ""
    """Why this kind has no predictions, and what to do instead."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that are read."""
        raise NotImplementedError

    def batch(self, rows: Rows) -> Batch:
        """Return the model's inputs, with weights of one and dummy targets. `DataError` names row and column."""
        raise NotImplementedError

    def filler(self, n: int) -> Any:
        """Return dummy targets of the right shape: tasks look at their shape only."""
        import torch

        kind, labels = self.preprocess.get("targets"), self.preprocess.get("labels", ())
        if kind == "transcripts":
            return torch.full((n, 1), -1, dtype=torch.int64)
        if kind == "classes":
            return torch.zeros(n, dtype=torch.int64)
        scale = self.preprocess.get("target_scale")
        return torch.zeros(n, len(scale["center"]) if scale else max(1, len(labels)))

    def say(self, note: str, count: int) -> None:
        """Count an event for `notes`."""
        if count:
            self.notes[note] = self.notes.get(note, 0) + count


R = TypeVar("R", bound=type[Replay])
_KINDS: dict[str, type[Replay]] = {}


def register_replay(kind: str) -> Callable[[R], R]:
    """Class decorator: register a replay for checkpoints whose `preprocess["kind"]` is `kind`. `ValueError` if the name is taken."""

    def enrol(cls: R) -> R:
        taken = _KINDS.get(kind)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"replay {kind!r} is already {taken.__module__}.{taken.__qualname__}")
        _KINDS[kind] = cls
        return cls

    return enrol


def replay_kinds() -> dict[str, type[Replay]]:
    """Return every registered kind."""
    return dict(_KINDS)


def replay_of(preprocess: Mapping[str, Any]) -> Replay:
    """Return the replay for this checkpoint. `DataError` for a kind that is not registered, or that has no predictions."""
    kind = preprocess.get("kind")
    if kind not in _KINDS:
        raise DataError(
            f"data of kind {kind!r}: no replay is registered for it (registered: {', '.join(sorted(_KINDS))}). "
            "Install the package that brings this kind, or register it with tauon.data.register_replay"
        )
    cls = _KINDS[str(kind)]
    if cls.refusal:
        raise DataError(cls.refusal)
    return cls(preprocess)


def float_batch(replay: Replay, inputs: NDArray[np.float32]) -> Batch:
    """Return a batch of features with dummy targets."""
    import torch

    return Batch(torch.from_numpy(inputs), replay.filler(len(inputs)), torch.ones(len(inputs)))
