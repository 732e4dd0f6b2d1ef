"""The order of training windows drawn from several sources: a pure function of (seed, position), like the order of one source.

The stream is cut into phases. Within a phase the sources follow each other in fixed proportions (`interleave.py`); a phase ends where the
curriculum changes the weights, or where a source has had all the epochs it may have. Within a source the windows come in shuffled order,
each once in an epoch of that source. Knows numbers only: how many windows each source has, not what is in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import key
from tauon.data.interleave import Interleaving, interleave
from tauon.data.order import ShuffledOrder

__all__ = ["Change", "MixtureOrder", "Phase"]


@dataclass(frozen=True)
class Change:
    """From some point of training on, other weights."""

    weights: tuple[float, ...]
    step: int | None = None
    share: float | None = None
    """Share of all steps of the training, if `step` is None."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the stream with one set of proportions."""

    start: int
    sequence: Interleaving
    before: NDArray[np.int64]
    """(S) samples of each source before the phase."""


class MixtureOrder:
    """`at(position)` returns (epoch of the source, window) of each position of the endless stream."""

    setting, words = "data.source", "samples the sources of a mixture by weights"

    def __init__(
        self, windows: Sequence[int], weights: Sequence[float], seed: int, *, epochs: Sequence[float | None] = (), changes: Sequence[Change] = ()
    ) -> None:  # fmt: skip
        """`windows`: of each source; `weights`: relative, 0 for none; `epochs`: how many passes over each source are made at most, None: any
        number. If every source has such a limit and all are used up, the stream begins again.
        """
        self.windows, self.weights = tuple(windows), tuple(weights)
        allowed = list(epochs) or [None] * len(self.windows)
        self.most = [None if e is None else max(1, round(e * n)) for e, n in zip(allowed, self.windows, strict=True)]
        self.changes = tuple(changes)
        self._first = np.cumsum(self.windows) - np.array(self.windows)
        self._orders = [ShuffledOrder(n, key(seed, "source", k)) for k, n in enumerate(self.windows)]
        self._plan([])

    @property
    def count(self) -> int:
        """Windows in an epoch of the mixture: all that the sources may give, if each has a limit; else as many as they have together."""
        return self.total if self.total is not None else sum(self.windows)

    def bound(self, first: Callable[[int], int], steps: int | None = None) -> Self:
        """Return the same order for a training whose step s begins at position `first(s)` and that has `steps` steps. A change at a share of
        the steps has no effect while their number is unknown.
        """
        if not self.changes:
            return self
        known = [
            (c.step if c.step is not None else None if steps is None else round((c.share or 0) * steps), c.weights) for c in self.changes
        ]
        bound = copy.copy(self)
        bound._plan(sorted((first(step), weights) for step, weights in known if step is not None))
        return bound

    def _plan(self, changes: Sequence[tuple[int, Sequence[float]]]) -> None:
        """Lay the phases out."""
        self.phases: list[Phase] = []
        self.total: int | None = None
        start, drawn, weights, coming = 0, np.zeros(len(self.windows), np.int64), self.weights, list(changes)
        while True:
            while coming and coming[0][0] <= start:
                weights = tuple(coming.pop(0)[1])
            left = [None if m is None else m - int(d) for m, d in zip(self.most, drawn, strict=True)]
            if all(n == 0 for n in left):
                self.total, self._all = start, drawn
                break
            usable = [w if n != 0 else 0.0 for w, n in zip(weights, left, strict=True)]
            if not any(usable):  # what the weights ask for is used up: the others continue, by size
                usable = [float(n) if m != 0 else 0.0 for n, m in zip(self.windows, left, strict=True)]
            sequence = interleave(usable)
            self.phases.append(Phase(start, sequence, drawn))
            ends = [sequence.after(i, n) for i, n in enumerate(left) if n and sequence.counts[i]]
            ends += [coming[0][0] - start] if coming else []
            if not ends:
                break
            start, drawn = start + min(ends), drawn + sequence.before(min(ends))
        self._starts = np.array([p.start for p in self.phases])

    def drawn(self, positions: int) -> NDArray[np.int64]:
        """Return (S) how many windows of each source are among the first `positions`."""
        turns, position = (0, positions) if self.total is None else divmod(positions, self.total)
        phase = self.phases[int(np.searchsorted(self._starts, position, side="right")) - 1]
        found: NDArray[np.int64] = phase.before + phase.sequence.before(position - phase.start)
        return found + turns * self._all if turns else found

    def source_at(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (source, number of its windows before) of each position."""
        turn = np.zeros_like(position)
        if self.total is not None:
            turn, position = np.divmod(position, self.total)
        which = np.searchsorted(self._starts, position, side="right") - 1
        source, number = np.empty_like(position), np.empty_like(position)
        for p in np.unique(which).tolist():
            here, phase = which == p, self.phases[p]
            source[here], rank = phase.sequence.at(position[here] - phase.start)
            number[here] = phase.before[source[here]] + rank
        if self.total is not None:
            number += turn * self._all[source]
        return source, number

    def at(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (epoch of the source, window) of each position, in any order."""
        source, number = self.source_at(np.asarray(position, np.int64))
        epoch, window = np.empty_like(number), np.empty_like(number)
        for k in np.unique(source).tolist():
            here = source == k
            epoch[here], window[here] = self._orders[k].at(number[here])
            window[here] += self._first[k]
        return epoch, window
