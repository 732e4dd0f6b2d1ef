"""Extensions change data or training without being a stage. The recipe's sections switch them on; their order is set here.

Each entry names a function that takes the run's `Context` and returns the extension, or None if the recipe does not use it. They are imported
only when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tauon.stages.extensions.base import SplitTransform, StartAgain, TrainExtension
from tauon.stages.table import load

if TYPE_CHECKING:
    from tauon.artifacts import Checkpoint, RunFolder

__all__ = [
    "REPORT_SECTIONS", "SplitTransform", "StartAgain", "TrainExtension", "set_aside", "split_transforms", "train_extensions",
]  # fmt: skip

_HERE = "tauon.stages.extensions"

SPLIT_TRANSFORMS = (
    f"{_HERE}.statistics:noisy_statistics",
    f"{_HERE}.reference_model:reference_model",
    f"{_HERE}.canaries:canaries",
)
"""Changes of data: `before` in this order, then the data is prepared, then `after` and `agreed` in this order."""

TRAIN_EXTENSIONS = (
    f"{_HERE}.fitted:fitted",
    f"{_HERE}.local_sgd:local_sgd",
    f"{_HERE}.parameter_server:parameter_server",
    f"{_HERE}.distillation:distillation",
    f"{_HERE}.quantisation:quantisation",
    f"{_HERE}.sparse_start:sparse_start",
    f"{_HERE}.layer_watch:layer_watch",
    f"{_HERE}.federated:federated",
    f"{_HERE}.privacy:privacy",
)
"""Changes of training, in this order: whether there are steps at all, how gradients or weights are exchanged, what is
measured, who trains, how gradients are made."""

REPORT_SECTIONS = ("tauon.privacy.report:privacy",)
"""Functions that take `Records` and return the extensions' sections of report.html."""


BEFORE_SET_ASIDE = (f"{_HERE}.privacy:release_budget",)
"""Functions that take a run's folder and `on_event`, called before `--fresh` renames the folder: they release what the run holds elsewhere."""


def set_aside(run: RunFolder, on_event: Callable[..., None]) -> None:
    """Rename the folder of a run (`--fresh`); nothing is deleted."""
    for place in BEFORE_SET_ASIDE:
        load(place)(run.folder, on_event)
    on_event("aside", folder=str(run.set_aside()))


def split_transforms(ctx: Any) -> list[SplitTransform]:
    """Return the split transforms that the recipe uses."""
    return [transform for place in SPLIT_TRANSFORMS if (transform := load(place)(ctx)) is not None]


def train_extensions(ctx: Any, checkpoint: Checkpoint | None) -> list[TrainExtension]:
    """Return the training extensions that the recipe uses. `checkpoint`: the one that training resumes from."""
    return [extension for place in TRAIN_EXTENSIONS if (extension := load(place)(ctx, checkpoint)) is not None]
