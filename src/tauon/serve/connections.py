"""Limits of connections that uvicorn lacks: a head that never ends, a head without limit, a body that continues after the answer, a client that does
not read, too many connections.

`protocol_class()` is uvicorn's HTTP/1.1 protocol with a limited head; `Sweeper` looks at all connections once a second. A timer for each request
would cost more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MOST_HEAD", "Sweeper", "most_connections", "protocol_class"]

MOST_HEAD = 64 * 1024
"""Bytes of a request line and its headers."""
HEAD_SECONDS = 10.0
"""Longest time for a head; also for a connection without a request."""
LINGER_SECONDS = 3.0
"""Time in which a client may continue a body that was answered already (413, 408), so that it reads the answer and not a reset connection."""
WRITE_SECONDS = 60.0
"""Longest time in which a client reads nothing of its answer."""
RESERVED_FILES = 100
"""Open files that are kept for other things than connections."""
log = logging.getLogger("tauon.serve")


def protocol_class(most: int) -> Any:
    """Return the protocol for at most `most` connections: httptools where it is installed, h11 otherwise (it has a limit of the head of its own)."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class LimitedProtocol(HttpToolsProtocol):
        """Refuses in the form of the other errors what is not HTTP, and heads over `MOST_HEAD`."""

        _head: int | None = 0
        """Bytes since the last request ended; None within a body."""
        _has_moved = False
        """Whether a head or a request ended in the bytes that are read now."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                self._refuse(503, f"{most:,} connections are open already. Try again later.", "Service Unavailable")

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._head, self._has_moved = None, True

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._head, self._has_moved = 0, True

        def data_received(self, data: bytes) -> None:
            self._has_moved = False
            super().data_received(data)
            if self._head is not None and not self._has_moved:
                self._head += len(data)
                if self._head > MOST_HEAD and not self.transport.is_closing():
                    message = f"the request line and its headers have more than {MOST_HEAD:,} bytes"
                    self._refuse(431, message, "Request Header Fields Too Large")

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "the request is not valid HTTP/1.1", "Bad Request")

        def _refuse(self, status: int, message: str, phrase: str) -> None:
            kind = "invalid_request_error" if status < 500 else "server_error"
            body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
            self.transport.write(head.encode() + (b"retry-after: 1\r\n" if status == 503 else b"") + b"\r\n" + body)
            self.transport.close()

    return LimitedProtocol


def most_connections() -> int:
    """Return how many connections the open files of this process allow, after raising their limit as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows
        return 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):
            log.warning("the limit of open files stays at %d", soft)
    return max(64, min(soft, 65_536) - RESERVED_FILES)


@dataclass
class Sweeper:
    """Closes connections that make no progress. `look(connections)` is called about once a second."""

    head_seconds: float = HEAD_SECONDS
    linger_seconds: float = LINGER_SECONDS
    write_seconds: float = WRITE_SECONDS
    _since: dict[Any, tuple[Any, float]] = field(default_factory=dict, repr=False)
    """What each connection waits for, and since when."""

    def look(self, connections: Collection[Any], now: float | None = None) -> int:
        """Close those that have waited too long; return how many."""
        now, before, closed = time.monotonic() if now is None else now, self._since, 0
        self._since = {}
        for connection in list(connections):
            state, limit = self._state(connection)
            if state is None:
                continue
            known = before.get(connection)
            since = known[1] if known is not None and known[0] == state else now
            if now - since < limit:
                self._since[connection] = (state, since)
            else:
                closed += 1
                _close(connection, abort=state[0] == "write")
        return closed

    def _state(self, connection: Any) -> tuple[Any, float]:
        """Return (what it waits for, seconds allowed); (None, 0) while it makes progress or is under another timer."""
        cycle = connection.cycle
        if cycle is None:
            return ("head", None), self.head_seconds
        if not cycle.response_complete:
            if connection.flow is not None and connection.flow.write_paused:
                return ("write", connection.transport.get_write_buffer_size()), self.write_seconds
            return None, 0.0
        if connection.timeout_keep_alive_task is not None:  # uvicorn's own timer of idle connections
            return None, 0.0
        if getattr(connection, "_head", 0) is None:
            return ("body", id(cycle)), self.linger_seconds
        return ("head", id(cycle)), self.head_seconds


def _close(connection: Any, *, abort: bool) -> None:
    transport: asyncio.Transport = connection.transport
    if abort:  # what is in the buffer is not read by anybody
        transport.abort()
    else:
        transport.close()
