"""Threads of a process that compute in turns: each that calls torch gets a team of OpenMP threads of its own, and keeps it.

As soon as all teams together have more threads than the machine has cores, libgomp's threads no longer spin while they wait for each other inside an
operation, but sleep and are woken by the kernel, thousands of times a second. On two cores a step of a language model in a second thread took 18 to 22 ms
instead of 12 ms, only because the main thread had loaded the weights before.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["release_openmp_threads"]

_HARD = 2
"""`omp_pause_hard` of OpenMP 5.0: free everything, also the threads."""


def release_openmp_threads() -> bool:
    """End the calling thread's team of OpenMP threads, as a thread should that computes no more. Its next operation starts a new team.

    Returns whether there was a libgomp to ask (Linux builds of torch have one; elsewhere nothing happens).
    """
    gomp = _libgomp()
    return gomp is not None and gomp.omp_pause_resource_all(_HARD) == 0


@cache
def _libgomp() -> Any:
    """Return the libgomp that torch has loaded, or None."""
    if sys.platform != "linux":
        return None
    try:
        with open("/proc/self/maps") as maps:
            path = next((line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line), None)
        found = ctypes.CDLL(path) if path is not None else None
        return found if hasattr(found, "omp_pause_resource_all") else None
    except OSError:
        return None
