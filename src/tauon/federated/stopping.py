"""Ctrl-C and SIGTERM at both ends of a federation, which wait for each other for hours.

A site stops at once: it has saved its last round. A coordinator that waits for sites stops at once as well; in a round it ends the round first, as
training ends its step, unless a second Ctrl-C comes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopWaiting", "stop_at_once"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM raise `KeyboardInterrupt`, whatever handles them outside. Does nothing outside the main thread."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with _handled_by(dict.fromkeys(SIGNALS, stop)):
        yield


class StopWaiting:
    """Inside `listening`, a signal ends what is `waiting` by `KeyboardInterrupt`; elsewhere it goes to the handler that was there before.

    Args:
        note: called with a sentence when a signal does not stop at once.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self._heard = self._waits = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals until the block ends. Does nothing outside the main thread."""
        before = {s: signal.getsignal(s) for s in SIGNALS}

        def handle(number: int, frame: Any) -> None:
            first, self._heard = not self._heard, True
            if self._waits:
                raise KeyboardInterrupt
            earlier = before[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            if first:
                self.note("stopping when this round is done; a second Ctrl-C stops at once, and the round is done again at the next start")

        with _handled_by(dict.fromkeys(SIGNALS, handle)):
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of a wait: a signal, also one that came before, raises `KeyboardInterrupt`."""
        self._waits = True
        try:
            if self._heard:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False


@contextmanager
def _handled_by(handlers: dict[signal.Signals, Callable[..., None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
    try:
        yield
    finally:
        for s, earlier in before.items():
            signal.signal(s, earlier)
