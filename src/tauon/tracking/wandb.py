"""Weights & Biases. Offline by default: nothing leaves the machine; `wandb sync` uploads a run later."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tauon.config import register
from tauon.errors import MissingExtra, RunError
from tauon.tracking.tracker import Tracker, TrackerConfig

__all__ = ["WandbConfig"]


@register("wandb")
class WandbConfig(TrackerConfig):
    """Weights & Biases. Needs the extra `wandb`."""

    project: str = "tauon"
    """Name of the project."""
    entity: str | None = None
    """User or team; default: the default of the account."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes into the run's folder only; `online` sends to the service, with the key that `wandb login` stored."""

    def build(self, run_folder: Path, name: str, recipe: Mapping[str, Any]) -> Tracker:
        try:
            import wandb
        except ImportError as err:
            raise MissingExtra("the Weights & Biases tracker", "wandb") from err
        id_file = Path(run_folder) / ".wandb-id"
        number = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else secrets.token_hex(4)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                name=name,
                id=number,
                resume="allow" if self.mode == "online" else None,
                dir=str(run_folder),
                config=dict(recipe),
                reinit="create_new",  # two runs in one process stay separate
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
        except wandb.errors.Error as err:
            raise RunError(f"Weights & Biases: {err}. Run `wandb login`, or set the tracker's mode to offline.") from err
        id_file.write_text(number + "\n", encoding="utf-8")
        return WandbTracker(run)


class WandbTracker:
    """One W&B run. W&B itself drops values below the last step that the service has seen (a resumed run repeats them)."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value under `step`."""
        self._run.log({name: float(value) for name, value in values.items()}, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Write each value into the run's summary."""
        self._run.summary.update({name: float(value) for name, value in values.items()})

    def close(self) -> None:
        """Finish the run; online, wait until everything is sent."""
        self._run.finish()
