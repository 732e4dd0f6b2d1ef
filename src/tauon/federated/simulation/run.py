"""A federated run in one process: coordinator and simulated clients from one job and one data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tauon.federated.coordinator import federate
from tauon.federated.rounds import Rounds
from tauon.federated.simulation.batched import BatchedSites
from tauon.federated.simulation.sites import local_job
from tauon.federated.strategies import StrategyConfig
from tauon.train import TrainJob
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.federated.roster import EventFn

__all__ = ["simulate"]


def simulate(
    job: TrainJob, dataset: Dataset, parts: Sequence[NDArray[np.int64]], strategy: StrategyConfig, rounds: Rounds, *, batch: int,
    on_event: EventFn | None = None, workers: int | None = None,
) -> TrainJob:  # fmt: skip
    """Return the coordinator's job over simulated clients, with their state among what its checkpoints hold. `train(job)` runs it.

    Args:
        job: at step 0, not wrapped; it becomes the coordinator's, and a copy of it trains as each client.
        dataset: examples of all clients.
        parts: row numbers of each client (`ClientSplit.split`).
        strategy: how updates are combined.
        rounds: number and kind of rounds.
        batch: examples in a local step; 0: all examples of the client.
        on_event: see `federate`.
        workers: see `SimulatedSites`.
    """
    transport = BatchedSites(local_job(job), dataset, parts, batch=batch, strategy=strategy, workers=workers)
    coordinator = federate(job, transport, strategy, rounds, on_event=on_event)
    coordinator.extra["sites"] = transport
    return coordinator
