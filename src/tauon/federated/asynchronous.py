"""Asynchronous rounds (FedBuff): a step of the server is made of the first K updates that arrive, from whatever weights they started.

A resume starts the sites that were training again, from the weights of the checkpoint.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, Queue
from typing import Any, Protocol

from torch import Tensor

from tauon.errors import TrainingError
from tauon.federated.gradients import FederatedGradients
from tauon.federated.messages import Failure, Message, MessageError, Transport
from tauon.federated.roster import sample_sites
from tauon.federated.rounds import Rounds
from tauon.federated.strategies import FedBuff
from tauon.federated.summation import Collected, PlainSummation, tensor_bytes
from tauon.federated.updates import check_update
from tauon.train import TrainJob

__all__ = ["Arrivals", "BufferedGradients", "SimulatedArrivals", "ThreadedArrivals"]


class Arrivals(Protocol):
    """Answers that arrive one by one."""

    def start(self, site: str, message: Message, *, timeout: float) -> None:
        """Ask a site, and return at once."""
        ...

    def next(self, timeout: float) -> tuple[str, Message | Failure] | None:
        """Return the next answer; None if there was none within `timeout` seconds."""
        ...


class ThreadedArrivals:
    """Asks a transport by threads, one for each site that trains. The transport must allow that."""

    def __init__(self, transport: Transport, concurrency: int) -> None:
        self.transport = transport
        self._pool = ThreadPoolExecutor(concurrency, "tauon-site")
        self._done: Queue[tuple[str, Message | Failure]] = Queue()

    def start(self, site: str, message: Message, *, timeout: float) -> None:
        """See `Arrivals.start`."""

        def ask() -> None:
            try:
                answer = self.transport.ask({site: message}, timeout=timeout)[site]
            except Exception as err:
                answer = Failure(f"the transport failed: {err}")
            self._done.put((site, answer))

        self._pool.submit(ask)

    def next(self, timeout: float) -> tuple[str, Message | Failure] | None:
        """See `Arrivals.next`."""
        try:
            return self._done.get(timeout=timeout)
        except Empty:
            return None


class SimulatedArrivals:
    """Answers of simulated sites in the order of a simulated clock: each takes as long as `duration` says, in seconds that do not pass."""

    def __init__(self, transport: Transport, duration: Callable[[str, int], float]) -> None:
        """`duration`: (site, number of this request) -> seconds."""
        self.transport, self.duration = transport, duration
        self.clock = 0.0
        """Seconds since the start, of the simulated clock."""
        self._count = 0
        self._coming: list[tuple[float, int, str, Message]] = []

    def start(self, site: str, message: Message, *, timeout: float) -> None:
        """See `Arrivals.start`."""
        self._count += 1
        heapq.heappush(self._coming, (self.clock + self.duration(site, self._count), self._count, site, message))

    def next(self, timeout: float) -> tuple[str, Message | Failure] | None:
        """See `Arrivals.next`; sites train only now, one after the other."""
        if not self._coming:
            return None
        at, _, site, message = heapq.heappop(self._coming)
        self.clock = max(self.clock, at)
        return site, self.transport.ask({site: message}, timeout=timeout)[site]


class BufferedGradients(FederatedGradients):
    """The gradient function of an asynchronous coordinator: a buffer of updates, each scaled by its staleness."""

    def __init__(self, job: TrainJob, transport: Transport, strategy: FedBuff, rounds: Rounds, arrivals: Arrivals) -> None:
        super().__init__(job, transport, strategy, rounds, PlainSummation())
        self.buffer, self.arrivals = strategy, arrivals
        self.training: dict[str, Message] = {}
        """What each site that trains now was asked."""
        self._asked = 0

    def collect(self, job: TrainJob, number: int) -> Collected:
        """Keep `concurrency` sites busy until the buffer is full. Raises `TrainingError` if too many answers are bad, or none arrives."""
        result, tensors = Collected(), self.tensors()
        bad, most = 0, self.rounds.attempts * self.buffer.buffer
        staleness: list[int] = []
        while len(result.updates) < self.buffer.buffer:
            self._start(number, tensors)
            arrived = self.arrivals.next(self.rounds.timeout) if self.training else None
            if arrived is None:
                reasons = "; ".join(f"{n}: {r}" for n, r in list(self.roster.refused.items())[:3])
                raise TrainingError(
                    f"round {number}: no site answered within {self.rounds.timeout:g} s. {reasons or 'No site has joined.'}"
                )
            site, answer = arrived
            reason = self._take(site, answer, number, result)
            if reason is None:
                staleness.append(number - result.updates[-1].version)
                continue
            bad += 1
            if bad >= most:
                raise TrainingError(f"round {number}: {bad} answers could not be used; the last, of {site}: {reason}. Check the sites.")
        job.measured |= {"sites": len(result.updates), "refused": len(result.refused), "failed": len(result.failed)}
        job.measured["staleness"] = sum(staleness) / len(staleness)
        event: dict[str, Any] = {
            "round": number,
            "attempt": 0,
            "asked": len(self.training),
            "good": len(result.updates),
            "sites": result.sites,
        }
        event |= {"failed": result.failed, "refused": result.refused, "received_bytes": result.received_bytes, "staleness": staleness}
        self.report("federated_round", event)
        return result

    def _start(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Ask idle sites, drawn by seed, until enough train."""
        if len(self.training) >= self.buffer.concurrency:
            return
        idle = [n for n in self.roster.update(number) if n not in self.training]
        count = self.buffer.concurrency - len(self.training)
        for name in sample_sites(idle, count, seed=self.rounds.seed, number=number, attempt=self._asked):
            self._asked += 1
            message = self.messages(number, self._asked, [name], tensors)[name]
            self.training[name] = message
            self.arrivals.start(name, message, timeout=self.rounds.timeout)

    def _from_now(self, update: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the update with running statistics as what they differ by from today's, not from those that were sent: a difference from an older
        variance, added to a smaller one, would make it negative.
        """
        return {n: t + (sent[n] - self.statistics[n].cpu()).to(t.dtype) if n in self.statistics else t for n, t in update.items()}

    def _take(self, site: str, answer: Message | Failure, number: int, result: Collected) -> str | None:
        """Add an answer to the result; return why it was not added."""
        order = self.training.pop(site)
        if isinstance(answer, Failure):
            self.roster.forget(site, answer.reason)
            result.failed[site] = answer.reason
            return answer.reason
        result.received_bytes += tensor_bytes(answer)
        try:
            declared = self.roster.joined[site].examples
            update = check_update(order, answer, site=site, declared=declared, limits=self.rounds.limits)
            if (stale := number - order.round) > self.buffer.max_staleness:
                raise MessageError(f"the update of {site} is {stale} steps old, above the limit of {self.buffer.max_staleness}")
        except MessageError as err:
            result.refused[site] = str(err)
            return str(err)
        result.updates.append(replace(update, tensors=self._from_now(update.tensors, order.tensors), weight=self.buffer.scale(stale)))
        known = {"examples": update.examples, "steps": update.steps, "loss": update.loss, "staleness": stale}
        result.sites[site] = {k: v for k, v in known.items() if not (isinstance(v, float) and math.isnan(v))}
        return None
