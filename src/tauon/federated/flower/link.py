"""Flower's SuperLink inside the coordinator's process: its link state and object store in memory, its Fleet API on one TLS port.

Inside the process, because nothing else then reaches the state: the APIs with which Flower's own coordinator starts runs and sends messages do not
exist on any port. With the process the Flower run ends; a new start creates a new run, and sites join it by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauon.errors import LaunchError
from tauon.federated.flower.engine import load_flower
from tauon.federated.flower.gate import Gate

__all__ = ["SuperLink", "open_link"]

STARTING = 20.0
"""Seconds after which a server that does not listen yet is given up; also for a port that a killed coordinator's child still has."""
TASK_HEARTBEAT = 15.0


class SuperLink:
    """The state of the federation that Flower keeps: nodes, one run, messages. `open_link` starts and stops it.

    Args:
        state: Flower's `LinkState`.
        gate: woken when messages are pushed.
    """

    def __init__(self, state: Any, arrived: threading.Event) -> None:
        self.state, self.arrived = state, arrived
        self.gate: Gate | None = None
        self.tls: ssl.SSLContext | None = None
        self.port = 0
        self.server: threading.Thread | None = None
        self._task_id, self._run_id = 0, 0
        self._lock = threading.Lock()

    @property
    def run_id(self) -> int:
        """The Flower run: created at first use, and again if the process slept so long (60 s) that Flower ended it."""
        from flwr.common.constant import NOOP_FLWR_AID
        from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType

        with self._lock:
            if self._run_id and self.state.acknowledge_task_heartbeat(self._task_id):
                return self._run_id
            run_id: int = self.state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
            task = next(t for t in self.state.get_tasks() if t.run_id == run_id)
            if self.state.claim_task(task.task_id) is None or not self.state.activate_task(task.task_id):
                raise LaunchError("Flower did not start the run: its task could not be claimed")
            self._run_id, self._task_id = run_id, task.task_id
            return run_id

    def register(self, sites: dict[str, bytes]) -> None:
        """Let these keys in, and no other: new ones are registered, those that are gone from the roster are removed."""
        from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

        registered = {node.public_key: node.node_id for node in self.state.get_node_info() if node.status != "unregistered"}
        for name, key in sites.items():
            if key not in registered:
                self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
        removed = registered.keys() - set(sites.values())
        for key in removed:
            self.state.delete_node(NOOP_FLWR_AID, registered[key])
        if removed:
            self.pushed(*removed)  # their requests that wait are refused now

    def departed(self) -> set[bytes]:
        """Return the public keys of the sites that said goodbye and did not come back. Those that vanished are not among them."""
        gone = set(self.state.said_goodbye)
        return {node.public_key for node in self.state.get_node_info() if node.node_id in gone}

    def check(self) -> None:
        """Raise `LaunchError` where the server has ended by itself."""
        if self.server is not None and not self.server.is_alive():
            raise LaunchError("The server of the coordinator has ended unexpectedly. Start the coordinator again: it continues.")

    def pushed(self, *public_keys: bytes) -> None:
        """Wake the sites with these keys if they wait for messages; without any, wake all."""
        if self.gate is not None:
            self.gate.pushed(*public_keys)


def _link_state() -> Any:
    """Flower's state in memory, in which a site that was killed joins again at once, not only after its heartbeat has run out."""
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    class RestartableState(InMemoryLinkState):
        def __init__(self, manager: Any, store: Any) -> None:
            super().__init__(manager, store)
            # Flower takes these three locks in different orders (a push session that expires, a message that is stored), and registers a
            # message's objects without holding the store: one lock for all cannot deadlock, and no object vanishes in between.
            self._lock_object_push_sessions = store.lock_store = self.lock
            self.said_goodbye: set[int] = set()

        def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
            with self.lock:
                super().deactivate_node(node_id)
                self.said_goodbye.discard(node_id)
                return bool(super().activate_node(node_id, heartbeat_interval))

        def deactivate_node(self, node_id: int) -> bool:
            with self.lock:
                self.said_goodbye.add(node_id)
                return bool(super().deactivate_node(node_id))

        def delete_node(self, owner_aid: str, node_id: int) -> None:
            with self.lock:
                node = self.nodes.get(node_id)
                if node is not None:  # so that its key can be registered again
                    self.node_public_key_to_node_id.pop(node.public_key, None)
                super().delete_node(owner_aid, node_id)

    return RestartableState(NoOpFederationManager(), ObjectStoreFactory().store())


async def _own_answers(request: Any, call_next: Any) -> Any:
    """Refuse an answer in the name of another site: Flower compares the key with the request's node, but not with who the answer says it is of."""
    from starlette.responses import JSONResponse

    pushed: Any = getattr(request.state, "protobuf_request", None)
    if any(answer.metadata.src_node_id != pushed.node.node_id for answer in getattr(pushed, "messages_list", ())):
        return JSONResponse({"detail": "An answer of another site."}, status_code=403)
    return await call_next(request)


def _application(state: Any) -> Any:
    """Return Flower's Fleet API, with its node authentication, as an ASGI application."""
    from fastapi import FastAPI
    from flwr.supercore.error import http_error_translator
    from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
    from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
    from flwr.superlink.routers.fleet.router import router
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    class Factory:
        def state(self) -> Any:
            return state

    order = [
        Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
        Middleware(ProtobufTranslationMiddleware),
        Middleware(NodeAuthMiddleware),
        Middleware(BaseHTTPMiddleware, dispatch=_own_answers),
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=order)
    app.state.linkstate_factory = Factory()
    app.state.enable_supernode_auth = True
    app.include_router(router)
    return app


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return TLS 1.3 with the coordinator's certificate. Raises `LaunchError` where the key is another certificate's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as err:
        raise LaunchError(f"{certificate} and {key} cannot be used together: {err}") from None
    return context


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; wait for a port that is still held, by a coordinator that is just ending, for 20 s."""
    give_up = time.monotonic() + STARTING
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # the protocol named, or asyncio leaves Nagle's delay on
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as err:
            listener.close()
            if time.monotonic() > give_up or err.errno != 98:  # EADDRINUSE
                raise LaunchError(
                    f"The coordinator cannot listen on {host}:{port}: {err.strerror}. Choose another address or port."
                ) from None
            time.sleep(0.2)
        else:
            return listener


@contextlib.contextmanager
def open_link(host: str, port: int, certificate: Path, key: Path) -> Iterator[SuperLink]:
    """Serve the Fleet API on `host:port` (0: a free port, see `SuperLink.port`) until the block ends. Raises `LaunchError`."""
    load_flower()
    import uvicorn

    tls, arrived = server_context(certificate, key), threading.Event()
    listener = _listen(host, port)
    link = SuperLink(_link_state(), arrived)
    link.gate, link.tls, link.port = Gate(_application(link.state), arrived.set), tls, listener.getsockname()[1]
    config = uvicorn.Config(
        link.gate, log_config=None, access_log=False, log_level="critical", lifespan="on", loop="asyncio", timeout_keep_alive=60,
        timeout_graceful_shutdown=2, ws="none", ssl_context_factory=lambda *_: tls,
    )  # fmt: skip

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            transports = [c.transport for c in self.server_state.connections if c.transport is not None]
            await super().shutdown(sockets)
            for transport in transports:
                transport.abort()  # a site that does not answer the end of its TLS connection is not waited for
            await asyncio.sleep(0.01)

    server = Server(config)
    ended = threading.Event()
    threads = [
        threading.Thread(target=server.run, args=([listener],), name="superlink", daemon=True),
        threading.Thread(target=_beat, args=(link, ended), name="superlink-task", daemon=True),
    ]
    try:
        link.run_id  # noqa: B018 - creates the run
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + STARTING
        while not server.started:
            if not threads[0].is_alive() or time.monotonic() > give_up:
                raise LaunchError(f"The coordinator's server on {host}:{port} did not start")
            time.sleep(0.01)
        link.server = threads[0]
        yield link
    finally:
        ended.set()
        server.should_exit = True
        link.pushed()  # requests that wait end now
        for thread in threads:
            if thread.is_alive():
                thread.join(STARTING)
        listener.close()


def _beat(link: SuperLink, ended: threading.Event) -> None:
    """Keep the run alive: Flower ends one whose task is silent for 60 s."""
    while not ended.wait(TASK_HEARTBEAT):
        link.run_id  # noqa: B018 - acknowledges, or creates a new run
