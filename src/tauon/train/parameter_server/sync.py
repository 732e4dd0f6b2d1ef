"""Training with a parameter server: a job whose seams talk to servers and workers instead of computing here.

make: workers compute gradients, each of a share of the batch (`sync`) or of its own batch (`async`, `ssp`); exchange: servers sum the pushed
gradients; clip: from the norms that servers report; update: servers apply it. Loop, hooks, checkpoints and validation are unchanged, and a
step is still one update from `train.batch` examples.

The driver has a copy of model and optimizer for hooks and checkpoints, which `gather` updates. It computes no gradient.
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
"""Environment variables that a worker on this machine must share with the driver."""


def refuse_on_servers(job: TrainJob, optim: OptimConfig) -> None:
    """Raise `RecipeError` for settings that need whole weights in one place at every step."""
    problems = []
    if job.eval_weights is not None or hasattr(job.optimizer, "packed"):
        problems.append(Problem("optim.kind", f"{optim.kind_} does not run on parameter servers. Use adamw, or parallel: replicate."))
    for name in ("clip_layer", "clip_adaptive"):
        if getattr(job.policy, name) is not None:
            message = "does not work with parameter servers, which hold parts of layers. Use optim.clip_norm or clip_value."
            problems.append(Problem(f"optim.{name}", message))
    if problems:
        raise RecipeError(problems)


class SyncParameterServer:
    """The synchronous mode, and the base of the other modes."""

    def __init__(self, job: TrainJob, config: ParameterServer, optim: OptimConfig, work: Work, on_note: Callable[[str], None]) -> None:
        import_ray()
        self.job, self.config, self.work, self.on_note = job, config, work, on_note
        refuse_on_servers(job, optim)
        self.names = Names.of(job.model)
        self.partition = partition(self.names.trained, config.servers, rows_may_part=optim.elementwise or config.outer is not None)
        refuse_running_statistics(job.model, "parameter-server")
        first = job.loader.batch_at(0)
        self.rows = len(first)
        self.nominal = max(job.task.weight(first).item(), 1.0)  # always of batch 0, so that the division is the same after a resume
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
        job.policy = replace(job.policy, reads_late=False)  # this process decides whether a step is skipped, and tells the servers
        if config.push.feedback:
            job.extra[FEEDBACK] = ErrorFeedbackState(self)

    def read_settings(self) -> None:
        """Read the settings of this mode."""
        config = self.config
        if self.rows % config.workers:
            raise RecipeError(
                [
                    Problem(
                        "train.batch",
                        f"{self.rows} examples do not divide evenly among parallel.workers={config.workers}. Use a multiple.",
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
        if self.config.address is None:  # a Ray that was started earlier does not pass them to its workers
            options["runtime_env"] = {"env_vars": {k: v for k, v in os.environ.items() if k in WHERE_DATA_IS}}
        actor = self.ray.remote(Gradients).options(**options)
        return actor.remote(self.work, number, self.partition, self.config.push, self.config.pull, self.threads)

    def may_restart(self, what: str) -> bool:
        """Count a failure against `max_restarts`; return whether a restart is left."""
        if self.restarts >= self.config.max_restarts:
            return False
        self.restarts += 1
        self.job.measured["restarts"] = self.restarts
        if what.startswith("server"):
            self.on_note(f"{what} died; a replacement is started")
        return True

    def greet(self, worker: Worker) -> None:
        """Send a new worker what it needs besides weights."""
        worker.actor.fixed.remote(self.fixed)
        self.bring_left_out(worker)

    def bring_left_out(self, worker: Worker) -> None:
        """Send a worker its error feedback from the checkpoint."""
        feedback = self.job.extra.get(FEEDBACK)
        if isinstance(feedback, ErrorFeedbackState) and worker.number in feedback.saved:
            worker.actor.put_back.remote(self.share_of(worker.number), feedback.saved.pop(worker.number))

    def share_of(self, number: int) -> int:
        """Return the share whose error feedback worker `number` keeps."""
        return number

    def begin(self, job: TrainJob) -> None:
        """Send the job's weights and optimizer state to the servers: at the first step, and after restoring a checkpoint."""
        weights = {n: p.detach().cpu().numpy() for n, p in job.model.named_parameters() if p.requires_grad}
        own = job.model.state_dict()
        tied = self.names.tied
        self.fixed = {n: t.cpu().numpy() for n, t in own.items() if n not in weights and n not in tied}
        tensors, numbers = self.server_state(job)
        # the servers count updates, the job counts steps including skipped ones: only differences matter
        self.group.load(scatter(self.partition, weights, tensors, numbers, job.step))
        self.gathered = self.group.version
        self.begun = True
        for worker in self.pool.workers.values():
            if worker.starting is None:
                self.bring_left_out(worker)

    # ---------------------------------------------------------------------------------------- the seams

    def make(self, job: TrainJob, batch: Batch) -> Tensor:
        """Return the mean loss; the gradients are sent to the servers."""
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
        """Return the shares of this step in order: all of them, or as many as the step waits for."""
        shares = self.config.workers
        waiting = list(range(shares))
        by_share: dict[int, Result] = {}
        while len(by_share) < self.needed:
            for worker in self.pool.idle:
                share = self.pick(worker, waiting)
                if share is not None:
                    waiting.remove(share)
                    self.pool.give(
                        worker, Task(job.step, share, shares, self.attempt), self.nominal, self.group.version, self.group.weights
                    )
            results, again = self.wait()
            by_share |= {r.task.share: r for r in results if r.task.step == job.step and r.task.attempt == self.attempt}
            waiting += [t.share for t in again if t.step == job.step and t.attempt == self.attempt]
        used = sorted(by_share)[: self.needed] if len(by_share) > self.needed else sorted(by_share)
        if len(used) < shares:
            job.measured["dropped_examples"] = (shares - len(used)) * (self.rows // shares)
        return [by_share[s] for s in used]

    def pick(self, worker: Worker, waiting: list[int]) -> int | None:
        """Return a share for a worker: its own if possible. With error feedback, a share belongs to its worker while that exists."""
        if worker.number in waiting:
            return worker.number
        free = [s for s in waiting if not (self.config.push.feedback and s in self.pool.workers)]
        return free[0] if free else None

    def wait(self) -> tuple[list[Result], list[Task]]:
        """Call `WorkerPool.wait`; if a server died, replace it."""
        try:
            happened: tuple[list[Result], list[Task]] = self.pool.wait()
            return happened
        except ServerDied as err:
            self.group.heal()
            return err.results, err.again  # type: ignore[attr-defined]

    def exchange(self, job: TrainJob) -> None:
        """Let the servers sum the pushed gradients, in the order of shares."""
        for _ in range(ATTEMPTS):
            try:
                pulled = self.results[0].pulled if self.blueprint.compensation else None
                self.norms = self.group.reduce([r.pushes for r in self.results], rescale=self.rescale, pulled=pulled)
                return
            except ServerDied:
                if not self.group.heal():  # no server died: the pushed gradients were lost with their machine
                    self.make(job, job.loader.batch_at(job.step))
        raise self.lost(job)

    def lost(self, job: TrainJob) -> TrainingError:
        return TrainingError(
            f"step {job.step + 1}: gradients were lost in transit three times. The same command resumes from the last checkpoint."
        )

    def clip(self, job: TrainJob) -> Tensor:
        """Return the global norm, computed from those of the shards as in `clip_gradients`; set the servers' clipping factor."""
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
        """Let the servers apply the summed gradients at this step's learning rate."""
        factor = job.set_rate()
        self.group.apply(self.scale, factor)
        if self.config.replicas:
            job.traffic.add("replica", self.config.replicas * sum(r.done.pushed for r in self.results))
        self.results = []
        if job.ema is not None:
            self.gather(job)

    def gather(self, job: TrainJob) -> None:
        """Copy weights and optimizer state from the servers to the driver."""
        if not self.begun or self.gathered == self.group.version:
            return
        failures = 0
        while True:
            try:
                states = self.group.states()
                break
            except ServerDied as err:
                failures += not self.group.heal()
                if failures == ATTEMPTS:
                    raise unreachable(err) from err
        weights, tensors, numbers = gather(self.partition, self.names.trained, states)
        own = dict(job.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(torch.from_numpy(value))
        self.take_server_state(job, {k: torch.from_numpy(np.asarray(v)) for k, v in tensors.items()}, numbers)
        self.gathered = self.group.version

    def server_state(self, job: TrainJob) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (arrays, numbers): the job's optimizer state for the servers."""
        tensors, numbers = optimizer_tensors(job.optimizer, job.model)
        return {k: v.cpu().numpy() for k, v in tensors.items()}, numbers

    def take_server_state(self, job: TrainJob, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Set the job's optimizer state from the servers'."""
        load_optimizer(job.optimizer, job.model, tensors, numbers)

    def through(self, go: Callable[[], object], back: Callable[[str], bool]) -> None:
        """Run `go` to its end. If a shard was lost, call `back(reason)`, which restores a checkpoint, or returns False if there is none."""
        while True:
            try:
                go()
                return
            except ServerLost as err:
                if not back(str(err)):
                    raise
                self.start_over()

    def start_over(self) -> None:
        """Called after the job was restored from a checkpoint: the servers are updated at the next step."""
        self.begun, self.results = False, []
        self.attempt += 1


class ErrorFeedbackState:
    """The workers' error feedback (compression error not sent yet) as part of the job's state: an exact resume needs it."""

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
                    message = f"worker {number} has not answered for {limit:g} s (parallel.timeout)."
                    raise TrainingError(f"{message} The same command resumes from the last checkpoint.") from None
                except owner.ray.exceptions.RayActorError:  # it died, and its error feedback is lost
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
