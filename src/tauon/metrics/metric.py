"""`Metric`: one number with its interval and their definitions; `Scores`: all metrics of a task. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

__all__ = ["Better", "Metric", "Scores"]

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """One number with its interval. `value` None: undefined, with `reason`; `low` None: no interval, likewise."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Number of examples (sequences, for language models) behind the number."""
    method: str
    """Method of the interval."""
    better: Better
    about: str
    """Definition: formula and unit."""
    reason: str = ""
    """Why a value is None, or the convention behind it."""

    @classmethod
    def undefined(cls, reason: str, *, n: int, better: Better, about: str) -> Metric:
        return cls(None, None, None, n, "none", better, about, reason)

    @classmethod
    def bootstrapped(
        cls, value: float, interval: tuple[float, float] | None, n: int, better: Better, about: str, said: str = "", unit: str = "examples"
    ) -> Metric:
        """Return a metric with its percentile interval; without one, the reason. `said`: a note for the reader."""
        if interval is None:
            gone = "no interval: every resample gives the same value, which says nothing about unseen examples"
            return cls(value, None, None, n, "none", better, about, "; ".join(filter(None, (said, gone))))
        return cls(value, *interval, n, f"percentile bootstrap over {unit}", better, about, said)

    def to_json(self) -> dict[str, Any]:
        plain = {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in asdict(self).items()}
        return plain if self.reason else {k: v for k, v in plain.items() if k != "reason"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Metric:
        return cls(
            value=data["value"], low=data["low"], high=data["high"], n=data["n"], method=data["method"],
            better=data.get("better", "higher"), about=data.get("about", ""), reason=data.get("reason", ""),
        )  # fmt: skip


class Scores(TypedDict, total=False):
    """Metrics of a model on some examples: `primary` and `metrics` always, the rest if it applies. See `tauon.evaluate.Evaluation`."""

    primary: str
    metrics: dict[str, Metric]
    per_class: list[dict[str, Any]]
    confusion: dict[str, Any] | None
    calibration: dict[str, Any] | None
    counts: dict[str, int]
    notes: list[str]
    forecasts: list[dict[str, Any]]
    curves: dict[str, Any] | None
    by_horizon: dict[str, Any]
    n: int
