"""The time that a model and a program take for a batch, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from statistics import median
from typing import Any

import torch
from torch import nn

from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["latency_of"]

_SECONDS, _MOST = 0.25, 50


def latency_of(task: Task, modules: Mapping[str, nn.Module], batch: Batch, rows: tuple[int, ...] = (1, 64)) -> dict[str, Any]:
    """Return {"threads", name: {rows: milliseconds}}: the median of calls in two rounds of an eighth of a second each."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()} | {name: {} for name in modules}
    for n in rows:
        chosen = torch.arange(n) % len(batch)
        parts: dict[str, Any] = {f.name: None if (v := getattr(batch, f.name)) is None else v[chosen] for f in fields(batch)}
        many = Batch(**parts)
        times: dict[str, list[float]] = {name: [] for name in modules}
        with torch.no_grad():
            for name in (
                [*modules, *modules] if len(modules) > 1 else modules
            ):  # one after the other: their threads would wait for each other
                task.infer(modules[name], many)
                began, n_before = time.perf_counter(), len(times[name])
                while time.perf_counter() - began < _SECONDS / 2 and len(times[name]) < n_before + _MOST:
                    start = time.perf_counter()
                    task.infer(modules[name], many)
                    times[name].append(time.perf_counter() - start)
        for name in modules:
            found[name][str(n)] = round(1000 * median(times[name]), 4)
    return found
