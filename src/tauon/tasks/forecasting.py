"""Forecasting: predict the steps that follow a window of a series. Shapes: B batch, H horizon, K targets, Q quantiles, O = K Q."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scorer, Scoring
from tauon.tasks.answers import Answers, OutputMeaning, names_of
from tauon.tasks.base import Task
from tauon.tasks.quantiles import pinball, problems_of_quantiles
from tauon.tasks.scorers import ForecastScorer
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["Forecasting"]

_QUANTILES = (0.1, 0.5, 0.9)


@register("forecasting")
class Forecasting(Task):
    """Squared, absolute, Huber or pinball error, averaged over windows, steps and targets alike."""

    family = "forecasting"
    input_kind = "series"

    loss_kind: Literal["mse", "mae", "huber", "quantile"] = "mse"
    """`mse` squared error, `mae` absolute error, `huber` squared near zero and absolute beyond `delta`, `quantile` pinball."""
    delta: float = Field(1.0, gt=0)
    """huber: the error where squared becomes absolute, in units of the normalised values."""
    quantiles: tuple[Fraction, ...] = ()
    """quantile: levels, ascending; must include 0.5, the forecast. Default: 0.1, 0.5, 0.9."""

    def problems(self) -> Iterator[tuple[str, str]]:
        kind, quantiles = self.raw_value("loss_kind"), self.raw_value("quantiles")
        if kind != "huber" and self.raw_value("delta") != 1.0:
            yield "delta", f"has no effect with loss_kind: {kind}; remove it, or set loss_kind: huber"
        if quantiles and kind != "quantile":
            yield "quantiles", f"has no effect with loss_kind: {kind}; remove it, or set loss_kind: quantile"
        if quantiles:
            yield from (("quantiles", message) for message in problems_of_quantiles(quantiles))
            if 0.5 not in quantiles:
                yield "quantiles", f"{list(quantiles)} has no 0.5: the median is the forecast. Add it"

    @property
    def levels(self) -> tuple[float, ...]:
        """Predicted quantiles; empty for a single number."""
        if self.loss_kind != "quantile":
            return ()
        return self.quantiles or _QUANTILES

    def shape(self, spec: DataSpec) -> DataSpec:
        return spec if spec.outputs is None else replace(spec, outputs=spec.outputs * max(1, len(self.levels)))

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out_BHO, levels = model(batch.inputs).float(), self.levels
        if levels:
            error: Any = pinball(out_BHO.unflatten(2, (-1, len(levels))), batch.targets, levels)
        elif self.loss_kind == "huber":
            error = F.huber_loss(out_BHO, batch.targets, reduction="none", delta=self.delta)
        else:
            error = {"mse": F.mse_loss, "mae": F.l1_loss}[self.loss_kind](out_BHO, batch.targets, reduction="none")
        return error.flatten(1).mean(1) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """predictions: BHK, in the model's scale; targets: BHK; with quantiles also quantiles BHKQ, ascending, and
        crossed B, the share of neighbours that were not; levels BQ, the same in each row.
        """
        out_BHO, levels = model(batch.inputs).float(), self.levels
        if not levels:
            return {"predictions": out_BHO, "targets": batch.targets}
        out = out_BHO.unflatten(2, (-1, len(levels)))
        crossed = (out.diff(dim=3) < 0).float().flatten(1)
        share = crossed.mean(1) if crossed.shape[1] else torch.zeros(len(out), device=out.device)
        out = out.sort(dim=3).values
        listed = torch.tensor(levels, device=out.device).expand(len(out), -1)
        median = out[..., min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))]
        return {"predictions": median, "targets": batch.targets, "quantiles": out, "crossed": share, "levels": listed}

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        return ForecastScorer(self.family, dataset, scoring)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        """Return columns of H values per window: the forecast of each target, and its quantiles."""
        found: Answers = {}
        values_BHK = meaning.units(outputs["predictions"])
        names = names_of(meaning.labels, values_BHK.shape[2])
        for k, name in enumerate(names):
            found["prediction" if len(names) == 1 else f"prediction_{name}"] = values_BHK[:, :, k]
        if "quantiles" in outputs:
            values_BHKQ = meaning.units(outputs["quantiles"])
            for q, level in enumerate(self.levels):
                for k, name in enumerate(names):
                    found[f"quantile_{level:g}" + ("" if len(names) == 1 else f"_{name}")] = values_BHKQ[:, :, k, q]
        return found

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.horizon is None:
            yield (
                "task",
                "forecasting needs a time series, but this data source does not provide one. Set data.source: series, or choose another task.",
            )
