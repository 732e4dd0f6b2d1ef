"""Setup of a worker process: its log file, its cores, and ending together with its launcher.

Called by `python -m tauon` if a launcher started it, before torch is imported: later threads inherit the cores.
It reads the environment:

    TAUON_LOG_DIR   folder of `rank-<RANK>.log`, to which stdout and stderr are appended
    TAUON_CPUS      cores of each local rank: "0,1|2,3"
    TAUON_PARENT    "PID:SIGNAL": the signal that the kernel sends when that process dies (Linux)
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["HEADER", "enter"]

HEADER = "---- worker"
"""Start of the line that each start of a worker writes to its log."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def enter(environ: Mapping[str, str] = os.environ) -> None:
    """Set up this worker from the environment. Does nothing in a process that no launcher started."""
    if "RANK" not in environ:
        return
    if folder := environ.get("TAUON_LOG_DIR"):
        _log_to(os.path.join(folder, f"rank-{int(environ['RANK'])}.log"), environ)
    if parent := environ.get("TAUON_PARENT"):
        _die_with(*(int(n) for n in parent.split(":")))
    if cpus := environ.get("TAUON_CPUS"):
        mine = cpus.split("|")[int(environ["LOCAL_RANK"])]
        os.sched_setaffinity(0, [int(c) for c in mine.split(",")])


def _log_to(path: str, environ: Mapping[str, str]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # two streams in one file: complete lines, in order
    when = datetime.now(UTC).isoformat(timespec="seconds")
    start = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    print(f"{HEADER} {environ['RANK']} of {environ.get('WORLD_SIZE', '?')}, process {os.getpid()}, restart {start}, {when}", flush=True)


def _die_with(parent: int, signal: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0) == 0 and os.getppid() != parent:
        os.kill(os.getpid(), signal)  # the parent died before prctl
