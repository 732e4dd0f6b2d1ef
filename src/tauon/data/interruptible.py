"""Long calls into a library that Ctrl-C and SIGTERM can stop.

Python handles signals in its main thread, between two of its instructions: a call that runs for minutes inside a library delays them
that long. Here such a call runs in another thread, and the main thread waits for it.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["interruptible"]

T = TypeVar("T")
_GRACE = 0.3
"""Seconds for a call to end after a signal, before it is abandoned. Its thread ends with the process."""


def interruptible(call: Callable[[], T]) -> T:
    """Return or raise what `call()` does. A signal's exception (KeyboardInterrupt) is raised here within about a second."""
    if threading.current_thread() is not threading.main_thread():
        return call()  # signals are only delivered to the main thread
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
