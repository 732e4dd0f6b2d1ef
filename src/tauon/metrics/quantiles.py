"""Metrics of a quantile regression: pinball loss, interval coverage, absolute error of the median. Runs no model.

Legend: N examples, K targets, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tauon.errors import DataError
from tauon.metrics.forecasting import intervals_of
from tauon.metrics.intervals import generator, percentile, resample_sums, wilson
from tauon.metrics.metric import Metric, Scores

__all__ = ["quantile_regression"]

_PINBALL = "mean of max(q e, (q - 1) e), e = truth - prediction, over quantiles, in the unit of the targets"


def quantile_regression(outputs: dict[str, np.ndarray], labels: Sequence[str], *, confidence: float, resamples: int, seed: int) -> Scores:
    """Return the fields of an `Evaluation`. outputs: quantiles N K Q ascending, targets N K, levels N Q, crossed N."""
    q_NKQ, t_NK = (np.asarray(outputs[k], np.float64) for k in ("quantiles", "targets"))
    levels = tuple(float(round(v, 6)) for v in outputs["levels"][0])
    n, K, _ = q_NKQ.shape
    if not np.isfinite(t_NK).all():
        raise DataError(
            f"{int((~np.isfinite(t_NK)).any(1).sum())} of {n} examples have targets that are not finite numbers; clean the data"
        )
    broken = int((~np.isfinite(q_NKQ)).any((1, 2)).sum())
    if broken:
        reason = f"{broken} of {n} predictions are not finite"
        return {
            "primary": "pinball",
            "metrics": {"pinball": Metric.undefined(reason, n=n, better="lower", about=_PINBALL)},
            "notes": [reason],
        }
    error = t_NK[:, :, None] - q_NKQ
    loss_NKQ = np.maximum(np.array(levels) * error, (np.array(levels) - 1) * error)
    median = next((i for i, v in enumerate(levels) if math.isclose(v, 0.5)), None)
    pairs = intervals_of(levels)
    columns = [loss_NKQ.mean((1, 2)), *(loss_NKQ[:, :, i].mean(1) for i in range(len(levels)))]
    if median is not None:
        columns.append(np.abs(error[:, :, median]).mean(1))
    drawn = resample_sums(np.stack(columns, axis=1), resamples, generator(seed, "quantile-regression")) / n

    def metric(i: int, about: str) -> Metric:
        return Metric.bootstrapped(math.fsum(columns[i]) / n, percentile(drawn[:, i], confidence), n, "lower", about)

    metrics = {"pinball": metric(0, _PINBALL)}
    metrics |= {f"pinball_{level:g}": metric(1 + i, f"pinball loss of the {level:g}-quantile") for i, level in enumerate(levels)}
    if median is not None:
        metrics["mae"] = metric(len(columns) - 1, "mean |median - truth|, in the unit of the targets")
    for a, b, nominal in pairs:
        inside = (t_NK >= q_NKQ[:, :, a]) & (t_NK <= q_NKQ[:, :, b])
        share, what = float(inside.mean()), f"share of values inside the {nominal:.0%} interval"
        low, high = wilson(share * n, n, confidence)  # n counts examples: an example's targets are not independent
        metrics[f"coverage_{nominal * 100:g}"] = Metric(share, low, high, n, "Wilson", "higher", what, f"should be {nominal:.0%}")
    notes = [f"{float(outputs['crossed'].mean()):.2%} of neighbouring quantiles crossed and were sorted."] if len(levels) > 1 else []
    rows: list[dict[str, Any]] = []
    for k in range(K if K > 1 else 0):
        row: dict[str, Any] = {"label": labels[k] if len(labels) == K else str(k), "pinball": float(loss_NKQ[:, k].mean())}
        row |= {
            f"coverage_{nominal * 100:g}": float(((t_NK[:, k] >= q_NKQ[:, k, a]) & (t_NK[:, k] <= q_NKQ[:, k, b])).mean())
            for a, b, nominal in pairs
        }
        rows.append(row)
    return {"primary": "pinball", "metrics": metrics, "per_class": rows, "notes": notes}
