"""Limits of a server: API keys, request rates, size and time of bodies. No model here."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tauon.serve.errors import HttpError

__all__ = ["BodyBudget", "Keys", "RateLimit", "read_body"]


class Keys:
    """API keys, kept as hashes and compared in constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, headers: Any) -> str | None:
        """Return a short name of the key that a request carries (`Authorization: Bearer KEY` or `X-API-Key`), None if it is unknown."""
        given = headers.get("authorization", "")
        key = given[7:].strip() if given[:7].lower() == "bearer " else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
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


async def read_body(request: Request, budget: BodyBudget, *, most: int, seconds: float) -> bytes:
    """Return the body of a request. Its bytes stay counted in `budget` until `request.state.body_bytes` is given back.

    Raises:
        HttpError: 413 for a body over `most`, 408 for one that takes longer than `seconds`, 429 if the budget is used up, 400 if the
            client went away.
    """
    request.state.body_bytes = 0
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise HttpError(413, f"the body has {int(length):,} bytes, but at most {most:,} are allowed. Send it in parts.")
    parts: list[bytes] = []
    size = 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise HttpError(413, f"the body has more than {most:,} bytes. Send it in parts.")
            budget.take(len(part))
            request.state.body_bytes += len(part)
            parts.append(part)

    try:
        async with asyncio.timeout(seconds):
            await read()
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {seconds:g} s ({size:,} bytes came). Send it faster, or less.") from None
    except ClientDisconnect:
        raise HttpError(400, "the connection ended before the body was complete") from None
    return b"".join(parts)
