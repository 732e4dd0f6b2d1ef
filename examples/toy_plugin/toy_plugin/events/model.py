"""A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) over events; its last state says the class.

Shapes: B batch, T events, F features, D width, C classes.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.errors import Problem, RecipeError
from tauon.models import Model, ModelConfig
from tauon.types import DataSpec

__all__ = ["EventGru", "EventGruConfig"]


@register("event-gru")
class EventGruConfig(ModelConfig):
    """Reads events one by one."""

    input_kind = "events"

    width: Count = Field(32, ge=1)
    """Size of the state, D."""
    features: Count | None = None
    """Features of an event. Left out: the data's."""
    outputs: Count | None = None
    """Classes. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        if spec.input_shape is None or len(spec.input_shape) != 2 or spec.outputs is None:
            raise RecipeError([Problem("model.kind", "event-gru reads events with classes, and this data is none.")])
        return self.model_copy(update={"features": spec.input_shape[1], "outputs": spec.outputs})

    def build(self) -> EventGru:
        if self.features is None or self.outputs is None:
            raise RecipeError([Problem("model", "features and outputs are not known yet: resolve the config against the data first.")])
        return EventGru(self.features, self.outputs, self.width)


class EventGru(Model):
    """BTF -> BC."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data

    def __init__(self, features: int, outputs: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x_BTF: Tensor) -> Tensor:
        states_BTD, _ = self.gru(x_BTF)
        out: Tensor = self.head(states_BTD[:, -1])
        return out
