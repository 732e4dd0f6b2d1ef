"""A series -> windows for training, validation and test: split by time, scaled with statistics of the training part alone.

A held-out part is forecast from every one of its time steps (rolling origin): its targets are within it, and their context reaches back
into the part before, as in the literature on ETT (Zhou et al. 2021, arXiv:2012.07436).

Shape legend: as in `data/series.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from tauon.config import dump, register
from tauon.data.arrays import Normalizer
from tauon.data.config import DataConfig
from tauon.data.facts import feature_facts, notices
from tauon.data.files import canonical
from tauon.data.kinds.base import ChosenRows, DataKind, Fitted, Parts, Request
from tauon.data.kinds.steps import augment_steps
from tauon.data.progress import report
from tauon.data.series import SeriesDataset, seasonal_naive_scale
from tauon.data.series_augment import SeriesAugmentConfig
from tauon.data.sources.base import Series, SourceConfig
from tauon.data.spelling import nfc
from tauon.data.split import PARTS, Part, SplitConfig
from tauon.data.window import calendar_columns
from tauon.errors import DataError

__all__ = ["SeriesKind"]

_VERSION = 2


@register("series")
class SeriesKind(DataKind[Series]):
    """Windows of one series."""

    input_kind, output_kind, words = "series", "series", "a time series"
    reads = ("normalize", "augment", "window")
    cleans, records = ("series",), "time steps"

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        split: SplitConfig = config.raw_value("split")
        by, normalize = split.raw_value("by"), config.raw_value("normalize")
        if by in ("row", "document"):
            yield "split.by", f"{by} would train on data from after the held-out part; set split.by: position for a series"
        if split.raw_value("folds") is not None:
            yield "split.folds", "would train on data from after the held-out part; remove folds: the end of a series is held out"
        if getattr(config.raw_value("source"), "date", "date") is None and config.raw_value("window").raw_value("calendar"):
            yield "window.calendar", "needs dates, but data.source.date is null; remove it"
        for name in ("validation", "test"):
            if config.raw_value(name) is not None:
                yield (
                    name,
                    "a series cannot have its own held-out source: its end is held out (data.split), so that contexts reach back; remove it",
                )
        if normalize == "bounds":
            yield "normalize", "bounds is only for tables; for a series use standard, robust or minmax"
        if normalize in ("quantile", "unit"):
            yield "normalize", f"{normalize} cannot be inverted to the units of a series; use standard, robust or minmax"

    def read(self, source: SourceConfig, part: Part, request: Request) -> Series:
        report(f"read {part}", 0)
        series = source.series()
        n = source.limit
        return series if n is None else replace(series, times=series.times[:n], values=series.values[:n])

    def count(self, data: Series) -> int:
        return len(data)

    def split(self, whole: Mapping[Part, Series], request: Request) -> tuple[Parts[Series], dict[str, Any]]:
        """Split by time: the rows of a part are its time steps."""
        series, window = whole["train"], request.config.window
        spans = _spans(request.config, len(series))
        _check_lengths(spans, window.context, window.horizon, len(series))
        why = "a series is split by time; held-out contexts reach back"
        facts = {"by": "position", "why": why, "spans": {p: list(s) for p, s in spans.items()}}
        return {part: ChosenRows(series, np.arange(*span, dtype=np.int64)) for part, span in spans.items()}, facts

    def fit(self, parts: Parts[Series], request: Request) -> Fitted:
        config, window, series = request.config, request.config.window, parts["train"].data
        spans = {part: (int(rows.index[0]), int(rows.index[-1]) + 1) for part, rows in parts.items()}
        stop, K = spans["train"][1], series.targets
        _refuse_constant(series, stop)
        kind = "standard" if config.normalize == "auto" else config.normalize
        normalizer = Normalizer.fit(series.values[:stop], kind)
        values = normalizer(series.values)
        refusal = "is not for time series. Use jitter, scaling or window-slice"
        steps = augment_steps(config, lambda step: step.series_only, refusal)
        shared = {
            "step": series.step, "season": series.season, "seasonal_naive_mae": seasonal_naive_scale(values[:stop, :K], series.season),
            "scale": normalizer.scale[:K].tolist() if len(normalizer.scale) > 1 else normalizer.scale.tolist() * K,
            "center": normalizer.center[:K].tolist() if len(normalizer.center) > 1 else normalizer.center.tolist() * K,
        }  # fmt: skip
        columns = np.concatenate([values, calendar_columns(series.times, window.calendar)], axis=1)
        datasets = {part: _windows(part, span, columns, series, shared, request) for part, span in spans.items()}
        content = _content(series, spans)
        facts = {
            "step": series.step, "season": series.season, "filled": series.filled,
            "targets": list(series.names[:K]), "inputs": list(series.names[K:]), "window": dump(window),
            "parts": {p: {k: v for k, v in d.facts.items() if k not in shared} for p, d in datasets.items()},
            "normalize": {"kind": kind, "why": "as set" if config.normalize != "auto" else "the default for series"}, "augment": steps,
            "features": feature_facts(series.values[:stop], series.names),
            **({"zone": "UTC"} if series.zoned else {}), **notices({"train": series.left_out}, series.notes, series.warnings),
        }  # fmt: skip
        decides = [dump(window), normalizer.to_json(), steps, request.seed]
        return Fitted({**datasets}, content, decides, _preprocess(series, normalizer, request), facts)


def _preprocess(series: Series, normalizer: Normalizer, request: Request) -> dict[str, Any]:
    window, source = request.config.window, request.sources["train"]
    date = getattr(source, "date", "date")
    return {
        "kind": "series", "normalize": normalizer.to_json(), "columns": list(series.names), "targets": series.targets,
        "context": window.context, "horizon": window.horizon, "calendar": list(window.calendar), "step": series.step,
        "date": None if date is None else nfc(date), "date_format": getattr(source, "date_format", None), "zoned": series.zoned,
    }  # fmt: skip


def _windows(
    part: Part, span: tuple[int, int], columns: np.ndarray, series: Series, shared: dict[str, Any], request: Request
) -> SeriesDataset:
    """Training windows are inside their part; held-out windows start to predict at each time step of their part."""
    (a, b), window, training = span, request.config.window, part == "train"
    T, H = window.context, window.horizon
    first = np.arange(a + T, b - H + 1, window.stride) if training else np.arange(a, b - H + 1, window.origins)
    facts = {
        "windows": len(first), "moments": b - a, "from": str(series.times[a]) if series.dated else f"row {a}",
        "to": str(series.times[b - 1]) if series.dated else f"row {b - 1}",
        "every": window.stride if training else window.origins,
    } | shared  # fmt: skip
    augments = cast("tuple[SeriesAugmentConfig, ...]", request.config.augment) if training else ()
    return SeriesDataset(columns, first - T, series, window, facts, seed=request.seed, augments=augments)


def _content(series: Series, spans: Mapping[Part, tuple[int, int]]) -> str:
    digest = hashlib.sha256(
        str(series.times.dtype).encode() + series.times.astype(np.int64).tobytes() + np.ascontiguousarray(series.values).data.tobytes()
    )
    digest.update(canonical([_VERSION, series.names, series.targets, series.season, dict(spans)]).encode())
    return digest.hexdigest()


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
            needed = f"a window of {T} + {H} steps" if part == "train" else f"a horizon of {H} steps"
            raise DataError(
                f"the {part} part has {b - a} of the series' {n} time steps, fewer than {needed}. Shorten data.window, or use a longer series"
            )


def _refuse_constant(series: Series, stop: int) -> None:
    still = np.flatnonzero((series.values[:stop] == series.values[0]).all(axis=0))
    if still.size:
        j = int(still[0])
        raise DataError(
            f"column {series.names[j]!r} is {series.values[0, j]:g} at all {stop:,} training time steps, so a model cannot learn from it. "
            "Leave it out with data.source.targets: [...]"
        )
