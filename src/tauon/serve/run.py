"""`run_server`: a server process, or several that share a port. Stops gracefully: no new requests, running ones are answered."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tauon.errors import LaunchError, MissingExtra
from tauon.serve.app import build_app
from tauon.serve.loading import open_server
from tauon.serve.settings import ServeSettings

__all__ = ["app_of_environment", "run_server"]

SETTINGS = "TAUON_SERVE"
"""Environment variable that tells worker processes what to serve (JSON)."""
GRACE = 30
"""Seconds that running requests get after SIGTERM."""


def run_server(
    place: Path, settings: ServeSettings, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1,
    ready: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM.

    Args:
        place: folder of a run, a checkpoint or a bundle.
        settings: limits and keys.
        host: address to listen on; others than 127.0.0.1 can be reached from other machines.
        port: 0 picks a free one.
        workers: processes; each has its own copy of the model and its own queue. One that dies is started again.
        ready: called with the URL when requests are accepted.

    Raises:
        LaunchError: the port is taken.
        TauonError: the model cannot be loaded.
    """
    try:
        import uvicorn
    except ImportError as err:
        raise MissingExtra("serving", "serve") from err
    listening = _listen(host, port)
    url = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}"
    common: dict[str, Any] = {
        "log_level": "warning", "access_log": False, "timeout_graceful_shutdown": GRACE, "server_header": False, "timeout_keep_alive": 15,
        "backlog": 4096,
    }  # fmt: skip
    if workers > 1:
        os.environ[SETTINGS] = json.dumps({"place": str(place), "settings": settings.to_json()})
        from uvicorn.supervisors import Multiprocess

        config = uvicorn.Config("tauon.serve.run:app_of_environment", factory=True, workers=workers, **common)
        if ready is not None:
            ready(url)
        with contextlib.suppress(KeyboardInterrupt):
            Multiprocess(config, target=uvicorn.Server(config).run, sockets=[listening]).run()
        return
    state = open_server(place, settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if not self.should_exit and ready is not None:
                ready(url)

        async def shutdown(self, sockets: Any = None) -> None:
            state.draining = True
            await super().shutdown(sockets)

    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has drained
        Server(uvicorn.Config(build_app(state), **common)).run(sockets=[listening])


def app_of_environment() -> Any:
    """Return the application of a worker process."""
    found = json.loads(os.environ[SETTINGS])
    return build_app(open_server(Path(found["place"]), ServeSettings.from_json(found["settings"])))


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. `LaunchError` if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as err:
        listening.close()
        raise LaunchError(
            f"{host}:{port} cannot be used ({err.strerror or err}). Choose another port: --port 8001, or 0 for a free one."
        ) from err
    listening.set_inheritable(True)
    return listening
