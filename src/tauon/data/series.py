"""Windows of a series as training examples: each has a context and the values that follow. The series is stored once, windows are views.

Shape legend: N time steps, B batch, T context, H horizon, C columns of values, F columns read (values, then calendar), K targets.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.augment import Draws
from tauon.data.series_augment import SeriesAugmentConfig
from tauon.data.sources.base import Series
from tauon.data.window import WindowConfig
from tauon.types import Batch, DataSpec

__all__ = ["SeriesDataset", "seasonal_naive_scale"]


def seasonal_naive_scale(values: NDArray[np.float32], season: int) -> list[float | None]:
    """Mean |y_t - y_(t - season)| of each column: the denominator of MASE (Hyndman & Koehler 2006). None: shorter than a season, or zero."""
    if len(values) <= season:
        return [None] * values.shape[1]
    wide = values.astype(np.float64)
    found = np.abs(wide[season:] - wide[:-season]).mean(axis=0)
    return [float(v) if v > 0 else None for v in found]


class SeriesDataset:
    """Windows of one series. Example `i` of epoch `e` is a pure function of (seed, e, i); safe to share between threads."""

    def __init__(
        self,
        columns: NDArray[np.float32],
        starts: NDArray[np.int64],
        series: Series,
        window: WindowConfig,
        facts: dict[str, Any],
        *,
        seed: int = 0,
        augments: Sequence[SeriesAugmentConfig] = (),
    ) -> None:
        """`columns` (N, F), normalised; `starts`: first time step of each window's context."""
        self._columns, self._starts, self._times, self._values = columns, starts, series.times, series.values.shape[1]
        self._dated = series.dated
        self._context, self._horizon, self._targets = window.context, window.horizon, series.targets
        self._seed, self._augments = seed, tuple(augments)
        self.spec = DataSpec(
            input_shape=(window.context, columns.shape[1]), outputs=series.targets, labels=series.names[: series.targets],
            horizon=window.horizon,
        )  # fmt: skip
        self.facts = facts

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, i: int) -> str:
        """Return the date of the first time step that example `i` predicts."""
        step = int(self._starts[i]) + self._context
        return str(self._times[step]) if self._dated else f"row {step}"

    def times(self, i: int) -> list[str]:
        """Return the date of each time step of example `i`: of its context, then of its horizon."""
        start = int(self._starts[i])
        return [str(t) for t in self._times[start : start + self._context + self._horizon]]

    @property
    def history(self) -> int:
        """Number of steps that are known when the first example is forecast."""
        return int(self._starts.min()) + self._context if len(self._starts) else 0

    def earlier(self, index: NDArray[np.int64], lag: int) -> NDArray[np.float32]:
        """Return BHK: for each step to predict, the value of the targets the fewest whole `lag`s earlier that lies before the forecast begins; the last
        known value where the series does not reach that far. `lag` 1: the last known value for every step.
        """
        ahead = np.arange(self._horizon)
        begin = self._starts[np.asarray(index, np.int64)][:, None] + self._context
        at = begin + ahead - lag * (ahead // lag + 1)
        return self._columns[np.where(at < 0, begin - 1, at)][:, :, : self._targets]

    def without_augmentation(self) -> Self:
        """Return the same examples without augmentation."""
        shown = copy.copy(self)
        shown._augments = ()
        return shown

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the windows `index`: inputs BTF and targets BHK float32, weights B of 1."""
        import torch

        index = np.asarray(index, np.int64)
        at = self._starts[index][:, None] + np.arange(self._context + self._horizon)
        whole = torch.from_numpy(self._columns[at])
        if self._augments:
            values = whole[:, :, : self._values]
            for place, step in enumerate(self._augments):
                values = step.warp(values, self._context, Draws(self._seed, place, epoch, index))
            whole = torch.cat([values, whole[:, :, self._values :]], dim=2)
        inputs, targets = whole[:, : self._context], whole[:, self._context :, : self._targets]
        return Batch(inputs.contiguous(), targets.contiguous(), torch.ones(len(index)), None, torch.from_numpy(index.copy()))
