"""Training with a parameter server: a job whose step functions talk to servers and workers instead of computing here.

Three modes, one file each: `sync.py` (a step waits for all its shares), `asynchronous.py` (gradients are applied as they arrive) and
`diloco.py` (rounds of local steps). `worker.py` is the code of a worker; `worker_pool.py` is the driver's view of the workers.
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
    """Replace the job's step functions. Restore a checkpoint only afterwards; train inside `with`, which starts the processes.

    Args:
        job: from `build_job`, at step 0.
        config: the recipe's `parallel`.
        optim: config of the job's optimizer.
        work: how a worker builds the same job.
        on_note: called when processes die and are replaced.

    Raises:
        RecipeError: the model or the batch cannot be distributed like this.
        MissingExtra: Ray is not installed.
    """
    kind = SyncParameterServer if config.mode == "sync" else AsyncParameterServer if config.outer is None else AsyncDiLoCo
    return kind(job, config, optim, work, on_note)
