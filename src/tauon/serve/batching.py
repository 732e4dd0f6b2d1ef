"""`Batcher`: joins waiting requests into one call of the model. The batch size is not set: it follows from a latency target and the measured
time of a call.

While the model computes, requests wait; then as many are taken as fit. No request waits for others to come. A request waits for at most one
running call and then for its own, so a batch may take half the target. A call that takes less than a millisecond runs on the event loop itself:
handing it to a thread would cost more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tauon.serve.errors import HttpError

__all__ = ["Batcher", "Speed"]

INLINE_SECONDS = 0.001
LARGEST = 256


@dataclass
class Speed:
    """Measured seconds of a call by number of rows, in powers of two, as moving averages."""

    seconds: dict[int, float] = field(default_factory=dict)

    @staticmethod
    def bucket(rows: int) -> int:
        """Return the power of two that is not below `rows`."""
        return 1 << max(0, rows - 1).bit_length()

    _largest: dict[float, int] = field(default_factory=dict, repr=False)
    """Answers of `rows_within`, until a time has changed by a tenth."""
    _then: dict[int, float] = field(default_factory=dict, repr=False)

    def add(self, rows: int, seconds: float) -> None:
        """Count one call."""
        at = self.bucket(rows)
        before = self.seconds.get(at)
        now = self.seconds[at] = seconds if before is None else 0.9 * before + 0.1 * seconds
        if abs(now - self._then.get(at, 0.0)) > 0.1 * now:
            self._then[at] = now
            self._largest.clear()

    def of(self, rows: int) -> float:
        """Return the expected seconds of a call: measured, or in proportion to the nearest measured size."""
        at = self.bucket(rows)
        if at in self.seconds:
            return self.seconds[at]
        if not self.seconds:
            return 0.0
        near = min(self.seconds, key=lambda size: abs(size.bit_length() - at.bit_length()))
        return self.seconds[near] * max(1.0, at / near)

    def rows_within(self, seconds: float) -> int:
        """Return the largest number of rows, a power of two, whose call takes at most `seconds`; 1 if none does."""
        best = self._largest.get(seconds)
        if best is None:
            best = 1
            while best < LARGEST and self.of(best * 2) <= seconds:
                best *= 2
            self._largest[seconds] = best
        return best


@dataclass
class _Waiting:
    item: Any
    rows: int
    future: asyncio.Future[Any]
    since: float


class Batcher:
    """Runs `compute` on joined items, one call at a time, in arrival order.

    `compute(items)` returns a result or an exception for each item.
    """

    def __init__(
        self, compute: Callable[[Sequence[Any]], Sequence[Any]], *, latency_target: float, most_queued: int, most_wait: float,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            compute: the model.
            latency_target: seconds.
            most_queued: rows that may wait; more, if all are answered within the latency target.
            most_wait: seconds that a request may expect to wait; beyond it is refused at once.
            on_batch: called with (rows, seconds) of each call.
        """
        self.compute, self.latency_target, self.most_queued, self.most_wait = compute, latency_target, most_queued, most_wait
        self.on_batch = on_batch
        self.speed = Speed()
        self.queued = 0
        self._waiting: deque[_Waiting] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Any, rows: int) -> Any:
        """Return the result of `item`.

        Raises:
            HttpError: 429, if too many rows wait already.
        """
        if self.queued and (not self._fits(rows) or self.expected_wait() > self.most_wait):
            raise HttpError(
                429, f"{self.queued:,} rows wait already, about {self.expected_wait():.1f} s of work. Try again later.", code="overloaded",
                retry=min(30.0, self.expected_wait()),
            )  # fmt: skip
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, rows, loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        self.queued += rows
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start)  # requests that are read in the same turn of the loop join this one
        return await waiting.future

    def _fits(self, rows: int) -> bool:
        """Return whether so many rows may wait too: up to `most_queued`, and as many as a fast model answers within the latency target."""
        if self.queued + rows <= self.most_queued:
            return True
        return bool(self.speed.seconds) and self.expected_wait(rows) <= self.latency_target

    def expected_wait(self, more: int = 0) -> float:
        """Return the seconds until all that waits, and `more` rows, is done, as far as was measured."""
        rows = self.most_rows
        return (self.queued + more) / rows * self.speed.of(rows)

    @property
    def most_rows(self) -> int:
        """Rows of the next call at most."""
        return self.speed.rows_within(self.latency_target / 2)

    def _take(self) -> list[_Waiting]:
        """Remove the first requests, as many as fit in one call; those whose client went away are dropped."""
        taken: list[_Waiting] = []
        rows, most = 0, self.most_rows
        while self._waiting and (not taken or rows + self._waiting[0].rows <= most):
            first = self._waiting.popleft()
            self.queued -= first.rows
            if not first.future.done():
                taken.append(first)
                rows += first.rows
        return taken

    def _start(self) -> None:
        taken = self._take()
        if not taken:
            self._busy = False
            return
        rows = sum(w.rows for w in taken)
        expected = self.speed.of(rows)
        if self.speed.seconds and expected < INLINE_SECONDS:
            self._finish(taken, rows, *self._timed([w.item for w in taken]))
            asyncio.get_running_loop().call_soon(self._start)
            return
        task = asyncio.get_running_loop().create_task(self._in_thread(taken, rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, taken: list[_Waiting], rows: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            results, seconds = await loop.run_in_executor(self._thread, self._timed, [w.item for w in taken])
            self._finish(taken, rows, results, seconds)
        finally:
            loop.call_soon(self._start)

    def _timed(self, items: Sequence[Any]) -> tuple[Sequence[Any], float]:
        start = time.perf_counter()
        try:
            results = self.compute(items)
        except Exception as err:  # a fault of the model itself: every request of the batch gets it
            results = [err] * len(items)
        return results, time.perf_counter() - start

    def _finish(self, taken: list[_Waiting], rows: int, results: Sequence[Any], seconds: float) -> None:
        self.speed.add(rows, seconds)
        if self.on_batch is not None:
            self.on_batch(rows, seconds)
        for waiting, result in zip(taken, results, strict=True):
            if waiting.future.done():  # its client went away
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)

    def close(self) -> None:
        """Wait for the running call and stop the thread."""
        self._thread.shutdown(wait=True)
