"""The page of a server: try the model in a browser. One HTML file, one script, one style sheet; nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

__all__ = ["add_page_routes"]

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@cache
def _content(name: str) -> bytes:
    return (files("tauon.serve.page") / name).read_bytes()


def add_page_routes(app: FastAPI) -> None:
    """Add the page and its two files."""
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _route(name, kind), methods=["GET"], include_in_schema=False)


def _route(name: str, kind: str) -> Any:
    async def send() -> Response:
        headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
        return Response(_content(name), headers=headers, media_type=kind)

    return send
