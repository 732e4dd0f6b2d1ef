"""How this machine is shared out among local workers: how many, how many threads each, and on which cores.

Reads /sys and the process's own affinity, so that a container's share counts and not the machine's. Cores are handed out in the
order of NUMA nodes: a worker whose cores and memory lie on one node does not fetch its weights over the link between sockets. On
GPUs torch's own binding does this (`torch.numa`), as it knows which card hangs on which node.
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
    """What each local worker gets, and why."""

    workers: int
    threads: int
    """Threads of each worker (OMP_NUM_THREADS)."""
    cpus: tuple[tuple[int, ...], ...]
    """Cores of each worker; () where workers are not pinned."""
    gpus: bool
    reasons: tuple[str, ...]
    """One line a choice, to be printed."""


def parse_cpulist(text: str) -> set[int]:
    """Numbers in the kernel's list format.

    >>> sorted(parse_cpulist("0-3,8,10-11"))
    [0, 1, 2, 3, 8, 10, 11]
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def numa_nodes(allowed: set[int], folder: Path = NODES) -> list[list[int]]:
    """The cores of each NUMA node that has any among `allowed`, by node; one node where the system tells of none."""
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
    """Settle workers, threads and cores. `nodes`: cores by NUMA node; `gpus`: 0 where the run is on the CPU.

    Raises `LaunchError` where `low` workers cannot be had, or `pin: true` cannot be done.
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
        why = f"one for each NUMA node, of which there {'are' if workers > 1 else 'is'} {workers}: within one, threads need no messages"
        if low is not None and workers < low <= cores:
            workers, why = low, f"min_workers; {why}"
    if high is not None and asked is None and workers > high:
        workers, why = high, f"max_workers, of {what}"
    there = gpus or cores
    if low is not None and min(workers, there) < low:
        raise LaunchError(f"launch.min_workers is {low}, and this machine has {what}. Take fewer, or more machines.")
    if gpus and workers > gpus:
        raise LaunchError(
            f"{workers} workers were asked for, and there are {what}, one for each. Take at most {gpus}, or train.device=cpu."
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
        reasons.append(f"warning: {workers} workers on {cores} cores wait for one another")

    cpus: tuple[tuple[int, ...], ...] = ()
    if gpus:
        if pin is not False:
            reasons.append("cores: by torch.numa, next to each worker's GPU, where numactl is installed")
    elif pin is True and workers > cores:
        raise LaunchError(f"launch.pin cannot be done: {workers} workers, and {cores} cores. Take fewer workers, or pin=false.")
    elif pin is True or (pin == "auto" and len(nodes) > 1 and workers <= cores):
        cpus = _deal(workers, nodes)
        reasons.append(f"pinned to cores {' | '.join(_ranges(c) for c in cpus)} of {len(nodes)} NUMA nodes")
    else:
        reason = (
            "launch.pin=false" if pin is False else "one NUMA node, so the system may place them" if len(nodes) == 1 else "more workers than cores"
        )  # fmt: skip
        reasons.append(f"not pinned: {reason}")
    return Shares(workers, threads, cpus, bool(gpus), tuple(reasons))


def _deal(workers: int, nodes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Whole nodes where workers divide evenly among them, else equal runs of cores in the order of nodes."""
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
