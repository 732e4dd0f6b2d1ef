"""`Gate`: the outermost layer of a server (ASGI): keys, rates, draining, ids of requests, metrics, and an answer in words to every error."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tauon.errors import TauonError
from tauon.serve.errors import HttpError, response_of
from tauon.serve.limits import Keys, RateLimit
from tauon.serve.metrics import Metrics
from tauon.serve.settings import ServeSettings
from tauon.serve.sites import Sites

__all__ = ["Gate"]

OPEN = ("/", "/healthz", "/readyz", "/page.js", "/page.css", "/docs", "/docs.js")
"""Paths that need no key: the page has nothing secret on it, and asks for the key itself."""
Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("tauon.serve")


class Gate:
    """Wraps the application."""

    def __init__(
        self, app: Any, settings: ServeSettings, metrics: Metrics, routes: frozenset[str], direct: Mapping[str, Handler] | None = None
    ) -> None:
        """
        Args:
            app: the application.
            settings: keys and rates.
            metrics: where requests are counted.
            routes: paths that are counted under their own name.
            direct: handlers of POST requests by path that are called without the application's routing, which costs half of a small request.
        """
        self.app, self.metrics, self.routes, self.direct = app, metrics, routes, direct or {}
        self._prefix, self._numbers = uuid.uuid4().hex[:16], itertools.count()
        self.keys, self.admin_keys = Keys(settings.keys), Keys(settings.admin_keys)
        self.rate, self.sites = RateLimit(settings.rate, settings.burst), Sites(settings.hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, start, status = scope["path"], time.perf_counter(), 0
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = (
            given if 0 < len(given) <= 100 and given.isascii() and given.isprintable() else f"{self._prefix}{next(self._numbers):016x}"
        )
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        self.metrics.running.inc()
        try:
            self._check(path, headers, scope)
            handler = self.direct.get(path) if scope["method"] == "POST" else None
            if handler is None:
                await self.app(scope, receive, answer)
            else:
                await (await handler(Request(scope, receive)))(scope, receive, answer)
        except Exception as err:
            if not isinstance(err, HttpError | TauonError):
                log.exception("request %s to %s failed", request_id, path)
            if status:  # the answer has begun: the connection is closed by the server
                raise
            await response_of(err)(scope, receive, answer)
        finally:
            self.metrics.running.dec()
            self.metrics.count(path if path in self.routes else "other", status or 499, time.perf_counter() - start)

    def _check(self, path: str, headers: Mapping[bytes, str], scope: Any) -> None:
        self.sites.check(scope["method"], headers)
        if b"upgrade" in headers and scope["method"] not in ("GET", "HEAD"):  # the HTTP parser would drop the body
            raise HttpError(400, "`Upgrade` is not supported with a body: leave it out (curl --http1.1)", close=True)
        if path in OPEN:
            return
        keys = self.admin_keys if path.startswith("/admin") else self.keys
        owner = keys.owner(headers) if keys else None
        if keys and owner is None:
            raise HttpError(401, "an API key is needed: send it as `Authorization: Bearer KEY`", code="invalid_api_key")
        wait = self.rate.take(owner or (scope.get("client") or ("?",))[0])
        if wait:
            raise HttpError(429, f"too many requests: at most {self.rate.rate:g} a second", code="rate_limit_exceeded", retry=wait)
