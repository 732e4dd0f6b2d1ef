"""ASGI application before Flower's Fleet API: which requests pass, and waiting for messages instead of polling for them.

Only the eight calls that carry messages pass. Flower 1.41 serves its Control API (start any program at every site) and its Runtime API on the same
port, without authentication; here both are absent, and so are downloads of programs.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
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

    A site sends with each request for messages the number of the last push to it that it knows (`tauon-seen`). While nothing was pushed since,
    the request waits here, for 10 s at most; the answer carries the present number (`tauon-sequence`). Each process of a site has a random
    name (`tauon-instance`): once a newer process with the same key has joined, requests of the older one are refused with status 409.

    Keys are as in the header: base64 of the PEM. Nothing is proven here, only afterwards by Flower: a stranger can wait, and no more.
    """

    def __init__(self, app: App, arrived: Callable[[], None]) -> None:
        self.app, self.arrived = app, arrived
        self.sequences: dict[bytes, int] = {}
        self.instances: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def pushed(self, *public_keys: bytes) -> None:
        """Wake the sites with these keys (PEM) if they wait for messages; without any, wake all. May be called from any thread."""
        if self._loop is not None:
            keys = [b64encode(key) for key in public_keys]
            self._loop.call_soon_threadsafe(lambda: self._bump(keys or list(self._waiting)))

    def _bump(self, keys: list[bytes]) -> None:
        for key in keys:
            self.sequences[key] = self.sequences.get(key, 0) + 1
            for event in self._waiting.pop(key, ()):
                event.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._loop = asyncio.get_running_loop()
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
            await self._wait(key, headers.get(SEEN_HEADER.encode(), b"-1"))
        if not activates and self.instances.get(key, instance) != instance:
            return await _refuse(send, 409, "Another process has joined with the key of this site since.")
        await self.app(scope, receive, self._with_sequence(send, key, instance if activates else None))
        if path in (FLEET + "push-messages", FLEET + "push-object", FLEET + "activate-node"):
            self.arrived()

    async def _wait(self, key: bytes, seen: bytes) -> None:
        """Return once more was pushed than the site has seen, or after 10 s."""
        if seen != str(self.sequences.get(key, 0)).encode():
            return
        event = asyncio.Event()  # of its own: one that ends must not leave another one, of a new connection or a stranger, asleep
        waiting = self._waiting.setdefault(key, set())
        waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), LONGEST_WAIT)
        except TimeoutError:
            pass
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def _with_sequence(self, send: Send, key: bytes, activated: bytes | None) -> Send:
        sequence = str(self.sequences.get(key, 0)).encode()  # before the state is read: a push during the request is seen by the next one

        async def wrapped(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", []), (SEQUENCE_HEADER.encode(), sequence)]
                if activated is not None and event["status"] == 200:
                    self.instances[key] = activated
                    self._bump([key])  # an older process that waits is refused now
            await send(event)

        return wrapped


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
