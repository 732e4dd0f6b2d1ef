"""Extensions change data or training without being a stage. The recipe's sections switch them on; their order is set here.

Each entry names a function that takes the run's `Context` and returns the extension, or None if the recipe does not use it. They are imported
only when they are called.
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
"""Changes of data: `before` in this order, then the data is prepared, then `after` and `agreed` in this order."""

TRAIN_EXTENSIONS = (
    f"{_HERE}.local_sgd:local_sgd",
    f"{_HERE}.parameter_server:parameter_server",
    f"{_HERE}.layer_watch:layer_watch",
    f"{_HERE}.privacy:privacy",
)
"""Changes of training, in this order: how gradients or weights are exchanged, what is measured, how gradients are made."""

REPORT_SECTIONS = ("tauon.privacy.report:privacy",)
"""Functions that take `Records` and return the extensions' sections of report.html."""


def split_transforms(ctx: Any) -> list[SplitTransform]:
    """Return the split transforms that the recipe uses."""
    return [transform for place in SPLIT_TRANSFORMS if (transform := load(place)(ctx)) is not None]


def train_extensions(ctx: Any, checkpoint: Checkpoint | None) -> list[TrainExtension]:
    """Return the training extensions that the recipe uses. `checkpoint`: the one that training resumes from."""
    return [extension for place in TRAIN_EXTENSIONS if (extension := load(place)(ctx, checkpoint)) is not None]
