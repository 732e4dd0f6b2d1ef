"""A series -> windows for training, validation and test: split by time, scaled with statistics of the training part alone.

A held-out part is forecast from every one of its moments (rolling origin): its targets lie within it, and their context reaches back
into the part before, as in the literature on ETT (Zhou et al. 2021, arXiv:2012.07436). The series is kept once, windows are views.

Shape legend: N moments, B batch, T context, H horizon, C columns of values, F columns read (values, then calendar), K targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.arrays import Normalizer
from tauon.data.augment import Draws
from tauon.data.config import DataConfig
from tauon.data.files import canonical
from tauon.data.preparation import DataSplits, count_as_read, feature_facts, told
from tauon.data.progress import report
from tauon.data.series_augment import SeriesAugmentConfig
from tauon.data.sources.base import Series, SourceConfig
from tauon.data.spelling import nfc
from tauon.data.split import PARTS, Part
from tauon.data.window import WindowConfig, calendar_columns
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["SeriesDataset", "prepare_series", "seasonal_naive_scale"]

_VERSION = 2


def prepare_series(config: DataConfig, sources: dict[Part, SourceConfig], seed: int) -> DataSplits:
    """Read, split by time, scale, cut into windows."""
    source = sources["train"]
    report("read train", 0)
    series = source.series()
    if source.limit is not None:
        n = source.limit
        series = replace(series, times=series.times[:n], values=series.values[:n])
    window = config.window
    T, H = window.context, window.horizon
    spans = _spans(config, len(series))
    _check_lengths(spans, T, H, len(series))
    stop = spans["train"][1]
    _refuse_constant(series, stop)
    kind = "standard" if config.normalize == "auto" else config.normalize
    normalizer = Normalizer.fit(series.values[:stop], kind)
    values = normalizer(series.values)
    calendar = window.calendar
    columns = np.concatenate([values, calendar_columns(series.times, calendar)], axis=1)
    K, season = series.targets, series.season
    naive = seasonal_naive_scale(values[:stop, :K], season)
    shared = {
        "step": series.step, "season": season, "seasonal_naive_mae": naive,
        "scale": normalizer.scale[:K].tolist() if len(normalizer.scale) > 1 else normalizer.scale.tolist() * K,
    }  # fmt: skip

    steps = [dump(a) for a in config.augment]
    for place, step in enumerate(config.augment):
        if not step.series_only:
            raise DataError(f"data.augment.{place}: {step.kind_} is not for time series. There are jitter, scaling and window-slice")
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])
    parts: dict[Part, SeriesDataset] = {}
    for part, (a, b) in spans.items():
        training = part == "train"
        first = np.arange(a + T, b - H + 1, window.stride) if training else np.arange(a, b - H + 1, window.origins)
        facts = {
            "windows": len(first), "moments": b - a, "from": str(series.times[a]), "to": str(series.times[b - 1]),
            "every": window.stride if training else window.origins,
        } | shared  # fmt: skip
        augments = cast("tuple[SeriesAugmentConfig, ...]", config.augment) if training else ()
        parts[part] = SeriesDataset(columns, first - T, series, window, facts, seed=seed, augments=augments)
    digest = hashlib.sha256(
        str(series.times.dtype).encode() + series.times.astype(np.int64).tobytes() + np.ascontiguousarray(series.values).data.tobytes()
    )
    digest.update(canonical([_VERSION, series.names, K, season, spans]).encode())
    made_of = digest.hexdigest()
    facts = {
        "kind": "series", "sources": {"train": source.describe()}, "step": series.step, "season": season, "filled": series.filled,
        "targets": list(series.names[:K]), "inputs": list(series.names[K:]), "window": dump(window),
        "split": {"by": "position", "why": "a series is split by time; held-out contexts reach back", "spans": {p: list(s) for p, s in spans.items()}},
        "parts": {p: {k: v for k, v in d.facts.items() if k not in shared} for p, d in parts.items()},
        "normalize": {"kind": kind, "why": "as set" if config.normalize != "auto" else "the default for series"}, "augment": steps,
        "features": feature_facts(series.values[:stop], series.names), "content": made_of,
        **({"zone": "UTC"} if series.zoned else {}), **told({"train": series.left_out}, series.notes, series.warnings),
    }  # fmt: skip
    preprocess = {
        "kind": "series", "normalize": normalizer.to_json(), "columns": list(series.names), "targets": K, "context": T, "horizon": H,
        "calendar": list(calendar), "step": series.step, "date": nfc(getattr(source, "date", "date")),
        "date_format": getattr(source, "date_format", None), "zoned": series.zoned,
    }  # fmt: skip
    decides = [made_of, dump(window), normalizer.to_json(), steps, seed]
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
        hashlib.sha256(canonical(decides).encode()).hexdigest(), None, preprocess,
    )  # fmt: skip


def _spans(config: DataConfig, n: int) -> dict[Part, tuple[int, int]]:
    """[first, last + 1) of each part, in order of time."""
    _ = config.split.by
    sizes = {"validation": round(config.split.validation * n), "test": round(config.split.test * n)}
    ends = {"train": n - sizes["validation"] - sizes["test"], "validation": n - sizes["test"], "test": n}
    spans: dict[Part, tuple[int, int]] = {}
    start = 0
    for part in PARTS:
        if part == "train" or sizes[part]:
            spans[part] = (start, ends[part])
        start = ends[part]
    return spans


def _check_lengths(spans: dict[Part, tuple[int, int]], T: int, H: int, n: int) -> None:
    for part, (a, b) in spans.items():
        need = T + H if part == "train" else H
        if b - a < need:
            what = f"a window of {T} + {H} steps" if part == "train" else f"a horizon of {H} steps"
            raise DataError(
                f"the {part} part has {b - a} of the series' {n} moments, shorter than {what}. Shorten data.window, or give a longer series"
            )


def _refuse_constant(series: Series, stop: int) -> None:
    still = np.flatnonzero((series.values[:stop] == series.values[0]).all(axis=0))
    if still.size:
        j = int(still[0])
        raise DataError(
            f"column {series.names[j]!r} is {series.values[0, j]:g} at all {stop:,} training moments, so there is nothing to learn from it. "
            "Leave it out with targets: [...]"
        )


def seasonal_naive_scale(values: NDArray[np.float32], season: int) -> list[float | None]:
    """Mean |y_t - y_(t - season)| of each column: what MASE divides by (Hyndman & Koehler 2006). None: shorter than a season, or zero."""
    if len(values) <= season:
        return [None] * values.shape[1]
    wide = values.astype(np.float64)
    found = np.abs(wide[season:] - wide[:-season]).mean(axis=0)
    return [float(v) if v > 0 else None for v in found]


class SeriesDataset:
    """Windows of one series. Example `i` of epoch `e` is a pure function of (seed, e, i); threads may share it."""

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
        """`columns` (N, F), normalised; `starts`: first moment of each window's context."""
        self._columns, self._starts, self._times, self._values = columns, starts, series.times, series.values.shape[1]
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
        """Date of the first moment that example `i` predicts."""
        return str(self._times[self._starts[i] + self._context])

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The windows `index`: inputs BTF and targets BHK float32, weights B of 1."""
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
