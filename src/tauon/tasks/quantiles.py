"""Quantile regression: predict several quantiles of a number at once, by the pinball loss (Koenker & Bassett 1978).

Quantiles that were fitted side by side may cross; predictions are therefore sorted, which never makes the loss worse (Chernozhukov,
Fernandez-Val & Galichon 2010), and the share of crossings is reported. Shapes: B batch, K targets, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.quantiles import quantile_regression
from tauon.tasks.answers import Answers, OutputMeaning, quantile_columns
from tauon.tasks.base import Task
from tauon.tasks.members import mean_of_members, members_as_examples
from tauon.types import Batch, DataSpec

__all__ = ["QuantileRegression", "pinball", "problems_of_quantiles"]


def pinball(predicted: Tensor, target: Tensor, quantiles: Sequence[float]) -> Tensor:
    """max(q e, (q - 1) e) with e = target - prediction, of each element of ...Q; its mean is minimal at the q-quantile.

    >>> pinball(torch.tensor([[0.0, 0.0]]), torch.tensor([2.0]), (0.1, 0.9))
    tensor([[0.2000, 1.8000]])
    """
    q = torch.tensor(quantiles, dtype=predicted.dtype, device=predicted.device)
    error = target.unsqueeze(-1) - predicted
    return torch.maximum(q * error, (q - 1) * error)


def problems_of_quantiles(quantiles: Sequence[float]) -> Iterator[str]:
    """Yield what is wrong with a list of quantiles."""
    if not quantiles:
        yield "is empty; set levels between 0 and 1: [0.1, 0.5, 0.9]"
    if any(not 0 < q < 1 for q in quantiles):
        yield f"{next(q for q in quantiles if not 0 < q < 1):g} is not between 0 and 1"
    if list(quantiles) != sorted(set(quantiles)):
        yield f"{list(quantiles)} must be ascending without duplicates"


@register("quantile-regression")
class QuantileRegression(Task):
    """Predict quantiles of numbers: pinball loss, averaged over examples and quantiles (and summed over targets)."""

    family = "quantile-regression"
    input_kind = "arrays"
    scales_targets = True

    quantiles: tuple[Fraction, ...] = (0.1, 0.5, 0.9)
    """Levels, ascending, between 0 and 1. 0.1 and 0.9 bound an interval that should contain 80%."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from (("quantiles", message) for message in problems_of_quantiles(self.raw_value("quantiles")))

    def shape(self, spec: DataSpec) -> DataSpec:
        return spec if spec.outputs is None else replace(spec, outputs=spec.outputs * len(self.quantiles))

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out_BKQ, target_BK = self._outputs(model, batch)
        loss_B = mean_of_members(pinball(out_BKQ, target_BK, self.quantiles).mean(2).sum(1), len(batch))
        return loss_B * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """quantiles: BKQ, ascending; crossed: B, share of neighbours that were not; targets: BK; levels: BQ, the same in each row.

        Quantiles and targets are on the scale of `DataSpec.target_scale`.
        """
        out_BKQ, target_BK = self._outputs(model, batch)
        crossed = (out_BKQ.diff(dim=2) < 0).float().flatten(1)
        levels = torch.tensor(self.quantiles, device=out_BKQ.device).expand(len(out_BKQ), -1)
        share = crossed.mean(1) if crossed.shape[1] else torch.zeros(len(out_BKQ), device=out_BKQ.device)
        return {"quantiles": out_BKQ.sort(dim=2).values, "crossed": share, "targets": target_BK, "levels": levels}

    def _outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out, targets = members_as_examples(model(batch.inputs).float(), batch.targets)
        target_BK = targets.float().reshape(len(targets), -1)
        return out.reshape(*target_BK.shape, len(self.quantiles)), target_BK

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        values = {k: scoring.units(need(outputs, self.family, k)) for k in ("quantiles", "targets")}
        values |= {k: need(outputs, self.family, k) for k in ("levels", "crossed")}
        return quantile_regression(values, scoring.spec.labels, **scoring.how)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return quantile_columns(outputs["quantiles"], self.quantiles, meaning)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.outputs is None:
            yield (
                "task",
                "quantile-regression needs examples with targets, but this data source provides text. Set task: language-modelling.",
            )
