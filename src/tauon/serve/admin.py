"""`/admin`: swap the served version, or start a canary, while requests are answered. Exists only with admin keys."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from tauon.errors import TauonError
from tauon.serve.errors import HttpError, json_response
from tauon.serve.limits import read_body
from tauon.serve.loading import load_language_model, load_served
from tauon.serve.state import ServerState
from tauon.serve.uploads import parse_json

__all__ = ["add_admin_routes", "change_version"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/checkpoints/step-[0-9]{1,12}|/compress)?")
"""A run or bundle beside the served one, or something in it: no path leads elsewhere."""
_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "description": "Folder beside the served one: loans-2, loans/checkpoints/step-000500."},
                        "share": {
                            "type": "number",
                            "exclusiveMinimum": 0,
                            "exclusiveMaximum": 1,
                            "description": "Canary: its share of requests.",
                        },
                    },
                    "required": ["name"],
                }
            }
        },
    }
}


def add_admin_routes(app: FastAPI, state: ServerState) -> None:
    """Add the routes."""

    @app.post("/admin/swap", tags=["admin"], openapi_extra=_SCHEMA)
    async def swap(request: Request) -> Response:
        """Serve another version: at once, or with `share` first a part of the requests (canary)."""
        try:
            content = parse_json(await read_body(request, state.budget, most=65536, seconds=state.settings.read_seconds))
        finally:
            state.budget.give_back(getattr(request.state, "body_bytes", 0))
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            raise HttpError(422, 'expected {"name": "FOLDER"}', param="name")
        share = content.get("share")
        if share is not None and not (isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1):
            raise HttpError(422, f"share is {share!r}, expected a number between 0 and 1", param="share")
        return json_response(await change_version(state, content["name"], share))

    @app.get("/admin/events", tags=["admin"])
    async def events() -> Response:
        """Swaps, canaries and rollbacks."""
        return json_response({"events": state.events})


async def change_version(state: ServerState, name: str, share: float | None = None) -> dict[str, Any]:
    """Load a version beside the served one and let it answer. If loading fails, nothing changes.

    Raises:
        HttpError: 422 for a name that is no folder there, or a version that cannot be loaded.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise HttpError(422, f"{name!r} is not the name of a folder beside the served one", param="name")
    place = state.place.resolve().parent / name
    async with state.swap_lock:
        loop = asyncio.get_running_loop()
        try:
            if state.language is not None:
                if share is not None:
                    raise HttpError(422, "a language model is swapped whole: leave out share", param="share")
                loaded = await loop.run_in_executor(state.readers, load_language_model, place)
                state.language.swap(loaded)
                return {"serving": state.language.name, "version": state.language.version}
            served = await loop.run_in_executor(state.readers, load_served, place, state.settings)
        except TauonError as err:
            raise HttpError(422, f"{name} cannot be served, so nothing changed: {err}", param="name") from None
        assert state.predictors is not None
        if share is None:
            state.predictors.swap(served)
        else:
            state.predictors.start_canary(served, float(share))
        return {"serving": state.predictors.current.name, "version": state.predictors.current.version, "loaded": served.version}
