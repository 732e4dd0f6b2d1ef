"""What an extension may do, and when. Each method's default does nothing, so that an extension says only what it changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tauon.data import DataConfig, DataSplits, Loader
from tauon.distributed import Mesh
from tauon.models import ModelConfig
from tauon.plan import Derived, Plan
from tauon.train import TrainJob
from tauon.types import Dataset

__all__ = ["SplitTransform", "StartAgain", "TrainExtension"]


class SplitTransform:
    """Changes data before it is prepared, or after."""

    def before(self, config: DataConfig) -> DataConfig:
        """The settings that are prepared instead of the recipe's."""
        return config

    def after(self, splits: DataSplits) -> DataSplits:
        """What is trained on instead of what was prepared. Each process does it by itself, and must come to the same."""
        return splits

    def agreed(self, splits: DataSplits) -> DataSplits:
        """Likewise, once all processes hold the same data: here they may talk to one another."""
        return splits


class StartAgain(Exception):
    """Nothing was trained, and the stage is to begin anew: what it began with has changed (a key that was used up, say)."""


class TrainExtension:
    """Changes training. Its methods are called in the order in which they stand here."""

    stop_every = 1
    """Steps between two looks whether a signal asks for the end."""
    takes_plain_steps = True
    """Whether a step here is one backward pass and one update by this process: what is checked around the first step needs that."""
    logs_saved = False
    """Whether the event log says which checkpoints became whole."""

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived] | None:
        """The layout of processes, where it is not the recipe's mesh; with its reason."""
        return None

    def loader(self, train: Dataset, **share: Any) -> Loader | None:
        """What gives the batches, where it is not the plain loader. `share` as `Loader` takes it."""
        return None

    def plan(self, plan: Plan) -> None:
        """Add what this extension chooses, with reasons, to `plan.derived`."""

    def compute_mesh(self, mesh: Mesh) -> Mesh:
        """The processes that take one step together, of those of the layout."""
        return mesh

    def wrap(self, job: TrainJob) -> TrainJob:
        """The job with other step functions: same type in, same type out."""
        return job

    def restored(self, job: TrainJob) -> None:
        """The job was put back to a checkpoint."""

    def before_first_step(self, job: TrainJob) -> None:
        """Last before the loop, also when a run goes on. May refuse, or raise `StartAgain`."""

    def sanity_checks(self, job: TrainJob) -> None:
        """Look at what goes wrong without a sign: before step 1 only, not when a run goes on."""

    def running(self) -> AbstractContextManager[Any]:
        """What is held open while the loop runs."""
        return nullcontext()

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        """Run the loop. `back_to_checkpoint(reason)` puts the job back to the newest checkpoint; False where there is none."""
        loop()

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint may hold of `state`."""
        return state

    def ended(self, job: TrainJob) -> None:
        """The loop is over, whatever ended it."""

    def finish(self, job: TrainJob) -> None:
        """All steps are made and saved."""
