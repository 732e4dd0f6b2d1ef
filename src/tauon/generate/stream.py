"""The answer to one request while it is being written: iterated by a thread, or by an asyncio task."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from tauon.generate.request import Completion, Request, Token, Usage

__all__ = ["Stream"]


class Stream:
    """Events of one request, in order. `for token in stream` blocks the thread; `async for token in stream` does not block the loop.

    One reader: events are taken out as they are read. Created by `Engine.submit`.
    """

    def __init__(self, request: Request, on_cancel: Callable[[Stream], None] = lambda _: None) -> None:
        self.request = request
        self.usage = Usage(prompt_tokens=len(request.prompt))
        self.error: Exception | None = None
        """What failed, where an answer has finish_reason "error"."""
        self.submitted, self.first_token_at, self.finished_at = time.monotonic(), 0.0, 0.0
        """Seconds of `time.monotonic`; 0: not yet."""
        self._events: deque[Token] = deque()
        self._changed = threading.Condition()
        self._open = request.params.n
        self._wake: Callable[[], None] | None = None
        self._on_cancel, self._is_cancelled = on_cancel, False

    @property
    def done(self) -> bool:
        """Whether every answer has ended. Events may still be waiting to be read."""
        return self._open == 0

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Stop writing; what has been written stays readable. The answers end with finish_reason "cancelled". From any thread, any time."""
        self._is_cancelled = True
        self._on_cancel(self)

    def put(self, token: Token) -> None:
        """Append an event (the engine's side)."""
        with self._changed:
            now = time.monotonic()
            if token.id is not None:
                self.first_token_at = self.first_token_at or now
                self.usage.completion_tokens += 1
            if token.finish_reason is not None:
                self._open -= 1
                self.finished_at = now
            self._events.append(token)
            self._changed.notify_all()
            if self._wake is not None:
                self._wake()

    def get(self, timeout: float | None = None) -> Token | None:
        """Return the next event; None at the end. Raises `TimeoutError` after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self.done, timeout):
                raise TimeoutError(f"no token for {timeout:g} s")
            return self._events.popleft() if self._events else None

    def result(self, timeout: float | None = None) -> list[Completion]:
        """Wait for the end and return all answers. `timeout`: seconds in all. Raises `TimeoutError`, or what failed (`error`)."""
        end = None if timeout is None else time.monotonic() + timeout
        answers = [Completion(i) for i in range(self.request.params.n)]
        while (token := self.get(None if end is None else max(0.0, end - time.monotonic()))) is not None:
            answers[token.index].add(token)
        if self.error is not None:
            raise self.error
        return answers

    def __iter__(self) -> Iterator[Token]:
        while (token := self.get()) is not None:
            yield token

    async def __aiter__(self) -> AsyncIterator[Token]:
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(more.set)

        with self._changed:
            self._wake = wake
        try:
            while True:
                more.clear()
                with self._changed:
                    ready, ended = list(self._events), self.done
                    self._events.clear()
                for token in ready:
                    yield token
                if ended:
                    return
                await more.wait()
        finally:
            self._wake = None
