"""OpenVINO's CPU plug-in gives the thread that loads it another stack for signal handlers, and unmaps that stack when the plug-in is unloaded,
on whatever thread that happens. The next signal (Ctrl-C, SIGTERM) then ends the process with a segmentation fault instead of saving.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["signal_stack", "signal_stack_kept"]


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int, int]:
    """Return (address, flags, bytes) of this thread's alternate signal stack; (0, 0, 0) on other systems than Linux."""
    if sys.platform != "linux":
        return 0, 0, 0
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.sp or 0, stack.flags, stack.size


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Context after which this thread has the alternate signal stack that it had before (`sigaltstack(2)`)."""
    address, flags, size = signal_stack()
    try:
        yield
    finally:
        if sys.platform == "linux" and signal_stack() != (address, flags, size):
            ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(address or None, flags, size)), None)
