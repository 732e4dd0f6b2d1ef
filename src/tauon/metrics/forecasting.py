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
        rows = np.stack(parts, axis=2)  # B K columns
        fine = np.isfinite(rows).all((1, 2))
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
        rows = self._by_target(mean_KC, drawn_RKC, metric, about) if K > 1 else []
        primary = "pinball" if Q else "mse"
        return {"primary": primary, "metrics": metrics, "per_class": rows, "counts": counts, "notes": notes}

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
