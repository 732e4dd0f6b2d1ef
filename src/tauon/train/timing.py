"""Measures how long a step takes, with a few steps of a temporary job; used to plan a run of a given time."""

from __future__ import annotations

import time
from dataclasses import replace

from tauon.distributed import AutoParallel, Mesh, MeshParallel, ParallelConfig, World
from tauon.train.build import JobConfig, JobSettings, build_job
from tauon.train.step import BatchSource, TrainJob, train_step

__all__ = ["seconds_a_step"]


def seconds_a_step(
    config: JobConfig, loader: BatchSource, mesh: Mesh | None, parallel: ParallelConfig | None, settings: JobSettings, budget: float
) -> float:
    """Return rank 0's median seconds of a step after two warm-up steps, measured for about `budget` seconds. Collective.

    With local SGD or a parameter server, this is the step of a single process.
    """
    collective = isinstance(parallel, MeshParallel | AutoParallel | None)
    job = build_job(config, loader, settings, mesh=mesh if collective else None, parallel=parallel)
    return _timed(job, budget, mesh.world if mesh is not None else World())


def _timed(job: TrainJob, budget: float, world: World) -> float:
    job.model.train()
    job.policy = replace(job.policy, total_steps=10**9)
    times: list[float] = []
    steps = 3
    while len(times) < steps:
        start = time.perf_counter()
        train_step(job, job.loader.batch_at(job.step).to(job.policy.device))
        times.append(time.perf_counter() - start)
        if len(times) == 3:  # the same number of steps on every rank
            steps = world.gather(max(3, min(50, int(budget / max(times[2], 1e-6)))))[0]
    return float(world.gather(sorted(times[2:])[len(times[2:]) // 2])[0])
