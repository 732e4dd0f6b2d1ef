"""TensorBoard event files in the run's folder: `tensorboard --logdir runs` shows every run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauon.config import register
from tauon.errors import MissingExtra
from tauon.tracking.tracker import Tracker, TrackerConfig

__all__ = ["TensorBoardConfig"]


@register("tensorboard")
class TensorBoardConfig(TrackerConfig):
    """TensorBoard. Needs the extra `tensorboard`."""

    folder: str = "tensorboard"
    """Folder of the event files, inside the run's folder."""

    def build(self, run_folder: Path, name: str, recipe: Mapping[str, Any]) -> Tracker:
        try:
            import tensorboard  # noqa: F401 - torch's writer needs it, with a less clear error
        except ImportError as err:
            raise MissingExtra("the TensorBoard tracker", "tensorboard") from err
        return TensorBoardTracker(Path(run_folder) / self.folder, recipe)


class TensorBoardTracker:
    """Scalars by step; the recipe as text. Summaries go to the last step logged, under `summary/`."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._folder, self._recipe = folder, recipe
        self._writer: Any = None
        self._step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value as a scalar of `step`."""
        writer = self._open(step)
        self._step = step
        for name, value in values.items():
            writer.add_scalar(name, float(value), step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Log each value as a scalar `summary/<name>`."""
        writer = self._open(None)
        for name, value in values.items():
            writer.add_scalar(f"summary/{name}", float(value), self._step)

    def close(self) -> None:
        """Write buffered values."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, first_step: int | None) -> Any:
        if self._writer is None:
            import json

            from torch.utils.tensorboard import SummaryWriter

            # purge_step: what a killed attempt logged from this step on disappears from the curves.
            self._writer = SummaryWriter(str(self._folder), purge_step=first_step)  # type: ignore[no-untyped-call]
            text = json.dumps(self._recipe, indent=2, default=str)
            self._writer.add_text("recipe", "\n".join("    " + line for line in text.splitlines()), first_step or 0)
        return self._writer
