"""ASGI application before Flower's Fleet API: which requests pass, and waiting for messages instead of polling for them.

Only the eight calls that carry messages pass. Flower 1.41 serves its Control API (start any program at every site) and its Runtime API on the same
port, without authentication; here both are absent, and so are downloads of programs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["INSTANCE_HEADER", "SEEN_HEADER", "SEQUENCE_HEADER", "Gate"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
CALLS = {
    FLEET + name
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "pull-object", "push-object",
        "confirm-message-received",
    )
}  # fmt: skip
LARGEST_BODY = 16 << 20
"""Bytes of a request at most: a chunk has 5 MiB, a list of 10,000 chunks about 1 MiB."""
LONGEST_WAIT = 10.0
"""Seconds for which a request for messages waits for one."""
SEEN_HEADER, SEQUENCE_HEADER, INSTANCE_HEADER = "tauon-seen", "tauon-sequence", "tauon-instance"
KEY_HEADER = b"flwr-public-key"


class Gate:
    """Wraps an ASGI application.

    A site sends with each request for messages the number of the last push that it knows (`tauon-seen`). While nothing was pushed since, the
    request waits here, for 10 s at most; the answer carries the present number (`tauon-sequence`). Each process of a site has a random
    name (`tauon-instance`): once a newer process with the same key has joined, requests of the older one are refused with status 409.
    """

    def __init__(self, app: App, arrived: Callable[[], None]) -> None:
        self.app, self.arrived = app, arrived
        self.sequence = 0
        self.instances: dict[bytes, bytes] = {}
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def pushed(self) -> None:
        """Wake the sites that wait for messages. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._bump)

    def _bump(self) -> None:
        self.sequence += 1
        if self._changed is not None:
            self._changed.set()
        self._changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
                await self.app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        if scope["method"] != "POST" or path not in CALLS:
            return await _refuse(send, 404, "There is nothing here but what sites of a federation call.")
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return await _refuse(send, 413, f"A request needs a length, of {LARGEST_BODY} bytes at most.")
        key, instance = headers.get(KEY_HEADER, b""), headers.get(INSTANCE_HEADER.encode(), b"")
        activates = path == FLEET + "activate-node"
        if path == FLEET + "pull-messages":
            await self._wait(headers.get(SEEN_HEADER.encode(), b"-1"))
        if not activates and self.instances.get(key, instance) != instance:
            return await _refuse(send, 409, "Another process has joined with the key of this site since.")
        await self.app(scope, receive, self._with_sequence(send, key if activates else None, instance))
        if path in (FLEET + "push-messages", FLEET + "push-object", FLEET + "activate-node"):
            self.arrived()

    async def _wait(self, seen: bytes) -> None:
        """Return once more was pushed than the site has seen, or after 10 s."""
        if seen != str(self.sequence).encode() or self._changed is None:
            return
        try:
            await asyncio.wait_for(self._changed.wait(), LONGEST_WAIT)
        except TimeoutError:
            return

    def _with_sequence(self, send: Send, activated: bytes | None, instance: bytes) -> Send:
        sequence = str(self.sequence).encode()  # before the link state is read: a push during the request is seen by the next one

        async def wrapped(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", []), (SEQUENCE_HEADER.encode(), sequence)]
                if activated is not None and event["status"] == 200:
                    self.instances[activated] = instance
                    self._bump()  # an older process that waits is refused now
            await send(event)

        return wrapped


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
