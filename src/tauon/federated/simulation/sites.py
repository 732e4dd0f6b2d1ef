"""Simulated sites: many clients over one data set, in this process, by one training job whose loader is exchanged.

There is no model for each client; a client is its rows, and, for strategies with state at the sites, the tensors of its last round. Several workers
train clients side by side, each with a job of its own and one thread of torch: small steps gain nothing from more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Queue
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.data import Loader
from tauon.errors import Problem, RecipeError, TauonError
from tauon.federated.local import LocalTraining
from tauon.federated.messages import Failure, Message, MessageError
from tauon.federated.site_state import SiteState
from tauon.federated.strategies import StrategyConfig
from tauon.train import TrainJob, step_seed, validation_loss, validation_marks
from tauon.types import Batch, Dataset

__all__ = ["ClientRows", "SimulatedSites", "local_job"]

T = TypeVar("T")
R = TypeVar("R")
ROWS = 512
"""Examples in a batch of an evaluation."""
KEPT = 2
"""Rounds whose state a client keeps: the last, and the one before it, from which a round that is repeated starts."""


class ClientRows:
    """The examples of one client, as a data set."""

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64]) -> None:
        self.dataset, self.rows, self.spec = dataset, np.asarray(rows, np.int64), dataset.spec
        self.facts: dict[str, Any] = {"examples": len(rows)}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the examples `index` of this client."""
        return self.dataset.batch(self.rows[index], epoch=epoch)

    def batches(self) -> Iterator[Batch]:
        """All examples, in order."""
        for start in range(0, len(self.rows), ROWS):
            yield self.dataset.batch(self.rows[start : start + ROWS])


class SimulatedSites:
    """A transport to clients that are simulated here, one after the other, in the order of their names.

    It is `Stateful`: put it into `job.extra` of the coordinator's job to save the state of the clients with each checkpoint.

    Args:
        job: how a client trains; belongs to this object from now on. Its loader is replaced. Not the coordinator's job.
        dataset: examples of all clients.
        parts: row numbers of each client (`ClientSplit.split`).
        batch: examples in a local step; 0: all examples of the client.
        strategy: decides what stays at the clients.
        held_out: rows of each client that "evaluate" measures, in `evaluated`.
        evaluated: data set of `held_out`; None: `dataset`.
        workers: clients that train at the same time; None: as many as torch has threads, or 1 if the model draws at random.
    """

    def __init__(
        self, job: TrainJob, dataset: Dataset, parts: Sequence[NDArray[np.int64]], *, batch: int, strategy: StrategyConfig,
        held_out: Sequence[NDArray[np.int64]] | None = None, evaluated: Dataset | None = None, workers: int | None = 1,
    ) -> None:  # fmt: skip
        if workers is not None and workers > 1 and draws(job.model):
            raise RecipeError(
                [Problem("federate.workers", "dropout draws from one generator, so that its clients train one after the other: use 1.")]
            )
        if workers is None:
            workers = 1 if draws(job.model) else torch.get_num_threads()
        if job.policy.device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in job.model.modules()):
            job.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a step of a small CNN takes a fifth less
        self.locals = [LocalTraining(own, 1, keep=strategy.keep(job.model)) for own in (job, *(local_job(job) for _ in range(1, workers)))]
        if workers > 1 and draws(job.model):
            raise RecipeError(
                [Problem("federate.workers", "dropout draws from one generator, so that its clients train one after the other: use 1.")]
            )
        self.dataset, self.parts, self.batch, self.held_out = dataset, parts, batch, held_out
        self.evaluated = evaluated if evaluated is not None else dataset
        width = len(str(max(1, len(parts) - 1)))
        self.names = [f"client-{i:0{width}d}" for i in range(len(parts))]
        self.number = {name: i for i, name in enumerate(self.names)}
        self.states: dict[str, SiteState] = {}
        self.seed = job.policy.seed

    def sites(self) -> list[str]:
        """Return the names of the clients."""
        return list(self.names)

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Answer each message in turn. The time is not limited: it is this computer's, not a client's."""
        if len(self.locals) == 1 or len(messages) == 1:
            return {name: self.answer(name, message, self.locals[0]) for name, message in messages.items()}
        free: Queue[LocalTraining] = Queue()
        for local in self.locals:
            free.put(local)

        def work(name: str) -> Message | Failure:
            local = free.get()
            try:
                return self.answer(name, messages[name], local)
            finally:
                free.put(local)

        return dict(zip(messages, side_by_side(work, list(messages), len(self.locals)), strict=True))

    def answer(self, name: str, message: Message, local: LocalTraining) -> Message | Failure:
        """Return a client's answer, by `local`."""
        client = self.number[name]
        try:
            if message.kind == "join":
                return message.answer("joined", {"examples": len(self.parts[client]), "session": name})
            self.prepare(client, local)
            if message.kind == "evaluate":
                return message.answer("evaluated", self._evaluate(client, message, local))
            return self._train(name, message, local)
        except TauonError as err:
            return Failure(str(err))

    def loader(self, client: int) -> Loader:
        """Return the batches of a client: a function of the job's seed, the client and the step."""
        rows = ClientRows(self.dataset, self.parts[client])
        return Loader(rows, batch=self.batch or len(rows), seed=step_seed(self.seed, client))

    def prepare(self, client: int, local: LocalTraining) -> None:
        """Give a job the data of a client."""
        job, loader = local.job, self.loader(client)
        rows: Any = loader.dataset
        job.loader, local.examples, local.data = loader, len(rows), rows.batches
        job.policy = replace(job.policy, seed=step_seed(self.seed, client))
        job.health.load({"mean": 0.0, "good": 0, "bad_in_a_row": 0, "skipped": 0})

    def _train(self, name: str, message: Message, local: LocalTraining) -> Message:
        state = self.states.get(name) or SiteState(keep=KEPT)
        answer = local.train(message, state)
        if state.rounds or local.private:
            self.states[name] = state
        return answer

    def _evaluate(self, client: int, message: Message, local: LocalTraining) -> dict[str, Any]:
        if self.held_out is None:
            raise MessageError("the simulated clients have no held-out examples")
        rows = ClientRows(self.evaluated, self.held_out[client])
        state = self.states.get(self.names[client]) or SiteState(keep=KEPT)
        local.load(message.tensors, state.before(message.round + 1))
        fields = {"examples": len(rows), "metrics": metrics_of(local.job, rows.batches)}
        if steps := message.fields.get("fine_tune", 0):
            local.fine_tune(steps)
            fields["tuned"] = metrics_of(local.job, rows.batches)
        return fields

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{n}": t for name, state in self.states.items() for n, t in state.tensors().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        each: dict[str, dict[str, Tensor]] = {}
        for key, t in tensors.items():
            name, _, rest = key.partition("/")
            each.setdefault(name, {})[rest] = t
        self.states = {}
        for name, own in each.items():
            self.states[name] = SiteState(keep=KEPT)
            self.states[name].load(own)


def side_by_side(work: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """Return work(item) of each item, by so many threads, in each of which torch computes with one."""

    def alone(item: T) -> R:
        torch.set_num_threads(1)  # of this thread
        return work(item)

    threads = torch.get_num_threads()
    try:
        if workers == 1:
            return [alone(item) for item in items]
        with ThreadPoolExecutor(workers, "tauon-client") as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)


def metrics_of(job: TrainJob, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Return loss, the task's validation metrics, and accuracy for tasks with scores of classes."""
    job.model.eval()
    correct = total = 0
    for batch in (b.to(job.policy.device) for b in batches()):
        scores = job.task.predict(job.model, batch).get("scores")
        if scores is not None and scores.ndim == 2:
            correct, total = correct + int((scores.argmax(1) == batch.targets).sum()), total + len(batch)
    job.model.train()
    found = {"loss": validation_loss(job, iter(batches()))} | validation_marks(job, iter(batches()))
    return found | ({"accuracy": correct / total} if total else {})


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


def draws(model: nn.Module) -> bool:
    """Return whether a model draws at random in training: dropout, stochastic depth."""
    rates = ("dropout", "input_dropout", "drop_path", "p")
    return any(isinstance(r := getattr(m, k, 0), int | float) and r > 0 for m in model.modules() for k in rates)
