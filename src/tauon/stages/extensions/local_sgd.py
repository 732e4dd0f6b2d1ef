"""Training with local steps: processes train separately and combine their weights every N steps (`parallel: local-sgd`, `diloco`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauon.artifacts import Checkpoint
from tauon.distributed import Layout, LowCommunication, Mesh
from tauon.stages.extensions.base import TrainExtension
from tauon.train import TrainJob, local_steps

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["LocalSteps", "local_sgd"]


def local_sgd(ctx: Context, checkpoint: Checkpoint | None) -> LocalSteps | None:
    """Return the extension if `parallel` is local-sgd or diloco."""
    parallel = ctx.recipe.parallel
    return LocalSteps(parallel) if isinstance(parallel, LowCommunication) else None


class LocalSteps(TrainExtension):
    """Local steps in each process, and an outer step every `config.every`."""

    takes_plain_steps = False

    def __init__(self, config: LowCommunication) -> None:
        self.config, self.stop_every = config, config.every

    def compute_mesh(self, mesh: Mesh) -> Mesh:
        return Mesh(Layout())  # each process computes its steps alone

    def wrap(self, job: TrainJob) -> TrainJob:
        return local_steps(job, self.config)
