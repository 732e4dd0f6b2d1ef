"""Asynchronous DiLoCo: what workers push is what a round of steps of their own did to the weights."""

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
    """Asynchronous DiLoCo. Round r is steps [r H, r H + H): one worker takes them on its own, from the newest weights on, with its own optimizer,
    clipping and watch over gradients; the servers' outer optimizer acts on what that did (Liu et al. 2024, arXiv:2401.09135).

    When a round has come, the loop goes through its H steps and logs them; the servers are asked at the first of them. Workers' own optimizers are in no
    checkpoint: after a resume they begin afresh, as that of a worker does which joins late.
    """

    def read_settings(self) -> None:
        super().read_settings()
        if self.job.ema is not None:
            raise RecipeError(
                [Problem("train.ema", "averages every step's weights, and with parallel.outer they move every round. Drop it.")]
            )
        self.every = self.config.every
        self.left: list[list[float]] = []
        """Loss and gradient norm of the steps of the round that are not logged yet."""
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
        """At the first step of a round the servers take it in, unless it came to nothing finite."""
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
            self.on_note(f"round {self.results[0].task.step} came to weights that are not finite, and is left out")
        self.open.remove(self.results[0].task.step)
        self.results = []
        self.fill(job)

    def clip(self, job: TrainJob) -> Tensor:
        """The worker clipped; this is what it saw."""
        return torch.tensor(self.norm)

    def update(self, job: TrainJob) -> None:
        """Done at the round's first step, all of it. What is left is to log the learning rate that the worker had."""
        job.set_rate()

    def gather(self, job: TrainJob) -> None:
        super().gather(job)
        job.notes[NOTE]["left"] = [[*pair] for pair in self.left]

    def all_of(self, job: TrainJob) -> int:
        """Rounds of the whole run."""
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
        return outer.state(anchor) or {"none": torch.zeros(())}  # a group that is there, also of an outer optimizer without state

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.owner.outer = {k: v for k, v in tensors.items() if k != "none"}
