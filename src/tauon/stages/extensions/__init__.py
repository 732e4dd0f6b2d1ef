"""What changes data or training without being a stage: objects that sections of the recipe bring, in an order that is written once, here.

Each place names a function of the run's `Context` that returns its object, or None where the recipe does not ask for it. Imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tauon.stages.extensions.base import SplitTransform, StartAgain, TrainExtension
from tauon.stages.table import load

if TYPE_CHECKING:
    from tauon.artifacts import Checkpoint

__all__ = ["REPORT_SECTIONS", "SplitTransform", "StartAgain", "TrainExtension", "split_transforms", "train_extensions"]

_HERE = "tauon.stages.extensions"

SPLIT_TRANSFORMS = (
    f"{_HERE}.statistics:noisy_statistics",
    f"{_HERE}.reference_model:reference_model",
    f"{_HERE}.canaries:canaries",
)
"""What is done to data: `before` in this order, then the data is prepared, then `after` and `agreed` in this order."""

TRAIN_EXTENSIONS = (
    f"{_HERE}.local_sgd:local_sgd",
    f"{_HERE}.parameter_server:parameter_server",
    f"{_HERE}.layer_watch:layer_watch",
    f"{_HERE}.privacy:privacy",
)
"""What is done to training, in this order: how gradients or weights are exchanged, what is measured, how gradients are made."""

REPORT_SECTIONS = ("tauon.privacy.report:privacy",)
"""Sections of report.html that they draw, from a function of `Records`."""


def split_transforms(ctx: Any) -> list[SplitTransform]:
    """What the recipe asks to be done to its data."""
    return [made for place in SPLIT_TRANSFORMS if (made := load(place)(ctx)) is not None]


def train_extensions(ctx: Any, checkpoint: Checkpoint | None) -> list[TrainExtension]:
    """What the recipe asks to be done to its training, which goes on from `checkpoint`."""
    return [made for place in TRAIN_EXTENSIONS if (made := load(place)(ctx, checkpoint)) is not None]
