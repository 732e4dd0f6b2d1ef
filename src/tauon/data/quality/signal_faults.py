"""Faults of recordings (silent, clipped, offset, extremely short or long) and of series (stuck sensors, single jumps). Missing steps are named by the
source, and drift by `drift.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.clean.signals import clipped_share, level_of, runs_of_equal
from tauon.data.quality.base import SHOWN, DataView, Example, Finding, QualityCheck, counted, examples_of, show
from tauon.data.quality.columns import far_outside, robust_distance

__all__ = ["RecordingFaults", "SeriesFaults"]

SILENT, CLIPPED, OFFSET = -60.0, 0.01, 0.05
"""Level in decibels of full scale; share of clipped samples; mean of the samples, full scale is 1."""
STUCK = 24
"""Steps for which a sensor repeats one value."""
JUMP, BEYOND = 10.0, 3.0
"""A value jumps if it is this many robust standard deviations from the mean of its neighbours, and this many times as far as 1 in 1,000 values."""


@register("recording-faults")
class RecordingFaults(QualityCheck):
    """Recordings that are silent, clipped, offset, or extremely short or long."""

    kinds = ("recordings",)
    title = "Faults of recordings"

    def find(self, view: DataView) -> Iterator[Finding]:
        levels = [level_of(wave) for wave in view.waves]
        clipped = [clipped_share(wave) for wave in view.waves]
        means = [float(wave.mean()) if len(wave) else 0.0 for wave in view.waves]
        seconds = np.array([len(wave) / view.rate for wave in view.waves])
        far = far_outside(seconds)
        usual = f"usual {np.percentile(seconds, 5):.2f} to {np.percentile(seconds, 95):.2f} s"
        asked: tuple[tuple[str, str, list[int], dict[int, str]], ...] = (
            ("silent recordings", "silent", [i for i, v in enumerate(levels) if v < SILENT], {i: f"{v:.0f} dB of full scale" for i, v in enumerate(levels)}),
            ("clipped recordings", "clipped", [i for i, v in enumerate(clipped) if v > CLIPPED], {i: f"{v:.1%} of the samples" for i, v in enumerate(clipped)}),
            (
                "offset recordings", "not centred at zero",
                [i for i, v in enumerate(means) if abs(v) > OFFSET and levels[i] >= SILENT], {i: f"mean {v:.2f} of full scale" for i, v in enumerate(means)},
            ),
            ("outliers", "extremely short or long", np.flatnonzero(far).tolist(), {i: f"{v:.2f} s, {usual}" for i, v in enumerate(seconds)}),
        )  # fmt: skip
        for name, word, found, notes in asked:
            rows = tuple((i,) for i in found)
            if rows:
                why = [notes[i] for i in found]
                message = f"{counted(len(rows), 'recording')} {word}"
                yield Finding(name, "warn", message, rows, examples_of(view, rows, lambda i: show(view, i), lambda k, why=why: why[k]))  # type: ignore[misc]


@register("series-faults")
class SeriesFaults(QualityCheck):
    """Sensors that repeat one value, values that jump for one step."""

    kinds = ("series",)
    title = "Faults of series"

    def find(self, view: DataView) -> Iterator[Finding]:
        columns = {name: np.asarray(values, np.float64) for name, values in view.columns.items()}
        stuck = [(a, b, name) for name, values in columns.items() for a, b in runs_of_equal(values, STUCK) if b - a < len(values)]
        if stuck:
            together = _periods(stuck)
            rows = tuple((min(a for a, _, _ in period), max(b for _, b, _ in period) - 1) for period in together)
            named = _distinct([stretch for period in together for stretch in period])
            said = "1 period has" if len(rows) == 1 else f"{len(rows):,} periods have"
            message = (
                f"{said} the same value for at least {STUCK} steps ({len(stuck):,} stretches, of {', '.join(sorted(named))}): a stuck sensor, filled gaps, or "
                "an interruption"
            )
            texts = ["; ".join(f"{name} = {columns[name][a]:g} for {b - a:,} steps" for a, b, name in period) for period in together]
            examples = tuple(
                Example(row, (f"{view.place(row[0])} to {view.place(row[1])}",), text)
                for row, text in zip(rows[:SHOWN], texts, strict=False)
            )
            stretches = [[name, a, b] for a, b, name in stuck[:1000]]
            yield Finding("stuck values", "warn", message, rows, examples, named, {"stretches": stretches})
        jumps = [(i, name) for name, values in columns.items() for i in jumps_of(values).tolist()]
        if jumps:
            places = tuple((i,) for i, _ in jumps)
            steps = [f"{name}: {_neighbours(columns[name], i)}" for i, name in jumps]
            named_columns = tuple(dict.fromkeys(name for _, name in jumps))
            message = f"{len(places):,} values jump away from both neighbours and back ({', '.join(named_columns)}): faults of measurement, or events"
            yield Finding("jumps", "warn", message, places, _examples(view, places, steps), named_columns)


def _distinct(stuck: list[tuple[int, int, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, _, name in stuck))


def _examples(view: DataView, places: tuple[tuple[int], ...], texts: list[str]) -> tuple[Example, ...]:
    return tuple(Example(p, (view.place(p[0]),), text) for p, text in zip(places[:SHOWN], texts, strict=False))


def _periods(stuck: list[tuple[int, int, str]]) -> list[list[tuple[int, int, str]]]:
    """Return stretches that overlap together, as one outage stops several sensors; the one with the longest stretch first."""
    found: list[list[tuple[int, int, str]]] = []
    reached = -1
    for stretch in sorted(stuck):
        if stretch[0] >= reached:
            found.append([])
        found[-1].append(stretch)
        reached = max(reached, stretch[1])
    return sorted(found, key=lambda period: -max(b - a for a, b, _ in period))


def _neighbours(values: NDArray[np.float64], i: int) -> str:
    return " → ".join(f"{v:g}" for v in values[max(0, i - 1) : i + 2])


def jumps_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places of single values far from both neighbours, which are close to each other.

    >>> x = np.sin(np.arange(200) / 5)
    >>> x[70] = 30
    >>> jumps_of(x).tolist()
    [70]
    """
    if len(values) < 50 or len(np.unique(values)) < 10:
        return np.empty(0, np.int64)
    off = np.zeros(len(values))
    off[1:-1] = values[1:-1] - (values[:-2] + values[2:]) / 2
    apart = np.full(len(values), np.inf)
    apart[1:-1] = np.abs(values[2:] - values[:-2])
    distance = robust_distance(off)
    usual = 99.5 if len(values) >= 1000 else 97  # one jump moves three of the differences: of a short series that is more than 0.5%
    far = distance > max(JUMP, BEYOND * float(np.percentile(distance, usual)))
    return np.flatnonzero(far & (apart < np.abs(off) / 2))
