"""Training with a parameter server: a job whose seams talk to servers and workers instead of computing here.

make: workers make gradients, each of a share of the batch (`sync`) or of a batch of its own (`async`, `ssp`); exchange: servers sum what was
pushed; clip: from the norms that they report; update: they apply it. The loop, its hooks, checkpoints and validation stay as they are, and
so does what a step is: one update from `train.batch` examples.

The driver holds a copy of the model and of the optimizer for them, which `gather` brings up to date. It computes no gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import dump, load_plugins, parse
from tauon.distributed.codec import Floats
from tauon.distributed.parameter_server import ParameterServer
from tauon.distributed.partition import partition
from tauon.distributed.ray_session import import_ray, ray_session
from tauon.distributed.server import Names
from tauon.distributed.server_group import ATTEMPTS, Blueprint, ServerDied, ServerGroup, ServerLost, gather, scatter, unreachable
from tauon.distributed.statistics import refuse_running_statistics
from tauon.errors import Problem, RecipeError, TrainingError
from tauon.optim import OptimConfig, load_optimizer, optimizer_tensors
from tauon.train.parameter_server.shape_only import ShapeOnlyLoader
from tauon.train.parameter_server.worker import Gradients, Work
from tauon.train.parameter_server.worker_pool import Result, Task, Worker, WorkerPool
from tauon.train.step import TrainJob
from tauon.types import Batch

__all__ = ["FEEDBACK", "NOTE", "ErrorFeedbackState", "OptimizerOf", "SyncParameterServer"]

NOTE = "parameter_server"
FEEDBACK = "push_feedback"


@dataclass(frozen=True)
class OptimizerOf:
    """Builds the recipe's optimizer in another process, from plain data."""

    record: dict[str, Any]

    def __call__(self, model: nn.Module) -> Optimizer:
        load_plugins()
        return parse(OptimConfig, self.record).build(model)


WHERE_DATA_IS = ("TAUON_DATA", "TAUON_CACHE")
"""What a worker on this machine must find as the driver does."""


def refuse_on_servers(job: TrainJob, optim: OptimConfig) -> None:
    """Raise `RecipeError` for what needs whole weights in one place at every step."""
    wrong = []
    if job.eval_weights is not None or hasattr(job.optimizer, "packed"):
        wrong.append(Problem("optim.kind", f"{optim.kind_} does not run on parameter servers. Take adamw, or parallel: replicate."))
    for name in ("clip_layer", "clip_adaptive"):
        if getattr(job.policy, name) is not None:
            wrong.append(
                Problem(f"optim.{name}", "servers hold pieces of layers. Take optim.clip_norm or clip_value, or parallel: replicate.")
            )
    if wrong:
        raise RecipeError(wrong)


class SyncParameterServer:
    """The synchronous mode, and what all modes share."""

    def __init__(self, job: TrainJob, config: ParameterServer, optim: OptimConfig, work: Work, on_note: Callable[[str], None]) -> None:
        import_ray()
        self.job, self.config, self.work, self.on_note = job, config, work, on_note
        refuse_on_servers(job, optim)
        self.names = Names.of(job.model)
        self.partition = partition(self.names.trained, config.servers, rows_may_part=optim.elementwise or config.outer is not None)
        refuse_running_statistics(job.model, "parameter-server")
        first = job.loader.batch_at(0)
        self.rows = len(first)
        self.nominal = max(job.task.weight(first).item(), 1.0)  # of batch 0, whatever step a resume begins at: the same division everywhere
        job.loader = ShapeOnlyLoader(first)
        self.read_settings()
        self.blueprint = Blueprint(
            self.partition, self.names, OptimizerOf(dump(optim)) if config.outer is None else None, config.outer, config.push, config.pull,
            clip_value=job.policy.clip_value if config.outer is None else None,
            compensation=config.delay_compensation if config.mode != "sync" else 0.0,
        )  # fmt: skip
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = config.threads or (1 if config.address is not None else max(1, cores // config.workers))
        self.restarts = self.attempt = 0
        self.results: list[Result] = []
        self.norms: list[Floats] = []
        self.rescale = self.scale = 1.0
        self.begun = False
        self.gathered = -1
        self.group: Any = None
        self.pool: Any = None
        job.functions = replace(
            job.functions, make=self.make, exchange=self.exchange, clip=self.clip, update=self.update, gather=self.gather
        )
        job.policy = replace(job.policy, reads_late=False)  # servers are told by this process whether a step counts
        if config.push.feedback:
            job.extra[FEEDBACK] = ErrorFeedbackState(self)

    def read_settings(self) -> None:
        """What only this mode reads of its settings."""
        config = self.config
        if self.rows % config.workers:
            raise RecipeError(
                [
                    Problem(
                        "train.batch",
                        f"{self.rows} examples cannot be shared evenly by parallel.workers={config.workers}. Take a multiple.",
                    )
                ]
            )
        self.needed = config.workers - config.backup_workers

    # ---------------------------------------------------------------------------------------- processes

    def __enter__(self) -> TrainJob:
        self.session = ray_session(self.config.address, cpus=self.config.workers * self.threads)
        self.ray = self.session.__enter__()
        try:
            config = self.config
            self.group = ServerGroup(
                self.ray, self.blueprint, replicas=config.replicas, timeout=config.timeout, may_restart=self.may_restart
            )
            self.pool = WorkerPool(
                self.ray, self.start_worker, config.workers, shards=config.servers, timeout=config.timeout, may_restart=self.may_restart,
                greet=self.greet, on_note=self.on_note,
            )  # fmt: skip
        except BaseException as err:
            self.__exit__(type(err), err, None)
            raise
        return self.job

    def __exit__(self, *about: Any) -> None:
        workers = [m.actor for m in self.pool.workers.values()] if self.pool is not None else []
        servers = self.group.actors if self.group is not None else []
        for actor in [*workers, *servers]:
            self.ray.kill(actor)
        self.session.__exit__(*about)

    def start_worker(self, number: int) -> Any:
        options: dict[str, Any] = {"num_cpus": self.threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        if self.job.policy.device.type == "cuda":
            options["num_gpus"] = 1
        if self.config.address is None:  # a Ray that ran before this process set them would not tell its workers
            options["runtime_env"] = {"env_vars": {k: v for k, v in os.environ.items() if k in WHERE_DATA_IS}}
        actor = self.ray.remote(Gradients).options(**options)
        return actor.remote(self.work, number, self.partition, self.config.push, self.config.pull, self.threads)

    def may_restart(self, what: str) -> bool:
        """Count a death against `max_restarts`."""
        if self.restarts >= self.config.max_restarts:
            return False
        self.restarts += 1
        self.job.measured["restarts"] = self.restarts
        if what.startswith("server"):
            self.on_note(f"{what} died; another takes its place")
        return True

    def greet(self, worker: Worker) -> None:
        """What a new worker needs beside weights."""
        worker.actor.fixed.remote(self.fixed)
        self.bring_left_out(worker)

    def bring_left_out(self, worker: Worker) -> None:
        """What a checkpoint kept of a worker's error feedback."""
        kept = self.job.extra.get(FEEDBACK)
        if isinstance(kept, ErrorFeedbackState) and worker.number in kept.saved:
            worker.actor.put_back.remote(self.share_of(worker.number), kept.saved.pop(worker.number))

    def share_of(self, number: int) -> int:
        """The share whose left-out parts worker `number` keeps."""
        return number

    def begin(self, job: TrainJob) -> None:
        """Hand the job's weights and optimizer state to the servers: at the first step, and after going back to a checkpoint."""
        weights = {n: p.detach().cpu().numpy() for n, p in job.model.named_parameters() if p.requires_grad}
        own = job.model.state_dict()
        tied = self.names.tied
        self.fixed = {n: t.cpu().numpy() for n, t in own.items() if n not in weights and n not in tied}
        tensors, numbers = self.server_state(job)
        # the servers' count of updates is the job's count of steps less those that were skipped: only differences matter
        self.group.load(scatter(self.partition, weights, tensors, numbers, job.step))
        self.gathered = self.group.version
        self.begun = True
        for worker in self.pool.workers.values():
            if worker.starting is None:
                self.bring_left_out(worker)

    # ---------------------------------------------------------------------------------------- the seams

    def make(self, job: TrainJob, batch: Batch) -> Tensor:
        """The mean loss; the gradients stay on their way to the servers."""
        if not self.begun:
            self.begin(job)
        self.results = self.collect(job)
        weight = sum(r.done.weight for r in self.results)
        self.rescale = self.nominal / weight if weight else 0.0
        loss = torch.zeros((), device=job.policy.device)
        for r in self.results:
            loss += r.done.loss
            job.traffic.add("push", r.done.pushed)
            job.traffic.add("pull", r.done.pulled)
        return loss * self.rescale if self.rescale != 1.0 else loss

    def collect(self, job: TrainJob) -> list[Result]:
        """The shares of this step, in order: all of them, or as many as are waited for."""
        shares = self.config.workers
        waiting = list(range(shares))
        found: dict[int, Result] = {}
        while len(found) < self.needed:
            for worker in self.pool.idle:
                share = self.pick(worker, waiting)
                if share is not None:
                    waiting.remove(share)
                    self.pool.give(
                        worker, Task(job.step, share, shares, self.attempt), self.nominal, self.group.version, self.group.weights
                    )
            results, again = self.wait()
            found |= {r.task.share: r for r in results if r.task.step == job.step and r.task.attempt == self.attempt}
            waiting += [t.share for t in again if t.step == job.step and t.attempt == self.attempt]
        kept = sorted(found)[: self.needed] if len(found) > self.needed else sorted(found)
        if len(kept) < shares:
            job.measured["dropped_examples"] = (shares - len(kept)) * (self.rows // shares)
        return [found[s] for s in kept]

    def pick(self, worker: Worker, waiting: list[int]) -> int | None:
        """Its own share first. A share that leaves something out belongs to the worker that keeps it, while there is one."""
        if worker.number in waiting:
            return worker.number
        free = [s for s in waiting if not (self.config.push.feedback and s in self.pool.workers)]
        return free[0] if free else None

    def wait(self) -> tuple[list[Result], list[Task]]:
        """`WorkerPool.wait`, with the servers healed where they were the reason."""
        try:
            happened: tuple[list[Result], list[Task]] = self.pool.wait()
            return happened
        except ServerDied as err:
            self.group.heal()
            return err.results, err.again  # type: ignore[attr-defined]

    def exchange(self, job: TrainJob) -> None:
        """Servers sum the pushes, in the order of shares."""
        for _ in range(ATTEMPTS):
            try:
                pulled = self.results[0].pulled if self.blueprint.compensation else None
                self.norms = self.group.reduce([r.pushes for r in self.results], rescale=self.rescale, pulled=pulled)
                return
            except ServerDied:
                if not self.group.heal():  # then it is the pushes that are gone, with the machine that they lay on
                    self.make(job, job.loader.batch_at(job.step))
        raise self.lost(job)

    def lost(self, job: TrainJob) -> TrainingError:
        return TrainingError(
            f"step {job.step + 1}: gradients were lost on their way three times. The same command goes on from the last checkpoint."
        )

    def clip(self, job: TrainJob) -> Tensor:
        """The global norm from those of the pieces, as `clip_gradients` takes it; the factor for the servers to multiply by."""
        parts: dict[str, list[float]] = {}
        for pieces, norms in zip(self.partition.shards, self.norms, strict=True):
            for piece, length in zip(pieces, norms, strict=True):
                parts.setdefault(piece.name, []).append(float(length))
        ordered = [parts[n] for n in self.names.trained]
        each = torch.stack([torch.tensor(v[0]) if len(v) == 1 else torch.linalg.vector_norm(torch.tensor(v)) for v in ordered])
        norm: Tensor = torch.linalg.vector_norm(each)
        self.scale = torch.clamp(job.policy.clip_norm / (norm + 1e-6), max=1.0).item() if job.policy.clip_norm is not None else 1.0
        return norm

    def update(self, job: TrainJob) -> None:
        """Servers apply what they summed, at this step's learning rate."""
        factor = job.set_rate()
        self.group.apply(self.scale, factor)
        if self.config.replicas:
            job.traffic.add("replica", self.config.replicas * sum(r.done.pushed for r in self.results))
        self.results = []
        if job.ema is not None:
            self.gather(job)

    def gather(self, job: TrainJob) -> None:
        """Weights and optimizer state from the servers into the driver's copies."""
        if not self.begun or self.gathered == self.group.version:
            return
        in_vain = 0
        while True:
            try:
                states = self.group.states()
                break
            except ServerDied as err:
                in_vain += not self.group.heal()
                if in_vain == ATTEMPTS:
                    raise unreachable(err) from err
        weights, tensors, numbers = gather(self.partition, self.names.trained, states)
        own = dict(job.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(torch.from_numpy(value))
        self.take_server_state(job, {k: torch.from_numpy(np.asarray(v)) for k, v in tensors.items()}, numbers)
        self.gathered = self.group.version

    def server_state(self, job: TrainJob) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arrays, numbers) of the servers' rule, as the job has them."""
        tensors, numbers = optimizer_tensors(job.optimizer, job.model)
        return {k: v.cpu().numpy() for k, v in tensors.items()}, numbers

    def take_server_state(self, job: TrainJob, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The reverse."""
        load_optimizer(job.optimizer, job.model, tensors, numbers)

    def through(self, go: Callable[[], object], back: Callable[[str], bool]) -> None:
        """`go` until it is through. Where a shard was lost, `back` puts the job back to a checkpoint, told why, and says whether there is one."""
        while True:
            try:
                go()
                return
            except ServerLost as err:
                if not back(str(err)):
                    raise
                self.start_over()

    def start_over(self) -> None:
        """The job was put back to a checkpoint: the servers follow at its next step."""
        self.begun, self.results = False, []
        self.attempt += 1


class ErrorFeedbackState:
    """What the workers' error feedback has not sent yet, as a part of the job's state: an exact resume needs it."""

    def __init__(self, owner: SyncParameterServer) -> None:
        self.owner = owner
        self.saved: dict[int, list[Floats]] = {}

    def tensors(self) -> dict[str, Tensor]:
        owner = self.owner
        out: dict[str, Tensor] = {}
        for number in range(owner.config.workers):
            kept = [np.zeros(n, np.float32) for n in owner.partition.sizes]
            worker = owner.pool.workers.get(number)
            if worker is not None and worker.starting is None:
                limit = owner.config.timeout
                try:
                    kept = owner.ray.get(worker.actor.left_out.remote(owner.share_of(number)), timeout=limit)
                except owner.ray.exceptions.GetTimeoutError:
                    said = f"worker {number} has not answered for {limit:g} s (parallel.timeout)."
                    raise TrainingError(f"{said} The same command goes on from the last checkpoint.") from None
                except owner.ray.exceptions.RayActorError:  # it died, and what it kept with it
                    pass
            out |= {f"{number}.{shard}": torch.from_numpy(np.array(values)) for shard, values in enumerate(kept)}
        return out

    def load(self, tensors: dict[str, Tensor]) -> None:
        sizes = self.owner.partition.sizes
        for number in range(self.owner.config.workers):
            found = [tensors.get(f"{number}.{shard}") for shard in range(len(sizes))]
            if all(
                t is not None and t.numel() == n for t, n in zip(found, sizes, strict=True)
            ):  # another number of workers: begins at zero
                self.saved[number] = [t.numpy() for t in found if t is not None]
