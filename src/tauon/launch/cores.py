"""Division of this machine among local workers: number of workers, threads of each, and cores.

Reads /sys and the process's own affinity, so that the limits of a container apply. Cores are assigned in the order of NUMA nodes: a
worker with its cores and memory on one node does not read its weights over the link between sockets. On GPUs torch's own binding does
this (`torch.numa`), which knows the node of each GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tauon.errors import LaunchError

__all__ = ["Shares", "numa_nodes", "parse_cpulist", "share_out"]

NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Shares:
    """Resources of each local worker, with reasons."""

    workers: int
    threads: int
    """Threads of each worker (OMP_NUM_THREADS)."""
    cpus: tuple[tuple[int, ...], ...]
    """Cores of each worker; () if workers are not pinned."""
    gpus: bool
    reasons: tuple[str, ...]
    """One line per choice, for printing."""


def parse_cpulist(text: str) -> set[int]:
    """Parse the kernel's list format.

    >>> sorted(parse_cpulist("0-3,8,10-11"))
    [0, 1, 2, 3, 8, 10, 11]
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def numa_nodes(allowed: set[int], folder: Path = NODES) -> list[list[int]]:
    """Cores of each NUMA node that has any of `allowed`, by node; one node if the system reports none."""
    nodes = []
    for path in sorted(folder.glob("node[0-9]*"), key=lambda p: int(p.name[4:])):
        try:
            cores = sorted(parse_cpulist((path / "cpulist").read_text()) & allowed)
        except (OSError, ValueError):
            return [sorted(allowed)]
        if cores:
            nodes.append(cores)
    return nodes or [sorted(allowed)]


def share_out(
    asked: int | None, low: int | None, high: int | None, *, pin: Literal["auto"] | bool, nodes: Sequence[Sequence[int]], gpus: int,
    environ: Mapping[str, str] = os.environ,
) -> Shares:  # fmt: skip
    """Choose workers, threads and cores. `nodes`: cores by NUMA node; `gpus`: 0 if the run is on the CPU.

    Raises `LaunchError` if `low` workers are not possible, or `pin: true` is not possible.
    """
    reasons = []
    cores = sum(len(n) for n in nodes)
    what = f"{gpus} GPUs" if gpus else f"{cores} cores"
    if asked is not None:
        workers, why = asked, "asked for"
    elif gpus:
        workers, why = gpus, "one for each GPU"
    else:
        workers = len(nodes)
        why = f"one per NUMA node ({workers}), because threads within a node need no messages"
        if low is not None and workers < low <= cores:
            workers, why = low, f"min_workers; {why}"
    if high is not None and asked is None and workers > high:
        workers, why = high, f"max_workers, of {what}"
    there = gpus or cores
    if low is not None and min(workers, there) < low:
        raise LaunchError(f"launch.min_workers is {low}, but this machine has only {what}. Set fewer, or use more machines.")
    if gpus and workers > gpus:
        raise LaunchError(
            f"launch.workers is {workers}, but this machine has {what}, and each worker needs one. Set at most {gpus}, or train.device=cpu."
        )
    reasons.append(f"{workers} workers: {why}" if workers != 1 else f"1 worker: {why}")

    given = environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        threads = int(given)
        reasons.append(f"{threads} threads each: your OMP_NUM_THREADS")
    else:
        threads = max(1, cores // workers)
        reasons.append(f"{threads} threads each: {cores} cores / {workers} workers")
    if workers > cores and not gpus:
        reasons.append(f"warning: {workers} workers share {cores} cores and will wait for each other")

    cpus: tuple[tuple[int, ...], ...] = ()
    if gpus:
        if pin is not False:
            reasons.append("cores: by torch.numa, next to each worker's GPU, where numactl is installed")
    elif pin is True and workers > cores:
        raise LaunchError(f"launch.pin is not possible with {workers} workers on {cores} cores. Set fewer workers, or launch.pin=false.")
    elif pin is True or (pin == "auto" and len(nodes) > 1 and workers <= cores):
        cpus = _deal(workers, nodes)
        reasons.append(f"pinned to cores {' | '.join(_ranges(c) for c in cpus)} of {len(nodes)} NUMA nodes")
    else:
        reason = (
            "launch.pin=false" if pin is False else "one NUMA node, so the system places them" if len(nodes) == 1 else "more workers than cores"
        )  # fmt: skip
        reasons.append(f"not pinned: {reason}")
    return Shares(workers, threads, cpus, bool(gpus), tuple(reasons))


def _deal(workers: int, nodes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Complete nodes if workers divide evenly among them, otherwise equal runs of cores in the order of nodes."""
    if workers % len(nodes) == 0 and all(len(n) >= workers // len(nodes) for n in nodes):
        each = workers // len(nodes)
        return tuple(part for node in nodes for part in _cut(list(node), each))
    return _cut([c for node in nodes for c in node], workers)


def _cut(cores: list[int], parts: int) -> tuple[tuple[int, ...], ...]:
    size = len(cores) // parts
    return tuple(tuple(cores[i * size : (i + 1) * size]) for i in range(parts))


def _ranges(cores: Sequence[int]) -> str:
    """The kernel's list format of sorted numbers."""
    out: list[list[int]] = []
    for c in cores:
        if out and out[-1][-1] == c - 1:
            out[-1].append(c)
        else:
            out.append([c])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in out)
