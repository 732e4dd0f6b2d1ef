"""Long calls into a library that Ctrl-C and SIGTERM can stop.

Python handles signals in its main thread, between two instructions of its own: a call that computes for minutes inside a library delays
them as long. Here such a call runs in another thread, and the main thread waits for it. Knows nothing of what is computed.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["interruptible"]

T = TypeVar("T")
_GRACE = 1.0
"""Seconds that a call gets to end by itself after a signal, before it is left behind. It dies with the process."""


def interruptible(call: Callable[[], T]) -> T:
    """What `call()` returns or raises. A signal's exception (KeyboardInterrupt) is raised here within about a second."""
    if threading.current_thread() is not threading.main_thread():
        return call()  # signals are not this thread's
    results: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            results.append(context.run(call))
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=work, daemon=True, name="interruptible")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.5)
    except BaseException:
        thread.join(_GRACE)
        raise
    if errors:
        raise errors[0]
    return results[0]
