"""The FastAPI application of a server: routes, their schemas, and their errors. `build_app(state)` needs no network; tests call it directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from tauon import __version__
from tauon.errors import TauonError
from tauon.serve.admin import add_admin_routes
from tauon.serve.errors import HttpError, error_response, json_response, response_of
from tauon.serve.gate import Gate
from tauon.serve.page import add_page_routes
from tauon.serve.predicting import predict
from tauon.serve.schemas import ERRORS, predict_schema
from tauon.serve.state import ServerState
from tauon.serve.watching import watching

__all__ = ["build_app"]


def build_app(state: ServerState) -> FastAPI:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with watching(state):
            yield
        state.draining = True
        await asyncio.get_running_loop().run_in_executor(None, state.close)

    app = FastAPI(
        title=f"{state.name} on Tauon", version=__version__, lifespan=lifespan, responses=ERRORS, redirect_slashes=False,
        docs_url=None, redoc_url=None,  # FastAPI's own pages load scripts from elsewhere; ours is `page/docs.html`
    )  # fmt: skip
    for kind in (HttpError, TauonError):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(HTTPException, _http)
    _service_routes(app, state)
    if state.predictors is not None:
        _predict_routes(app, state)
    if state.language is not None:
        from tauon.serve.openai_routes import add_openai_routes

        add_openai_routes(app, state)
    if state.settings.admin_keys:
        add_admin_routes(app, state)
    add_page_routes(app)
    direct = {} if state.predictors is None else {"/predict": partial(predict, state)}
    app.add_middleware(Gate, settings=state.settings, metrics=state.metrics, routes=_paths(app), direct=direct)
    return app


def _paths(app: FastAPI) -> frozenset[str]:
    return frozenset(path for route in app.routes if (path := getattr(route, "path", "")))


async def _refuse(_: Request, err: Exception) -> Response:
    return response_of(err)


async def _http(request: Request, err: Any) -> Response:
    if err.status_code == 404:
        return error_response(HttpError(404, f"{request.url.path!r} does not exist here; /docs lists what does"))
    if err.status_code == 405:
        allowed = (err.headers or {}).get("Allow", "another method")
        return error_response(HttpError(405, f"{request.method} is not allowed here; use {allowed}"))
    return error_response(HttpError(err.status_code, str(err.detail)))


def _service_routes(app: FastAPI, state: ServerState) -> None:
    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"])
    async def readyz() -> Response:
        """Whether requests are answered: no while the server drains."""
        if state.draining:
            return error_response(HttpError(503, "the server is stopping", retry=5))
        return json_response({"status": "ready", "model": state.name})

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        refresh_metrics(state)
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info", tags=["service"])
    async def info() -> Response:
        """What the model reads and answers."""
        if state.language is not None:
            return json_response(state.language.info())
        assert state.predictors is not None
        found = state.predictors.current.info()
        batcher = state.batcher(state.predictors.current)
        found["explains"] = state.settings.explain
        return json_response(found | {"batch": batcher.most_rows, "events": state.events[-20:]})


def _predict_routes(app: FastAPI, state: ServerState) -> None:
    assert state.predictors is not None

    @app.post("/predict", tags=["predict"], openapi_extra=predict_schema(state.predictors.current))
    async def predict_route(request: Request) -> Response:
        """Predict rows: as JSON, or a file of the kind that the model reads. `Accept: text/csv` gives CSV."""
        return await predict(state, request)

    @app.get("/v1/models", tags=["service"])
    async def models() -> dict[str, Any]:
        """The served model, as OpenAI's API lists it."""
        assert state.predictors is not None
        current = state.predictors.current
        return {
            "object": "list",
            "data": [{"id": current.name, "object": "model", "created": int(current.loaded), "owned_by": "tauon"}],
        }


def refresh_metrics(state: ServerState) -> None:
    """Set the gauges that are computed when they are asked for."""
    metrics = state.metrics
    metrics.queued.set(sum(b.queued for b in state.batchers.values()))
    if state.predictors is not None and state.predictors.current.drift is not None:
        drift = state.predictors.current.drift
        for name, value in drift.psi().items():
            metrics.drift.labels(name).set(value)
        for word, count in drift.answers.items():
            metrics.answers.labels(word).set(count)
    if state.language is not None:
        state.language.refresh(metrics)
