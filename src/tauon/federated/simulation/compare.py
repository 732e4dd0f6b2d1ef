"""What each simulated site would have reached alone, and one model on the data of all: from the same weights, for as long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tauon.data import Loader
from tauon.federated.rounds import Rounds
from tauon.federated.simulation.sites import local_job
from tauon.optim import ScheduleConfig
from tauon.train import TrainJob, train

__all__ = ["train_alone"]

Measured = TypeVar("Measured")


def train_alone(
    start: TrainJob, loader: Loader, rounds: Rounds, schedule: ScheduleConfig, measure: Callable[[TrainJob], Measured],
    progress: Callable[[int, int], None] | None = None,
) -> Measured:  # fmt: skip
    """Train a copy of a job on one loader, as many epochs or steps as a site does in all rounds, and return what is measured of it.

    Args:
        start: at step 0; it stays as it is.
        loader: batches of one site, or of all data.
        rounds: how long. A number of steps counts for a site; all data train for as many passes in epochs.
        schedule: of the learning rate, over all steps.
        measure: called with the trained job.
        progress: called with (steps done, steps in all).
    """
    job = local_job(replace(start, loader=loader))
    steps = rounds.count * rounds.steps if rounds.steps is not None else loader.steps_for(rounds.count * (rounds.epochs or 1.0))
    job.policy = replace(job.policy, total_steps=steps, schedule=schedule)
    hooks = [lambda job, info: progress(info.step, info.total_steps)] if progress is not None else []
    return measure(train(job, hooks=hooks))
