"""Base classes of extensions. By default each method does nothing; an extension overrides those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tauon.data import DataConfig, DataSplits, Loader
from tauon.distributed import Mesh
from tauon.models import ModelConfig
from tauon.plan import Derived, Plan, Work
from tauon.train import Hook, TrainJob
from tauon.types import Dataset

__all__ = ["SplitTransform", "StartAgain", "TrainExtension"]


class SplitTransform:
    """Changes the data before or after it is prepared."""

    def before(self, config: DataConfig) -> DataConfig:
        """Return the data settings to prepare instead of the recipe's."""
        return config

    def after(self, splits: DataSplits) -> DataSplits:
        """Return the splits to use instead of the prepared ones. Runs on each process separately, which must all get the same result."""
        return splits

    def agreed(self, splits: DataSplits) -> DataSplits:
        """Like `after`, but called when all processes have the same data: collectives are allowed here."""
        return splits


class StartAgain(Exception):
    """Restart the training stage before its first step, because what it began with has changed (a used key, for example)."""


class TrainExtension:
    """Changes training. Methods are called in the order in which they are defined here."""

    stop_every = 1
    """Check for a stop signal every this many steps."""
    takes_plain_steps = True
    """Whether a step is one backward pass and one update in this process; the checks of the first step need that."""
    logs_saved = False
    """Whether completed checkpoints are recorded in the event log."""

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived] | None:
        """Return the layout of processes and its reason; None for that of the recipe."""
        return None

    def loader(self, train: Dataset, **share: Any) -> Loader | None:
        """Return the loader; None for the plain one. `share`: arguments of `Loader`."""
        return None

    def work(self, loader: Loader) -> Work | None:
        """Return what a step computes, by which the plan chooses the precision; None for a plain step."""
        return None

    def plan(self, plan: Plan) -> None:
        """Add the settings that this extension derives, with reasons, to `plan.derived`."""

    def compute_mesh(self, mesh: Mesh) -> Mesh:
        """Return the mesh of the processes that compute one step together."""
        return mesh

    def wrap(self, job: TrainJob) -> TrainJob:
        """Return the job with other step functions: same type in, same type out."""
        return job

    def restored(self, job: TrainJob) -> None:
        """Called after the job was restored from a checkpoint."""

    def before_first_step(self, job: TrainJob) -> None:
        """Called last before the loop, also on resume. May refuse, or raise `StartAgain`."""

    def sanity_checks(self, job: TrainJob) -> None:
        """Check for silent failures: before step 1 only, not on resume."""

    def running(self) -> AbstractContextManager[Any]:
        """Return a context manager that is open while the loop runs."""
        return nullcontext()

    def loop_parts(self, job: TrainJob, hooks: Sequence[Hook], save: Callable[..., None]) -> None:
        """Called before `run` with what the loop calls: for an extension whose steps are not those of the loop."""

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        """Run the loop. `back_to_checkpoint(reason)` restores the job from the newest checkpoint; it returns False if there is none."""
        loop()

    def checkpoint_state(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        """Return the part of `state` that a checkpoint may hold."""
        return state

    def ended(self, job: TrainJob) -> None:
        """Called when the loop is over, also after an error."""

    def finish(self, job: TrainJob) -> None:
        """Called when all steps are done and saved."""
