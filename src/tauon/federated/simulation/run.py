"""A federated run in one process: coordinator and simulated clients from one job and one data set."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from tauon.federated.coordinator import Rounds, federate
from tauon.federated.simulation.sites import SimulatedSites
from tauon.federated.strategies import StrategyConfig
from tauon.train import TrainJob
from tauon.types import Dataset

if TYPE_CHECKING:
    from tauon.federated.roster import EventFn

__all__ = ["local_job", "simulate"]


def simulate(
    job: TrainJob, dataset: Dataset, parts: Sequence[NDArray[np.int64]], strategy: StrategyConfig, rounds: Rounds, *, batch: int,
    on_event: EventFn | None = None, sites: type[SimulatedSites] = SimulatedSites,
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
        sites: class of the transport.
    """
    transport = sites(local_job(job), dataset, parts, batch=batch, strategy=strategy)
    coordinator = federate(job, transport, strategy, rounds, on_event=on_event)
    coordinator.extra["sites"] = transport
    return coordinator


def local_job(job: TrainJob) -> TrainJob:
    """Return a copy of a job at step 0, with its own model and optimizer, for the clients of a simulation. Loader and task are shared: the task
    records which of its settings are used.
    """
    memo: dict[int, Any] = {}
    for part in (*getattr(job.optimizer, "parts", ()), job.optimizer):
        memo[id(part)] = _copied(part, memo)
    own = copy.deepcopy(replace(job, loader=None, task=None), memo)  # type: ignore[arg-type]
    own.loader, own.task = job.loader, job.task
    return own


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Return a copy with all attributes: torch copies only `state`, `defaults` and `param_groups` of an optimizer."""
    own: Optimizer = object.__new__(type(optimizer))
    own.__dict__.update(copy.deepcopy(optimizer.__dict__, memo))
    return own
