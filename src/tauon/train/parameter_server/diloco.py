"""Asynchronous DiLoCo: workers push the change of weights over a round of local steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.distributed.server_group import ServerDied
from tauon.errors import Problem, RecipeError
from tauon.train.parameter_server.asynchronous import AsyncParameterServer
from tauon.train.parameter_server.sync import NOTE
from tauon.train.parameter_server.worker_pool import Task
from tauon.train.step import TrainJob
from tauon.types import Batch

__all__ = ["AsyncDiLoCo"]


class AsyncDiLoCo(AsyncParameterServer):
    """Asynchronous DiLoCo. Round r is steps [r H, r H + H): one worker does them alone, from the newest weights, with its own optimizer,
    clipping and gradient health; the servers' outer optimizer uses the change of weights (Liu et al. 2024, arXiv:2401.09135).

    When a round arrives, the loop logs its H steps; the servers apply it at the first of them. The workers' optimizers are not in checkpoints:
    after a resume they start from scratch, like that of a worker that joins late.
    """

    def read_settings(self) -> None:
        super().read_settings()
        if self.job.ema is not None:
            raise RecipeError(
                [
                    Problem(
                        "train.ema",
                        "averages the weights of every step, but with parallel.outer they change only every round. Remove train.ema.",
                    )
                ]
            )
        self.every = self.config.every
        self.left: list[list[float]] = []
        """Loss and gradient norm of the round's steps that are not logged yet."""
        self.arrives = False
        self.norm = 0.0
        self.outer: dict[str, Tensor] = {}
        self.job.extra["outer"] = OuterState(self)

    def begin(self, job: TrainJob) -> None:
        super().begin(job)
        noted = job.notes.get(NOTE, {})
        known = noted.get("applied") == job.step
        self.left = [list(pair) for pair in noted["left"]] if known else []
        if not known:
            self.next = job.step // self.every

    def make(self, job: TrainJob, batch: Batch) -> Tensor:
        if not self.begun:
            self.begin(job)
        self.arrives = not self.left
        if self.arrives:
            self.results = self.collect(job)
            done = self.results[0].done
            job.traffic.add("push", done.pushed)
            job.traffic.add("pull", done.pulled)
            self.left = [list(pair) for pair in done.each]
        loss, self.norm = self.left.pop(0)
        return torch.tensor(loss, device=job.policy.device)

    def exchange(self, job: TrainJob) -> None:
        """At the first step of a round the servers sum it, unless its weights are not finite."""
        if not self.arrives:
            return
        for _ in range(3):
            try:
                norms = self.group.reduce([self.results[0].pushes], rescale=1.0, pulled=None)
                break
            except ServerDied:
                if not self.group.heal():
                    self.left = []
                    self.make(job, batch=job.loader.batch_at(job.step))
        else:
            raise self.lost(job)
        if all(np.isfinite(n).all() for n in norms):
            self.group.apply(1.0, 1.0)
            if self.config.replicas:
                job.traffic.add("replica", self.config.replicas * self.results[0].done.pushed)
        else:
            self.on_note(f"round {self.results[0].task.step} is skipped: its weights are not finite")
        self.open.remove(self.results[0].task.step)
        self.results = []
        self.fill(job)

    def clip(self, job: TrainJob) -> Tensor:
        """Return the gradient norm that the worker measured; the worker clipped already."""
        return torch.tensor(self.norm)

    def update(self, job: TrainJob) -> None:
        """Set the learning rate for the log; the weights were updated at the round's first step."""
        job.set_rate()

    def gather(self, job: TrainJob) -> None:
        super().gather(job)
        job.notes[NOTE]["left"] = [[*pair] for pair in self.left]

    def all_of(self, job: TrainJob) -> int:
        """Return the number of rounds of the run."""
        return math.ceil(job.policy.total_steps / self.every)

    def task(self, job: TrainJob, batch: int) -> Task:
        first = batch * self.every
        return Task(batch, 0, 1, self.attempt, (first, min(first + self.every, job.policy.total_steps)))

    def server_state(self, job: TrainJob) -> tuple[dict[str, Any], dict[str, Any]]:
        return {f"{name}/{entry}": t.numpy() for key, t in self.outer.items() for entry, _, name in [key.partition("/")]}, {}

    def take_server_state(self, job: TrainJob, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        self.outer = {f"{entry}/{name}": t for key, t in tensors.items() for name, _, entry in [key.rpartition("/")]}


class OuterState:
    """The outer optimizer's state as the checkpoint's group `outer`: `<entry>/<parameter>`."""

    def __init__(self, owner: AsyncDiLoCo) -> None:
        self.owner = owner

    def tensors(self) -> dict[str, Tensor]:
        owner = self.owner
        if owner.outer:
            return owner.outer
        anchor = {n: p for n, p in owner.job.model.named_parameters() if p.requires_grad}
        outer = owner.config.outer
        assert outer is not None
        return outer.state(anchor) or {"none": torch.zeros(())}  # the group must exist, also for an outer optimizer without state

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.owner.outer = {k: v for k, v in tensors.items() if k != "none"}
