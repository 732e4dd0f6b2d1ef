"""Training with a parameter server: a job whose step functions talk to servers and workers instead of computing here.

Three modes, a file each: `sync.py` (every step waits for its shares), `asynchronous.py` (what comes is applied) and `diloco.py` (rounds of local steps).
`worker.py` is what a worker does, `worker_pool.py` how the driver sees them.
"""

from __future__ import annotations

from collections.abc import Callable

from tauon.distributed.parameter_server import ParameterServer
from tauon.optim import OptimConfig
from tauon.train.parameter_server.asynchronous import AsyncParameterServer
from tauon.train.parameter_server.diloco import AsyncDiLoCo
from tauon.train.parameter_server.sync import SyncParameterServer
from tauon.train.parameter_server.worker import RecipeWork, Work
from tauon.train.step import TrainJob

__all__ = ["AsyncDiLoCo", "AsyncParameterServer", "RecipeWork", "SyncParameterServer", "Work", "use_parameter_server"]


def use_parameter_server(
    job: TrainJob, config: ParameterServer, optim: OptimConfig, work: Work, *, on_note: Callable[[str], None] = lambda _: None
) -> SyncParameterServer:
    """Replace the job's seams. Restore it afterwards, if at all; train it inside `with`, where the processes run.

    Args:
        job: as `build_job` made it, on step 0.
        config: the recipe's `parallel`.
        optim: what the job's optimizer was built by.
        work: how a worker builds the same job.
        on_note: told when processes die and are replaced.

    Raises:
        RecipeError: the model or the batch cannot be shared out so.
        MissingExtra: Ray is not installed.
    """
    kind = SyncParameterServer if config.mode == "sync" else AsyncParameterServer if config.outer is None else AsyncDiLoCo
    return kind(job, config, optim, work, on_note)
