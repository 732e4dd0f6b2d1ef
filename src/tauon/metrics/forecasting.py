"""Metrics of forecasts from a rolling origin: MSE, MAE, MASE; with quantiles the pinball loss and interval coverage.

Every window counts (the literature's loaders dropped the last batch: Qiu et al. 2024, arXiv:2403.20150), every step and target alike.
Only sums are stored, no predictions: memory is O(targets), for any number of windows. Windows overlap, so intervals come from
resampling blocks of neighbours as long as context and horizon together, not single windows. Runs no model.

Legend: B windows of a tile, H horizon, K targets, Q quantiles, R blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tauon.errors import DataError
from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Better, Metric, Scores

__all__ = ["ForecastSums"]

_MOST_BLOCKS = 4096
_NEAR_ZERO = 0.01
"""Share of the mean size of the true values below which none may be for percentage errors to mean something."""
_FLOOR_BLOCKS = 8  # fewer blocks cannot estimate how much another period would differ


class ForecastSums:
    """Sums up tiles of predictions; `finish` returns the metrics."""

    def __init__(self, labels: Sequence[str], facts: dict[str, Any], *, length: int) -> None:
        """`facts` of the data set: seasonal_naive_mae, season, scale, by target. `length`: windows per block."""
        self.labels, self.facts = list(labels), facts
        self.windows = 0
        self.broken = 0
        self.length = max(1, length)
        self.blocks: list[np.ndarray] = []
        """For each block: windows, then for each target: squared errors, absolute errors, pinball of each quantile, inside each interval."""
        self.levels: tuple[float, ...] = ()
        self.crossed = 0.0
        self._horizon = 0
        self._steps: np.ndarray | None = None
        """Sums of absolute errors of each step and target, H x K."""
        self._smallest, self._sizes, self._finite = math.inf, 0.0, 0
        """Of the true values in their own unit: the smallest size, the sum of sizes, their number."""

    def add(self, outputs: dict[str, np.ndarray]) -> None:
        """Add one tile: predictions and targets BHK; optionally quantiles BHKQ, crossed B and levels BQ."""
        p, t = (np.asarray(outputs[k], np.float64) for k in ("predictions", "targets"))
        if p.shape != t.shape:
            raise DataError(f"the model predicts {p.shape[1:]} (steps, targets) per window, but the data set has {t.shape[1:]}")
        self._horizon = p.shape[1]
        parts = [np.square(p - t).mean(1), np.abs(p - t).mean(1)]
        if "quantiles" in outputs:
            q, self.levels = np.asarray(outputs["quantiles"], np.float64), tuple(float(round(v, 6)) for v in outputs["levels"][0])
            error = t[..., None] - q
            parts += [np.maximum(level * error[..., i], (level - 1) * error[..., i]).mean(1) for i, level in enumerate(self.levels)]
            parts += [((t >= q[..., a]) & (t <= q[..., b])).mean(1) for a, b, _ in intervals_of(self.levels)]
            self.crossed += float(outputs["crossed"].sum())
        parts += self._relative(p, t)
        rows = np.stack(parts, axis=2)  # B K columns
        fine = np.isfinite(rows).all((1, 2))
        steps = np.abs(p - t)[fine].sum(0)
        self._steps = steps if self._steps is None else self._steps + steps
        self.broken += int((~fine).sum())
        for i in range(len(rows)):
            block = self.windows // self.length
            if block == len(self.blocks):
                if block == _MOST_BLOCKS:  # merge neighbours: half as many blocks, twice as long
                    self.blocks = [a + b for a, b in zip(self.blocks[::2], self.blocks[1::2], strict=True)]
                    self.length *= 2
                    block = self.windows // self.length
                self.blocks.append(np.zeros(1 + rows[0].size))
            if fine[i]:
                self.blocks[block] += np.concatenate([[1.0], rows[i].ravel()])
            self.windows += 1

    def _relative(self, p: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """Return each window's and target's absolute percentage error and its symmetric form, BK, in the unit of the series; nothing if it is unknown."""
        scale, center = self.facts.get("scale"), self.facts.get("center")
        if not scale or not center:
            return []
        p, t = (v * np.asarray(scale) + np.asarray(center) for v in (p, t))
        size, error = np.abs(t), np.abs(p - t)
        self._smallest = min(self._smallest, float(size.min(initial=math.inf)))
        self._sizes, self._finite = self._sizes + float(size.sum()), self._finite + size.size
        both = np.abs(p) + size
        symmetric = 2 * np.divide(error, both, out=np.zeros_like(error), where=both > 0)
        return [np.divide(error, size, out=np.zeros_like(error), where=size > 0).mean(1), symmetric.mean(1)]

    def finish(self, *, confidence: float, resamples: int, seed: int) -> Scores:
        """Return the fields of an `Evaluation`."""
        counts = {"windows": self.windows, "steps": self.windows * self._horizon, "targets": len(self.labels)}
        if self.broken:
            reason = f"{self.broken} of {self.windows} windows have forecasts that are not finite"
            metrics = {k: Metric.undefined(reason, n=self.windows, better="lower", about=_ABOUT[k]) for k in ("mse", "mae")}
            return {"primary": "mse", "metrics": metrics, "counts": counts, "notes": [reason]}
        K = len(self.labels)
        whole = np.stack(self.blocks)
        columns = (whole.shape[1] - 1) // K
        enough = len(whole) >= _FLOOR_BLOCKS
        drawn = resample_sums(whole, resamples, generator(seed, "forecasting")) if enough else whole.sum(0, keepdims=True)
        total = np.array([math.fsum(c) for c in whole.T])
        mean_KC = total[1:].reshape(K, columns) / total[0]
        drawn_RKC = (drawn[:, 1:] / drawn[:, :1]).reshape(len(drawn), K, columns)
        few = "" if enough else f"no interval: {self.windows} windows make {len(whole)} blocks that do not overlap, too few to resample"

        def metric(name: str, value: float, values_R: np.ndarray, better: Better = "lower", about: str = "", said: str = "") -> Metric:
            about = about or _ABOUT[name]
            if few:
                return Metric(value, None, None, self.windows, "none", better, about, "; ".join(filter(None, (said, few))))
            unit = f"{len(whole)} blocks of {self.length} windows"
            return Metric.bootstrapped(value, percentile(values_R, confidence), self.windows, better, about, said, unit=unit)

        naive: list[float | None] = self.facts.get("seasonal_naive_mae") or [None] * K
        metrics = {
            "mse": metric("mse", float(mean_KC[:, 0].mean()), drawn_RKC[:, :, 0].mean(1)),
            "mae": metric("mae", float(mean_KC[:, 1].mean()), drawn_RKC[:, :, 1].mean(1)),
        }
        season = self.facts.get("season", 1)
        about = _ABOUT["mase"].format(season=season)
        known = [k for k in range(K) if naive[k]]
        if len(known) == K:
            scale_K = np.array([float(naive[k] or 1) for k in range(K)])
            metrics["mase"] = metric("mase", float((mean_KC[:, 1] / scale_K).mean()), (drawn_RKC[:, :, 1] / scale_K).mean(1), about=about)
        else:
            reason = "the training part is no longer than a season, or repeats itself exactly"
            metrics["mase"] = Metric.undefined(reason, n=self.windows, better="lower", about=about)
        Q, notes = len(self.levels), []
        if Q:
            metrics |= self._of_quantiles(mean_KC, drawn_RKC, metric)
            notes.append(f"{self.crossed / self.windows:.2%} of neighbouring quantiles crossed and were sorted.")
        scale = self.facts.get("scale") or [1.0] * K
        if K == 1:
            about = "mean |forecast - truth| in the unit of the series"
            metrics["mae_in_units"] = metric("mae", float(mean_KC[0, 1]) * scale[0], drawn_RKC[:, 0, 1] * scale[0], about=about)
        if self._finite:
            if self._smallest >= _NEAR_ZERO * self._sizes / self._finite:
                metrics["mape"] = metric("mape", float(mean_KC[:, -2].mean()), drawn_RKC[:, :, -2].mean(1))
            metrics["smape"] = metric("smape", float(mean_KC[:, -1].mean()), drawn_RKC[:, :, -1].mean(1))
        rows = self._by_target(mean_KC, drawn_RKC, metric, about) if K > 1 else []
        found: Scores = {"primary": "pinball" if Q else "mse", "metrics": metrics, "per_class": rows, "counts": counts, "notes": notes}
        if self._steps is not None:
            by_step = self._steps.mean(1) / total[0] * (scale[0] if K == 1 else 1.0)
            found["by_horizon"] = {"mae": by_step.tolist(), "unit": "series" if K == 1 else "normalised"}
        return found

    def _of_quantiles(self, mean_KC: np.ndarray, drawn_RKC: np.ndarray, metric: Callable[..., Metric]) -> dict[str, Metric]:
        """Return pinball loss and interval coverage."""
        Q = len(self.levels)
        found = {"pinball": metric("pinball", float(mean_KC[:, 2 : 2 + Q].mean()), drawn_RKC[:, :, 2 : 2 + Q].mean((1, 2)))}
        for i, (_, _, nominal) in enumerate(intervals_of(self.levels)):
            at = 2 + Q + i
            name, what = f"coverage_{nominal * 100:g}", f"share of values inside the {nominal:.0%} interval"
            said = f"should be {nominal:.0%}"
            found[name] = metric(name, float(mean_KC[:, at].mean()), drawn_RKC[:, :, at].mean(1), "higher", what, said)
        return found

    def _by_target(self, mean_KC: np.ndarray, drawn_RKC: np.ndarray, metric: Callable[..., Metric], about: str) -> list[dict[str, Any]]:
        """Return one row per target. `about`: definition of MASE."""
        K = len(self.labels)
        naive: list[float | None] = self.facts.get("seasonal_naive_mae") or [None] * K
        scale = self.facts.get("scale") or [1.0] * K
        rows: list[dict[str, Any]] = []
        for k, label in enumerate(self.labels):
            row: dict[str, Any] = {
                "label": label,
                "mse": metric("mse", float(mean_KC[k, 0]), drawn_RKC[:, k, 0]),
                "mae": metric("mae", float(mean_KC[k, 1]), drawn_RKC[:, k, 1]),
            }
            row["mase"] = (
                metric("mase", float(mean_KC[k, 1]) / n, drawn_RKC[:, k, 1] / n, about=about)
                if (n := naive[k])
                else Metric.undefined("no scale", n=self.windows, better="lower", about=about)
            )
            row["mae_in_units"] = float(mean_KC[k, 1]) * scale[k]
            rows.append(row)
        return rows


_ABOUT = {
    "mse": "mean squared error over windows, steps and targets, on the normalised scale",
    "mae": "mean |forecast - truth| over windows, steps and targets, on the normalised scale",
    "mase": "MAE / mean |y(t) - y(t - {season})| of the training part, mean over targets (Hyndman & Koehler 2006)",
    "mape": "mean |forecast - truth| / |truth|, in the unit of the series",
    "smape": "mean 2 |forecast - truth| / (|forecast| + |truth|), in the unit of the series: 0 to 2",
    "pinball": "mean of max(q e, (q - 1) e), e = truth - forecast, over windows, steps, targets and quantiles, on the normalised scale",
}


def intervals_of(levels: Sequence[float]) -> list[tuple[int, int, float]]:
    """Return (lower, upper, nominal coverage) of each pair of quantiles that are symmetric around the median.

    >>> intervals_of((0.1, 0.5, 0.9))
    [(0, 2, 0.8)]
    """
    pairs = []
    for a, low in enumerate(levels):
        for b, high in enumerate(levels):
            if low < 0.5 and math.isclose(low + high, 1, abs_tol=1e-6):
                pairs.append((a, b, round(high - low, 6)))
    return pairs
