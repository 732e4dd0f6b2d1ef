"""`run_server`: a server process, or several that share a port. Stops gracefully: no new requests, running ones are answered."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tauon.errors import LaunchError, MissingExtra
from tauon.serve.app import build_app
from tauon.serve.connections import Sweeper, most_connections, protocol_class
from tauon.serve.loading import open_server
from tauon.serve.settings import ServeSettings
from tauon.serve.workers import run_workers

__all__ = ["run_server"]

GRACE = 30
"""Seconds that running requests get after SIGTERM."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        import uvicorn  # noqa: F401
    except ImportError as err:
        raise MissingExtra("serving", "serve") from err
    if workers > 1 and settings.admin_keys:
        raise LaunchError(
            "/admin needs one worker: a swap would reach one of them only. Leave out --workers, or swap with SIGHUP or --watch."
        )
    if host in LOOPBACK:
        settings = replace(settings, hosts=(*LOOPBACK, *settings.hosts))
    listening = _listen(host, port)
    url = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}"

    def tell() -> None:
        if ready is not None:
            ready(url)

    with contextlib.closing(listening), contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has drained
        if workers > 1:
            run_workers(serve_socket, place, settings, listening, count=workers, ready=tell)
        else:
            serve_socket(place, settings, listening, tell)


def serve_socket(place: Path, settings: ServeSettings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on a bound socket until a signal; `ready` is called when requests are accepted."""
    import uvicorn

    state = open_server(place, settings)
    sweeper = Sweeper()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                gc.freeze()  # what start-up made stays: no collection has to look at it again
                gc.enable()  # the command line starts without
                ready()

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:
                sweeper.look(self.server_state.connections)
            return bool(await super().on_tick(counter))

        async def shutdown(self, sockets: Any = None) -> None:
            state.draining = True
            await super().shutdown(sockets)

    config = uvicorn.Config(
        build_app(state), http=protocol_class(most_connections()), ws="none", log_level="warning", access_log=False,
        timeout_graceful_shutdown=GRACE, server_header=False, timeout_keep_alive=15, backlog=4096,
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,  # without it a client could choose its own address
    )  # fmt: skip
    Server(config).run(sockets=[listening])


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
