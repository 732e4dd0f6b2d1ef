"""Memory of an attribution method, predicted before it starts, and how many rows are computed at once so that a bound is kept.

The method itself is rehearsed: it starts on the real cases with 2 rows at once, then with twice as many, and is stopped after its
first rows, until the rows decide about the peak and not the preparations. The most
bytes that torch's allocator gave out are extended in a straight line to more rows. What integrated gradients keeps of
a path for later refinement is added by its own formula.

Bytes are on top of the model and the examples. What a library allocates itself is not seen: oneDNN's buffers, small pieces between large ones. A tenth
is added for it (`benchmarks/explain_memory.py` measures from outside).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from tauon.errors import DataError
from tauon.explain.base import Cases, Method, Work
from tauon.explain.methods.integrated import kept_by_paths, most_rows
from tauon.report.text import human_bytes

__all__ = ["MemoryPlan", "peak_bytes", "plan_memory"]

LINEAR = 1.95
"""Growth of the peak, when the rows of a rehearsal are doubled, from which on it is proportional to them."""
LONGEST = 256
"""Most rows of a rehearsal."""
MARGIN = 1.1
"""What a process takes for each byte of tensors, at most."""
MOST = 4096
"""Most rows at once: more have no advantage."""


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that torch's allocator gave out at the same time during `run`, on top of those before it.

    >>> 8000 <= peak_bytes(lambda: (torch.ones(1000) + 1).sum(), torch.device("cpu")) <= 8400
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_stderr():
        recorded.__enter__()
    try:
        run()
    finally:
        with _without_stderr():
            recorded.__exit__(None, None, None)
    now = peak = 0
    results: Any = recorded.profiler
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()  # type: ignore[union-attr]
            peak = max(peak, now)
    return peak


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the process writes to standard error: the profiler of torch 2.13 prints a line at its start and its end."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@dataclass(frozen=True)
class MemoryPlan:
    """How many rows are computed at once, and what that takes."""

    method: str
    at_once: int
    rows: int
    """Most rows that can be computed at once."""
    predicted_bytes: int
    bytes_per_row: int
    fixed_bytes: int
    """Independent of `at_once`: results and sums."""
    bound_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.method} computes {self.at_once:,} rows at once, which takes about {human_bytes(self.predicted_bytes)} of memory beside the model "
            f"(at most {human_bytes(self.bound_bytes)}: explain.memory)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        return dict(vars(self))


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


class _Enough(Exception):
    pass


def plan_memory(cases: Cases, method: Method, bound_bytes: int, *, seed: int = 0, most: int = MOST, **options: Any) -> MemoryPlan:
    """Choose `at_once` so that the method stays within the bound.

    Args:
        cases: the examples that will be explained.
        method: of `METHODS`.
        bound_bytes: most bytes on top of the model and the examples.
        seed: of the method's random draws.
        most: most rows at once.
        options: of the method.

    Raises:
        DataError: one row at once does not fit, or the method cannot explain the cases.
    """
    if problem := method.why_not(cases):
        raise DataError(problem)
    first, rows = _rehearsed(cases, method, 2, seed, options)
    adaptive = method.name == "integrated_gradients" and not options.get("steps")
    limit = most_rows(cases) if adaptive else rows
    many, few = 2, first
    more = first
    while 2 * many <= limit and many < LONGEST and more < bound_bytes:  # until rows, not preparations, decide about the peak
        few, (more, _) = more, _rehearsed(cases, method, 2 * many, seed, options)
        many *= 2
        if more > LINEAR * few:
            break
    per_row = max(0, -(-(more - few) * 2 // many)) if many > 2 else 0
    fixed = max(0, more - min(many, limit) * per_row)
    after = 3 * cases.n_features * len(cases) * cases.inputs.element_size()  # the values, and what they are made of

    def predicted(at_once: int) -> int:
        kept = kept_by_paths(cases, at_once, None) if adaptive else 0
        return max(first, fixed + max(at_once * per_row + int(MARGIN * kept), int(MARGIN * after)))

    enough = max(1, min(most, limit))
    if predicted(1) > bound_bytes:
        raise DataError(
            f"{method.name} needs about {_mib(predicted(1))} for one row at once, and the bound is {_mib(bound_bytes)}: "
            "explain fewer examples at once, or raise the bound"
        )
    low, high = 1, enough
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicted(middle) <= bound_bytes else (low, middle - 1)
    return MemoryPlan(method.name, low, limit, predicted(low), per_row, fixed, bound_bytes)


def _rehearsed(cases: Cases, method: Method, at_once: int, seed: int, options: dict[str, Any]) -> tuple[int, int]:
    """Return (peak bytes until the first rows are done, with the margin; rows in all)."""
    total = 0

    def stop(_: int, rows: int) -> None:
        nonlocal total
        total = rows
        raise _Enough

    def start() -> None:
        with suppress(_Enough):
            method.run(cases, Work(at_once=at_once, seed=seed, progress=stop), **options)

    return int(MARGIN * peak_bytes(start, cases.inputs.device)), total
