"""What forecasters share: sizes from the data, and reversible instance normalisation (Kim et al. 2022, "RevIN", ICLR).

Every forecaster maps BTF (context, targets first) to BHO, O = targets x outputs a target (quantiles), target by target.
Shapes: B batch, T context, F columns read, H horizon, K targets, Q outputs a target, O = K Q.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from tauon.errors import Problem, RecipeError
from tauon.models.base import ModelConfig, Size
from tauon.types import DataSpec

__all__ = ["ForecasterConfig", "backward_scale", "forward_scale"]


class ForecasterConfig(ModelConfig):
    """Base of models that predict a series: their sizes are the data's."""

    input_kind = "series"

    context: Size | None = None
    """Steps read, T. Left out: the data's."""
    horizon: Size | None = None
    """Steps predicted, H. Left out: the data's."""
    inputs: Size | None = None
    """Columns read, F. Left out: the data's."""
    targets: Size | None = None
    """Columns predicted, K. Left out: the data's."""
    outputs: Size | None = None
    """Outputs of each step, K times the quantiles of a target. Left out: the data's and the task's."""

    def resolve(self, spec: DataSpec) -> Self:
        if spec.horizon is None or spec.input_shape is None or spec.outputs is None:
            raise RecipeError([Problem("model.kind", f"{self.kind_} reads a time series, and this data is none. Take another model.")])
        context, inputs = spec.input_shape
        found = {"context": context, "horizon": spec.horizon, "inputs": inputs, "targets": len(spec.labels), "outputs": spec.outputs}
        wrong = [
            Problem(f"model.{k}", f"{getattr(self, k)}, but the data has {v}. Leave it out.")
            for k, v in found.items()
            if getattr(self, k) not in (None, v)
        ]
        if wrong:
            raise RecipeError(wrong)
        return self.model_copy(update=found)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """(context, horizon, inputs, targets, outputs), once resolved."""
        found = (self.context, self.horizon, self.inputs, self.targets, self.outputs)
        if any(v is None for v in found):
            raise RecipeError([Problem("model", "its sizes are not known yet: resolve the config against the data first.")])
        return found  # type: ignore[return-value]

    def refuse_inputs(self, spec: DataSpec) -> None:
        """For models that treat each target by itself: other columns would be read by nothing."""
        assert spec.input_shape is not None
        extra = spec.input_shape[1] - len(spec.labels)
        if extra:
            raise RecipeError(
                [
                    Problem(
                        "model.kind",
                        f"{self.kind_} predicts each column only from its own past, but the data has {extra} columns of inputs or calendar. "
                        "Leave out data.source.inputs and data.window.calendar, or use lstm.",
                    )
                ]
            )


def forward_scale(x_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x with mean 0 and variance 1 in each window and column, mean B1F, deviation B1F). Statistics take no gradient."""
    with torch.no_grad():
        mean = x_BTF.mean(1, keepdim=True)
        deviation = (x_BTF.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return (x_BTF - mean) / deviation, mean, deviation


def backward_scale(out_BHO: Tensor, mean_B1F: Tensor, deviation_B1F: Tensor, targets: int) -> Tensor:
    """Forecasts back to the scale of their own window."""
    each = out_BHO.shape[2] // targets
    mean, deviation = (s[:, :, :targets].repeat_interleave(each, dim=2) for s in (mean_B1F, deviation_B1F))
    return out_BHO * deviation + mean
