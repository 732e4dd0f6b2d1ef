"""Choices by measurement: ways to compute the same are timed on this machine, and their times remembered in the user's cache.

What is remembered is a saving of time and no more: a file that is missing, damaged or cannot be written means that ways are timed again. A run
that must repeat exactly records what was chosen (`Plan.record`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tauon.artifacts import atomic_write
from tauon.errors import RunError

__all__ = ["chosen", "fastest", "interleaved", "machine", "measured_file", "recall", "remember"]

VERSION = 1
"""Of the measurements: raised when a newer version measures something else under the same name."""
MOST_ENTRIES = 1000
SECONDS = 1.5
"""Time that timing all ways may take together, beyond three repeats of each."""

_here: dict[str, dict[str, float]] = {}
"""What this process measured or read, for where the file cannot be written: two plans of one process agree."""


def fastest(
    name: str, choices: Mapping[str, Callable[[], object]], key: Mapping[str, Any], *, margin: float = 0.0, seconds: float = SECONDS
) -> tuple[str, dict[str, float]]:
    """Return (choice, seconds by choice): the first way, or one that is faster by more than the share `margin`; remembered for the machine.

    Args:
        name: what is chosen.
        choices: ways to do the same, by name. The first call of each is not timed, so that it may build or compile what it needs; on an
            accelerator it waits for the result.
        key: what the times depend on besides the machine (`machine`): shapes, types, settings. JSON values.
        margin: share by which another way must be faster than the first to be chosen.
        seconds: about how long to measure, beyond three repeats of each way.

    >>> choice, timed = fastest("a sum", {"sum": lambda: sum(range(10_000)), "closed form": lambda: 10_000 * 9_999 // 2}, {"numbers": 10_000})
    >>> choice, sorted(timed)
    ('closed form', ['closed form', 'sum'])
    """
    timed = recall(name, key)
    if timed is None or set(timed) != set(choices):
        timed = interleaved(choices, seconds)
        remember(name, key, timed)
    return chosen({choice: timed[choice] for choice in choices}, margin), timed


def chosen(timed: Mapping[str, float], margin: float) -> str:
    """Return the first choice, or the fastest of those whose time is less than (1 - margin) of the first's."""
    first = next(iter(timed))
    best = min(timed, key=timed.__getitem__)
    return best if timed[best] < (1 - margin) * timed[first] else first


def interleaved(choices: Mapping[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, float]:
    """Return the median seconds of each way: three to nine rounds in which each has its turn, after a first call that is not timed."""
    for run in choices.values():
        run()
    times: dict[str, list[float]] = {choice: [] for choice in choices}
    begin = time.perf_counter()
    for done in range(9):
        if done >= 3 and time.perf_counter() - begin > seconds * done / (done + 1):
            break
        for choice, run in choices.items():
            start = time.perf_counter()
            run()
            times[choice].append(time.perf_counter() - start)
    return {choice: sorted(all_)[len(all_) // 2] for choice, all_ in times.items()}


# ---------------------------------------------------------------------------------------------- memory


def machine() -> dict[str, Any]:
    """Return what every measurement depends on: the processor, the cores and threads in use, and torch's version."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "version": VERSION, "torch": torch.__version__, "processor": _processor(), "cores": cores, "threads": torch.get_num_threads(),
    }  # fmt: skip


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
        if "model name" in facts:  # a virtual machine may hide what the processor of that name has
            return " ".join([facts["model name"], *wide])
    return f"{platform.machine()} {platform.processor()}".strip()


def measured_file() -> Path:
    """Return the file of what was measured: in the folder TAUON_CACHE, else in the user's cache folder."""
    own = os.environ.get("TAUON_CACHE")
    folder = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tauon"
    return Path(os.path.expanduser(folder)) / "measured.json"  # a user without a home: a folder "~" that cannot be made


def recall(name: str, key: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the seconds that were measured on this machine for `key`; None: not yet."""
    number = _number(name, key)
    file = str(measured_file())
    found = _here.get(f"{file}:{number}")
    if found is None and (found := _seconds_of(_read(measured_file()).get(number))) is not None:
        _here[f"{file}:{number}"] = found
    return None if found is None else dict(found)


def remember(name: str, key: Mapping[str, Any], timed: Mapping[str, float]) -> None:
    """Keep measured seconds for this machine and `key`; without a word if the file cannot be written."""
    path, number = measured_file(), _number(name, key)
    _here[f"{path}:{number}"] = dict(timed)
    with contextlib.suppress(OSError, RuntimeError, RunError):  # RuntimeError: a user without a home
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            entries = _read(path)
            entries.pop(number, None)
            entries[number] = {"name": name, "seconds": dict(timed), "key": dict(key) | machine()}
            last = dict(list(entries.items())[-MOST_ENTRIES:])
            atomic_write(path, json.dumps(last, indent=1).encode())


def _number(name: str, key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, key, machine()], sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # missing, not readable, damaged
        return {}
    return entries if isinstance(entries, dict) else {}


def _seconds_of(entry: object) -> dict[str, float] | None:
    """Return the seconds of an entry; None if it is not one."""
    timed = entry.get("seconds") if isinstance(entry, dict) else None
    if not isinstance(timed, dict) or not timed:
        return None
    whole = all(isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) and s >= 0 for s in timed.values())
    return {str(k): float(s) for k, s in timed.items()} if whole else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock where the file system has locks; elsewhere the last writer wins, and what another wrote is measured again."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "a", encoding="ascii") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
