"""`run_workers`: several server processes that share one listening socket. One that dies is started again; the others continue.

Settings, which hold keys, reach the workers through a pipe: neither through the environment nor through the command line, which others can read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tauon.errors import LaunchError, TauonError
from tauon.serve.metrics import SHARED
from tauon.serve.settings import ServeSettings

__all__ = ["run_workers"]

GRACE = 35.0
"""Seconds until a worker that does not end is killed: a little more than its own grace."""
FEW_SECONDS = 5.0
"""A worker that dies sooner is started again only after a pause."""


@dataclass
class _Worker:
    process: Any
    said: Connection
    started: float
    is_ready: bool = False


def run_workers(
    serve: Callable[[Path, ServeSettings, socket.socket, Callable[[], None]], None],
    place: Path, settings: ServeSettings, listening: socket.socket, *, count: int, ready: Callable[[], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM. SIGHUP reaches all workers.

    Args:
        serve: runs in each worker: (place, settings, socket, called when requests are accepted).
        place: folder of the model.
        settings: of all workers.
        listening: bound socket.
        count: processes.
        ready: called when the first worker accepts requests.

    Raises:
        LaunchError: the model cannot be loaded.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    figures = tempfile.mkdtemp(prefix="tauon-serve-metrics-")
    before = os.environ.get(SHARED)
    os.environ[SHARED] = figures  # a folder, nothing secret: prometheus_client reads it when it is imported
    try:
        _Supervisor(lambda said: (serve, place, settings, listening, said), count, ready).run()
    finally:
        if before is None:
            del os.environ[SHARED]
        else:
            os.environ[SHARED] = before
        shutil.rmtree(figures, ignore_errors=True)


class _Supervisor:
    def __init__(self, arguments: Callable[[Connection], tuple[Any, ...]], count: int, ready: Callable[[], None]) -> None:
        self.context = get_context("spawn")
        self.arguments, self.count, self.ready = arguments, count, ready
        self.workers: list[_Worker] = []
        self.is_stopping = threading.Event()
        self.has_been_ready = False

    def run(self) -> None:
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._stop)
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self._pass_on
        before = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
        try:
            self.workers = [self._start() for _ in range(self.count)]
            while not self.is_stopping.is_set():
                self._look()
        finally:
            self._end()
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _start(self) -> _Worker:
        said, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=self.arguments(theirs), name="tauon-serve", daemon=False)
        process.start()
        theirs.close()
        return _Worker(process, said, time.monotonic())

    def _look(self) -> None:
        """Wait for a message or a death, half a second at most."""
        wait([w.process.sentinel for w in self.workers] + [w.said for w in self.workers if not w.is_ready], timeout=0.5)
        for i, worker in enumerate(self.workers):
            if not worker.is_ready and worker.said.poll():
                self._hear(worker)
            if worker.process.exitcode is not None and not self.is_stopping.is_set():
                if time.monotonic() - worker.started < FEW_SECONDS:
                    self.is_stopping.wait(1.0)
                if not self.is_stopping.is_set():
                    worker.said.close()
                    self.workers[i] = self._start()

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.said.recv()
        except (EOFError, OSError):  # it died
            worker.is_ready = True
            return
        if message == "ready":
            worker.is_ready = True
            if not self.has_been_ready:
                self.has_been_ready = True
                self.ready()
        elif not self.has_been_ready:
            raise LaunchError(str(message))

    def _stop(self, *_: Any) -> None:
        self.is_stopping.set()

    def _pass_on(self, *_: Any) -> None:
        for worker in self.workers:
            if worker.process.pid is not None and worker.process.exitcode is None and worker.is_ready:
                os.kill(worker.process.pid, signal.SIGHUP)

    def _end(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def _work(serve: Any, place: Path, settings: ServeSettings, listening: socket.socket, said: Connection) -> None:
    """Run one worker; end when the parent does, however that ended."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent", daemon=True).start()

    def ready() -> None:
        with contextlib.suppress(OSError):
            said.send("ready")

    try:
        serve(place, settings, listening, ready)
    except TauonError as err:
        with contextlib.suppress(OSError):
            said.send(str(err))
        raise SystemExit(1) from None
