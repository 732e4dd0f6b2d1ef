"""Baselines of forecasts: the last value, and the value one season ago for each season of the calendar."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tauon.evaluate.baselines.base import Baseline
from tauon.types import Batch, Dataset

__all__ = ["copies"]

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "week": 604_800}


def copies(dataset: Dataset, levels: tuple[float, ...]) -> list[Baseline]:
    """Return the copying baselines of a series: the last value, and one for each season.

    Seasons are the series' own, and the day, week and year that the time step divides. The value is that of the same phase in the latest season that
    is known when the forecast is made.

    Args:
        dataset: windows to forecast, with `season` and `step` among its facts.
        levels: quantiles that the task predicts: all of them get the copied value.
    """
    whole: Any = dataset
    found = [_copy("the last value", "Every step repeats the last known value.", whole, 1, levels)]
    for season, name in seasons(dataset.facts):
        if season < whole.history:
            about = f"Each step repeats the value {season} steps, or a whole number of times that, earlier."
            found.append(_copy(f"the value one {name} ago", about, whole, season, levels))
    return found


def seasons(facts: dict[str, Any]) -> list[tuple[int, str]]:
    """Return (steps, name) of each season, without repeats.

    >>> seasons({"season": 24, "step": "1 h"})
    [(24, 'day'), (168, 'week'), (8760, 'year')]
    """
    found: dict[int, str] = {}
    number, _, unit = str(facts.get("step", "")).partition(" ")
    seconds = int(number) * _SECONDS.get(unit, 0) if number.isdigit() else 0
    for name, length in (("day", 86_400), ("week", 604_800), ("year", 31_536_000)):
        if seconds and length % seconds == 0 and length // seconds > 1:
            found.setdefault(length // seconds, name)
    own = int(facts.get("season") or 1)
    if own > 1:
        found.setdefault(own, "year" if "month" in unit or (unit == "week" and own == 52) else "season")
    return sorted(found.items())


def _copy(name: str, about: str, dataset: Any, lag: int, levels: tuple[float, ...]) -> Baseline:
    def predict(batch: Batch) -> dict[str, Tensor]:
        assert batch.index is not None
        values_BHK = torch.from_numpy(dataset.earlier(batch.index.numpy(), lag))
        found = {"predictions": values_BHK, "targets": batch.targets}
        if levels:
            n, q = len(batch), len(levels)
            found |= {
                "quantiles": values_BHK[..., None].expand(*values_BHK.shape, q), "crossed": torch.zeros(n),
                "levels": torch.tensor(levels).expand(n, -1),
            }  # fmt: skip
        return found

    return Baseline(name, about, predict)
