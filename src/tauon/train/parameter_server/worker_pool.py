"""The driver's view of the workers of a parameter server: which are ready, what each computes, which died. Does not decide about steps.

A worker joins when its process is ready; one that dies is replaced while restarts are left, and its task is returned. Results arrive in the
order in which they are finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tauon.distributed.server_group import ServerDied, check_version
from tauon.errors import TauonError, TrainingError
from tauon.train.parameter_server.worker import Done, versions

__all__ = ["Result", "Task", "Worker", "WorkerPool"]


@dataclass(frozen=True)
class Task:
    """One gradient to compute."""

    step: int
    """Step of the batch; in asynchronous modes the number of the batch, or of the round of local steps."""
    share: int
    shares: int
    attempt: int = 0
    """How often the run was restored from a checkpoint: results of earlier attempts are ignored."""
    local: tuple[int, int] | None = None
    """Local steps [first, last) to do instead of one gradient."""


@dataclass
class Result:
    """A computed gradient."""

    task: Task
    done: Done
    pushes: list[Any]
    """References to the `Push` for each shard."""
    pulled: list[Any]
    """References to the weights that it was computed with."""
    version: int
    """Version of those weights."""


@dataclass
class Worker:
    """A worker's process."""

    number: int
    actor: Any
    starting: Any
    """Reference to the result of `set_up`; None when the worker is ready."""
    about: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None
    refs: list[Any] = field(default_factory=list)
    pulled: list[Any] = field(default_factory=list)
    version: int = 0

    @property
    def idle(self) -> bool:
        return self.starting is None and self.task is None


class WorkerPool:
    """The workers by number."""

    def __init__(
        self, ray: Any, start: Callable[[int], Any], count: int, *, shards: int, timeout: float, may_restart: Callable[[str], bool],
        greet: Callable[[Worker], None], on_note: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`start(number)` makes an actor; `greet` is called with each worker that is ready, before it gets work."""
        self.ray, self.start, self.shards, self.timeout = ray, start, shards, timeout
        self.may_restart, self.greet, self.on_note = may_restart, greet, on_note
        self.workers: dict[int, Worker] = {}
        for number in range(count):
            self.join(number)

    def join(self, number: int) -> None:
        """Add a worker; it gets work when its process is ready."""
        actor = self.start(number)
        self.workers[number] = Worker(number, actor, actor.set_up.remote())

    def leave(self, number: int) -> Task | None:
        """Stop a worker and return its task."""
        worker = self.workers.pop(number)
        self.ray.kill(worker.actor)
        return worker.task

    @property
    def idle(self) -> list[Worker]:
        return [m for _, m in sorted(self.workers.items()) if m.idle]

    def give(self, worker: Worker, task: Task, nominal: float, version: int, weights: list[Any]) -> None:
        """Give an idle worker a task with `weights`."""
        assert worker.idle
        worker.task, worker.pulled, worker.version = task, weights, version
        at = (task.attempt, version)
        if task.local is not None:
            worker.refs = worker.actor.round.options(num_returns=1 + self.shards).remote(*task.local, at, *weights)
            return
        call = worker.actor.gradient.options(num_returns=1 + self.shards)
        worker.refs = call.remote(task.step, task.share, task.shares, nominal, at, *weights)

    def wait(self) -> tuple[list[Result], list[Task]]:
        """Wait until something happens; return (results, tasks to repeat because their worker died).

        Raises:
            ServerDied: weights that a worker needed are lost; its task is not done.
            TauonError: an error that a worker raised.
            TrainingError: timed out, or no worker is left.
        """
        watched = {(m.refs[0] if m.starting is None else m.starting): m for m in self.workers.values() if not m.idle}
        if not watched:
            raise TrainingError(
                "no worker is left, and parallel.max_restarts is used up. The same command resumes from the last checkpoint."
            )
        ready, _ = self.ray.wait(list(watched), num_returns=len(watched), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(list(watched), num_returns=1, timeout=self.timeout)
        if not ready:
            raise TrainingError(self.stuck(list(watched.values())))
        results: list[Result] = []
        again: list[Task] = []
        trouble: ServerDied | None = None
        for ref in ready:
            worker = watched[ref]
            try:
                self.take(worker, self.value(ref, worker), results)
            except ServerDied as err:
                trouble = err
                again += [worker.task] if worker.task else []
                worker.task = None
            except self.ray.exceptions.RayError as err:
                again += self.bury(worker, err)
        if trouble is not None:
            trouble.results, trouble.again = results, again  # type: ignore[attr-defined]
            raise trouble
        return results, again

    def take(self, worker: Worker, value: Any, results: list[Result]) -> None:
        """Handle a worker's answer: the worker is ready, or its gradient is."""
        if worker.starting is not None:
            check_version(value["versions"], versions(), f"worker {worker.number} on {value['node']}")
            worker.about, worker.starting = value, None
            self.greet(worker)
            return
        assert worker.task is not None
        results.append(Result(worker.task, value, worker.refs[1:], worker.pulled, worker.version))
        worker.task, worker.refs, worker.pulled = None, [], []

    def value(self, ref: Any, worker: Worker) -> Any:
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(ref, timeout=self.timeout)
        except exceptions.RayTaskError as err:
            cause = err.cause
            if isinstance(cause, exceptions.RayError):
                raise ServerDied(str(cause).splitlines()[0]) from err
            if isinstance(cause, TauonError):
                cause.add_note(f"raised by worker {worker.number}{self.place(worker)}")
                raise cause from None
            first = str(cause).splitlines()[0] if str(cause) else ""
            raise TrainingError(f"worker {worker.number}{self.place(worker)}: {type(cause).__name__}: {first}") from err
        except exceptions.RayActorError as err:
            if "creation task" in str(err):
                last = str(err).strip().splitlines()[-1]
                raise TrainingError(
                    f"worker {worker.number} could not be started: {last}. Install the same packages on every machine."
                ) from err
            if self.alive(worker):  # the server that it reads weights from died
                raise ServerDied(str(err).splitlines()[0]) from err
            raise

    def alive(self, worker: Worker) -> bool:
        try:
            self.ray.get(worker.actor.ping.remote(), timeout=self.timeout)
        except self.ray.exceptions.RayError:
            return False
        return True

    def bury(self, worker: Worker, err: Exception) -> list[Task]:
        """Replace a worker that died, if restarts are left; return its task."""
        del self.workers[worker.number]
        what = f"worker {worker.number}{self.place(worker)}"
        if self.may_restart(what):
            self.join(worker.number)
            self.on_note(f"{what} died; a replacement is started, and its share of the step is repeated")
        else:
            self.on_note(f"{what} died, and parallel.max_restarts is used up; {len(self.workers)} workers continue without it")
        return [worker.task] if worker.task is not None else []

    @staticmethod
    def place(worker: Worker) -> str:
        return f" (pid {worker.about['pid']} on {worker.about['node']})" if worker.about else ""

    def stuck(self, workers: list[Worker]) -> str:
        doing = ", ".join(
            f"worker {m.number}{self.place(m)} " + ("starting" if m.task is None else f"at batch {m.task.step}, share {m.task.share}")
            for m in workers
        )
        hint = ""
        if all(m.starting is not None for m in workers):
            cpus = self.ray.cluster_resources().get("CPU", 0)
            hint = f" Ray has {cpus:g} CPUs in total: check that enough are free for a worker."
        return f"timed out after {self.timeout:g} s (parallel.timeout) waiting for: {doing}.{hint} The same command resumes from the last checkpoint."
