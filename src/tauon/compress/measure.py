"""Latency, size and memory of several models, in turns of a few calls, so that all see the same machine.

The first call of a turn is not counted: it finds the caches and the threads as the model before it left them. Nor is the slower half of the rounds, in
which the machine did something else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from tauon.compress.base import Progress, no_progress
from tauon.errors import DataError
from tauon.runtimes.program import recorded_call
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["Cost", "batch_of_size", "call_of", "measure", "medians", "peak_memory"]

_TURN = 0.01
"""Seconds of a turn."""
_MOST_CALLS = 50


@dataclass(frozen=True)
class Cost:
    """What a model costs on this machine."""

    latency_ms: dict[int, float]
    """Batch size to the median time of a call in milliseconds."""
    size_bytes: int
    memory_bytes: int | None
    """Most memory that one call of the largest batch allocates through torch, without weights; None: another runtime allocates it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "latency_ms": {str(k): v for k, v in self.latency_ms.items()}, "size_bytes": self.size_bytes, "memory_bytes": self.memory_bytes,
        }  # fmt: skip


def batch_of_size(batches: Sequence[Batch], size: int) -> Batch:
    """Return a batch of `size` examples, repeating those of `batches` where they are fewer. `DataError` if there are none."""
    if not batches or not len(batches[0]):
        raise DataError("no examples to measure with: give at least one batch")
    wanted = list(itertools.islice(itertools.cycle([(b, i) for b in batches for i in range(len(b))]), size))
    parts: dict[str, Any] = {}
    for f in fields(Batch):
        if getattr(batches[0], f.name) is not None:
            parts[f.name] = torch.stack([getattr(b, f.name)[i] for b, i in wanted])
    return Batch(**parts)


def call_of(task: Task, model: nn.Module, batch: Batch) -> Callable[[], Any]:
    """Return a function that runs the model on the batch as the task calls it, up to logits."""
    call = recorded_call(task, model, batch)
    runner: Any = model
    if task.reads_hidden_states:
        return lambda: runner.logits(runner(*call.args, **call.kwargs))
    return lambda: runner(*call.args, **call.kwargs)


def measure(
    models: Mapping[str, nn.Module], task: Task, batches: Sequence[Batch], sizes: Mapping[str, int], *,
    batch_sizes: Sequence[int] = (1, 8, 64), seconds: float = 2.0, progress: Progress = no_progress,
) -> dict[str, Cost]:  # fmt: skip
    """Measure models against each other.

    Args:
        models: by name, in evaluation mode; also models in other runtimes.
        task: how they are called.
        batches: examples to take the batches from.
        sizes: bytes of each model's file.
        batch_sizes: examples in a call.
        seconds: time for each batch size, shared by all models; at least 6 rounds.
        progress: called with (what, done, total).
    """
    latency: dict[str, dict[int, float]] = {name: {} for name in models}
    memory: dict[str, int | None] = {}
    for done, size in enumerate(batch_sizes):
        progress("measure", done, len(batch_sizes))
        batch = batch_of_size(batches, size)
        calls = {name: call_of(task, model, batch) for name, model in models.items()}
        with torch.no_grad():  # as in evaluation: a compiled model is not compiled again
            for name, median in medians(calls, seconds).items():
                latency[name][size] = median
            if size == max(batch_sizes):
                memory = {name: peak_memory(call) if _is_torch(models[name]) else None for name, call in calls.items()}
    return {name: Cost(latency[name], sizes[name], memory[name]) for name in models}


def medians(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Return the median time of each call in milliseconds, in the quieter half of the rounds. Their order turns."""
    counts = {}
    for name, call in calls.items():
        call()
        call()
        counts[name] = max(1, min(_MOST_CALLS, int(_TURN / max(_timed(call), 1e-7))))
    names, rounds = list(calls), list[dict[str, float]]()
    end = time.perf_counter() + seconds
    while len(rounds) < 6 or (time.perf_counter() < end and len(rounds) < 300):
        row = {}
        turn = len(rounds) % len(names)
        for name in names[turn:] + names[:turn]:
            calls[name]()
            row[name] = statistics.median(_timed(calls[name]) for _ in range(counts[name]))
        rounds.append(row)
    usual = {name: statistics.median(row[name] for row in rounds) for name in names}
    rounds.sort(key=lambda row: sum(row[name] / usual[name] for name in names))
    quiet = rounds[: (len(rounds) + 1) // 2]
    return {name: statistics.median(row[name] for row in quiet) * 1e3 for name in names}


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _is_torch(model: nn.Module) -> bool:
    return getattr(model, "runtime", None) is None


@contextlib.contextmanager
def quiet_descriptors() -> Iterator[None]:
    """Discard what native code writes to standard error: the profiler prints its own probes there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_memory(call: Callable[[], Any]) -> int:
    """Return the most bytes that are allocated at once while `call` runs, beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    with quiet_descriptors(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    events: Any = prof.profiler.kineto_results.events()  # type: ignore[union-attr]
    used = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most
