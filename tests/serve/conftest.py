from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds

from tauon.serve import ServeSettings, build_app, open_server

with warnings.catch_warnings():  # starlette imports a name that anyio deprecates
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Start a server in this process: serve("table", rate=3) -> client; `client.state` is the server's state."""
    opened: list[TestClient] = []

    def start(kind: str | Path, **settings: Any) -> TestClient:
        place = kind if isinstance(kind, Path) else worlds.run_of(kind)
        state = open_server(place, ServeSettings(**{"drift": False} | settings))
        client = TestClient(build_app(state), raise_server_exceptions=False)
        client.__enter__()
        client.state = state  # type: ignore[attr-defined]
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)
