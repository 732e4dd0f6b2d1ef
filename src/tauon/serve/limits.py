"""Limits of a server: API keys, request rates, size and time of bodies. No model here."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from starlette.requests import Request

from tauon.serve.errors import HttpError

__all__ = ["BodyBudget", "Keys", "RateLimit", "read_body", "too_slow"]


class Keys:
    """API keys, kept as hashes and compared in constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]  # the bytes that a client sends

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, headers: Mapping[bytes, str]) -> str | None:
        """Return a short name of the key that a request carries (`Authorization: Bearer KEY` or `X-API-Key`), None if it is unknown."""
        given = headers.get(b"authorization", "")
        key = given[7:].strip() if given[:7].lower() == "bearer " else headers.get(b"x-api-key", "")
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return digest.hex()[:8] if any(matches) else None


class RateLimit:
    """A token bucket for each client; the least recently seen of more than 10,000 clients is forgotten."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, max(1, burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float | None = None) -> float:
        """Take one request. Returns 0, or the seconds until the next one is allowed."""
        if self.rate <= 0:
            return 0.0
        now = time.monotonic() if now is None else now
        level, before = self._buckets.pop(client, (float(self.burst), now))
        level = min(float(self.burst), level + (now - before) * self.rate)
        wait = 0.0 if level >= 1 else (1 - level) / self.rate
        self._buckets[client] = (level - 1 if level >= 1 else level, now)
        if len(self._buckets) > 10_000:
            self._buckets.popitem(last=False)
        return wait


class BodyBudget:
    """Bytes of all bodies that are in memory."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0

    def take(self, count: int) -> None:
        """Add `count` bytes. `HttpError` 429 if they do not fit."""
        if self.used + count > self.most:
            raise HttpError(429, f"the server holds {self.used:,} bytes of requests already. Try again.", code="overloaded", retry=1)
        self.used += count

    def give_back(self, count: int) -> None:
        self.used -= count


async def read_body(request: Request, budget: BodyBudget, *, most: int, seconds: float = 0.0) -> bytes:
    """Return the body of a request. Its bytes stay counted in `budget` until `request.state.body_bytes` is given back.

    Args:
        request: not yet read.
        budget: of the server.
        most: bytes.
        seconds: longest time; 0: the caller has a timer of its own.

    Raises:
        HttpError: 413 for a body over `most`, 408 for one that takes longer than `seconds`, 429 if the budget is used up, 400 if the
            client went away.
    """
    request.state.body_bytes = 0
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise HttpError(413, f"the body has {int(length):,} bytes, but at most {most:,} are allowed. Send it in parts.")
    if not seconds:
        return await _parts(request, budget, most)
    try:
        async with asyncio.timeout(seconds):
            return await _parts(request, budget, most)
    except TimeoutError:
        raise too_slow(seconds) from None


def too_slow(seconds: float) -> HttpError:
    """Return the refusal of a body that does not arrive."""
    return HttpError(408, f"the body did not arrive within {seconds:g} s. Send it faster, or less.")


async def _parts(request: Request, budget: BodyBudget, most: int) -> bytes:
    parts: list[bytes] = []
    size, receive = 0, request.receive
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the connection ended before the body was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise HttpError(413, f"the body has more than {most:,} bytes. Send it in parts.")
        budget.take(len(part))
        request.state.body_bytes += len(part)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
