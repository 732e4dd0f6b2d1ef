"""Filters of images, recordings and series: what carries nothing, or was recorded badly. Files that cannot be read are the sources' matter
(`on_corrupt: skip`); gaps and repeated moments of a series are, too (`data.source`), with daylight saving.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from tauon.config import Count, Fraction, register
from tauon.data.clean.base import RowFilter, RowVerdicts
from tauon.data.sources.base import Arrays, Series, Signals
from tauon.errors import DataError

__all__ = ["BlankConfig", "ClippedConfig", "DurationConfig", "SilentConfig", "StuckConfig", "clipped_share", "level_of", "runs_of_equal"]


@register("blank")
class BlankConfig(RowFilter):
    """Reject images that show nothing: nearly all pixels have the same value."""

    min_spread: NonNegativeFloat = 0.01
    """Least standard deviation of the pixels, as a share of the range from black to white (of the whole set, where it is not bytes)."""
    cleans: ClassVar[tuple[str, ...]] = ("images",)

    def apply(self, data: Arrays) -> RowVerdicts:
        verdicts, pixels = RowVerdicts(), data.features
        full = 255.0 if pixels.dtype == np.uint8 else float(pixels.max() - pixels.min()) or 1.0
        spread = np.array([float(image.std(dtype=np.float64)) / full for image in pixels])
        rows = np.flatnonzero(spread < self.min_spread)
        verdicts.reject(
            rows, "blank", {int(r): f"the pixels spread over {spread[r]:.2%} of the range, less than {self.min_spread:.2%}" for r in rows}
        )
        return verdicts


@register("silent")
class SilentConfig(RowFilter):
    """Reject recordings that are silent."""

    min_level: float = Field(default=-60.0, le=0)
    """Least root mean square, in decibels of full scale (dBFS)."""
    cleans: ClassVar[tuple[str, ...]] = ("signals",)

    def apply(self, data: Signals) -> RowVerdicts:
        verdicts = RowVerdicts()
        for row, wave in enumerate(data.waves):
            level = level_of(wave)
            if level < self.min_level:
                verdicts.reject([row], "silent", f"{level:.0f} dB of full scale on average, less than {self.min_level:g} dB")
        return verdicts


@register("clipped")
class ClippedConfig(RowFilter):
    """Reject recordings that are clipped: too many samples at the limit of the scale, several in a row."""

    max_share: Fraction = Field(default=0.01, ge=0, le=1)
    """Largest share of samples in runs of three or more at the recording's own largest value, if that is 0.99 or more."""
    cleans: ClassVar[tuple[str, ...]] = ("signals",)

    def apply(self, data: Signals) -> RowVerdicts:
        verdicts = RowVerdicts()
        for row, wave in enumerate(data.waves):
            share = clipped_share(wave)
            if share > self.max_share:
                verdicts.reject([row], "clipped", f"{share:.1%} of the samples are clipped, more than {self.max_share:.1%}")
        return verdicts


@register("duration")
class DurationConfig(RowFilter):
    """Reject recordings that are too short or too long."""

    min: NonNegativeFloat = 0.1
    """Least length in seconds."""
    max: float | None = Field(default=None, gt=0)
    """Greatest length in seconds. None: any."""
    cleans: ClassVar[tuple[str, ...]] = ("signals",)

    def apply(self, data: Signals) -> RowVerdicts:
        verdicts = RowVerdicts()
        seconds = np.array([len(wave) / data.rate for wave in data.waves])
        for rule, rows, bound, word in (
            ("too_short", np.flatnonzero(seconds < self.min), self.min, "less"),
            ("too_long", np.flatnonzero(seconds > (self.max or np.inf)), self.max, "more"),
        ):
            verdicts.reject(rows, rule, {int(r): f"{seconds[r]:.3f} s, {word} than {bound:g} s" for r in rows})
        return verdicts


@register("stuck")
class StuckConfig(RowFilter):
    """Find a sensor that repeats one value while others of its column change: it is reported, or filled by a straight line.

    A moment of a series cannot be left out, because windows need equal steps.
    """

    steps: Count = Field(default=24, ge=3)
    """Fewest equal values in a row."""
    zeros: bool = False
    """Whether zeros count: rain and sales are zero for long."""
    action: Literal["report", "interpolate"] = "report"
    """report: say where; interpolate: replace all but the first of the equal values by a straight line to the next value."""
    cleans: ClassVar[tuple[str, ...]] = ("series",)

    def apply(self, data: Series) -> RowVerdicts:
        verdicts, values = RowVerdicts(), data.values.copy()
        changed = np.zeros(len(values), bool)
        for column, name in enumerate(data.names):
            runs = [(a, b) for a, b in runs_of_equal(data.values[:, column], self.steps) if self.zeros or data.values[a, column] != 0]
            total = sum(b - a for a, b in runs)
            if not runs or total == len(values):
                continue
            first = str(data.times[runs[0][0]]) if data.dated else f"row {runs[0][0]}"
            verdicts.notes.append(
                f"column {name!r} repeats one value {len(runs):,} times for {self.steps} steps or more ({total:,} of {len(values):,} steps), "
                f"first from {first}" + ("; filled by straight lines" if self.action == "interpolate" else "")
            )
            if self.action == "interpolate":
                lost = np.zeros(len(values), bool)
                for a, b in runs:
                    lost[a + 1 : b] = True
                there = np.flatnonzero(~lost)
                values[lost, column] = np.interp(np.flatnonzero(lost), there, data.values[there, column])
                changed |= lost
        if changed.any():
            verdicts.changed_rows = np.flatnonzero(changed).tolist()
            verdicts.changed, verdicts.data = int(changed.sum()), replace(data, values=values)
        return verdicts


def runs_of_equal(values: NDArray[Any], least: int) -> list[tuple[int, int]]:
    """Return (first, last + 1) of each run of at least `least` equal values."""
    if not len(values):
        raise DataError("data.clean: the series has no time steps. Check data.source.path and its limit")
    edges = np.flatnonzero(np.diff(values)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(values)]])
    long = ends - starts >= least
    return [*zip(starts[long].tolist(), ends[long].tolist(), strict=True)]


def level_of(wave: NDArray[np.float32]) -> float:
    """Return the root mean square of a recording in decibels of full scale; -200 if it is empty."""
    return 10 * float(np.log10(max(float(np.mean(np.square(wave, dtype=np.float64))), 1e-20))) if len(wave) else -200.0


def clipped_share(wave: NDArray[np.float32]) -> float:
    """Return the share of samples in runs of three or more at the recording's largest value, if that is 0.99 or more."""
    top = float(np.abs(wave).max(initial=0.0))
    if top < 0.99:
        return 0.0
    at = np.abs(wave) >= top * 0.999
    edges = np.flatnonzero(np.diff(np.concatenate([[False], at, [False]])))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= 3].sum()) / len(wave)
