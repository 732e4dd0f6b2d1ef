"""Ctrl-C and SIGTERM outside of training (which handles them itself): both raise KeyboardInterrupt, but never during an import.

Libraries catch exceptions that are raised while they are imported, and stay half loaded ("cannot load module more than once per process")
or end with another error. So a signal that arrives during an import is raised when the import is done, a second or two later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["interruptible"]

RETRY_S = 0.05
PATIENCE_S = 30.0
"""Longest wait for an import: if one hangs (a lost file system), the process can still be stopped."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM raise `KeyboardInterrupt` in the main thread, outside of imports."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []
    waiting: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        first.append(time.monotonic())
        if not is_importing(frame) or time.monotonic() - first[0] > PATIENCE_S:
            raise KeyboardInterrupt
        timer = threading.Timer(RETRY_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        waiting[:] = [timer]
        timer.start()

    before: dict[signal.Signals, signal._HANDLER] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if number is signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            continue  # a background job of a shell: Ctrl-C is not meant for it
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for timer in waiting:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether an import is on the stack."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
