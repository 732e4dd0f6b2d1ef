"""The asynchronous and bounded-staleness modes: gradients are applied as they arrive."""

from __future__ import annotations

from tauon.train.parameter_server.sync import NOTE, SyncParameterServer
from tauon.train.parameter_server.worker_pool import Result, Task
from tauon.train.step import TrainJob

__all__ = ["AsyncParameterServer"]


class AsyncParameterServer(SyncParameterServer):
    """Asynchronous and bounded-staleness modes. One worker computes all of batch i; it is applied on arrival; step t is the t-th applied.

    Every batch below `total_steps` is applied exactly once, also after failures: only the order differs from `sync`.
    """

    def read_settings(self) -> None:
        self.staleness = self.config.staleness if self.config.mode == "ssp" else None
        self.needed = 1
        self.next = 0
        """The first batch that no worker has begun."""
        self.open: list[int] = []
        """Batches begun and not applied, including those of workers that died."""
        self.arrived: list[Result] = []

    def share_of(self, number: int) -> int:
        return 0

    def begin(self, job: TrainJob) -> None:
        super().begin(job)
        noted = job.notes.get(NOTE, {})
        known = noted.get("applied") == job.step
        self.next = noted["next"] if known else job.step
        self.open = list(noted["open"]) if known else []
        self.arrived = []

    def collect(self, job: TrainJob) -> list[Result]:
        self.fill(job)
        while not self.arrived:
            results, _ = self.wait()
            self.arrived += [r for r in results if r.task.attempt == self.attempt]
            self.fill(job)
        result = self.arrived.pop(0)
        job.measured["staleness"] = self.group.version - result.version
        return [result]

    def exchange(self, job: TrainJob) -> None:
        super().exchange(job)
        self.open.remove(self.results[0].task.step)  # it now counts as done, even if the step is skipped

    def update(self, job: TrainJob) -> None:
        super().update(job)
        self.fill(job)  # the worker that pushed continues with the updated weights

    def gather(self, job: TrainJob) -> None:
        super().gather(job)
        job.notes[NOTE] = {"applied": job.step, "next": self.next, "open": [*self.open]}

    def fill(self, job: TrainJob) -> None:
        """Give every idle worker a batch, within the staleness bound."""
        doing = {m.task.step for m in self.pool.workers.values() if m.task is not None and m.task.attempt == self.attempt} | {
            r.task.step for r in self.arrived
        }
        for worker in self.pool.idle:
            left = [b for b in self.open if b not in doing]
            batch = left[0] if left else self.next
            if batch >= self.all_of(job) or not self.allowed(batch):
                return
            if not left:
                self.open.append(batch)
                self.next += 1
            doing.add(batch)
            self.pool.give(worker, self.task(job, batch), self.nominal, self.group.version, self.group.weights)

    def all_of(self, job: TrainJob) -> int:
        """Return the number of batches of the run."""
        return job.policy.total_steps

    def task(self, job: TrainJob, batch: int) -> Task:
        return Task(batch, 0, 1, self.attempt)

    def allowed(self, batch: int) -> bool:
        """Return whether a batch may begin: its clock (batch // workers) is at most `staleness` ahead of the oldest open batch's."""
        if self.staleness is None:
            return True
        oldest = min([*self.open, batch])
        return batch // self.config.workers <= oldest // self.config.workers + self.staleness
