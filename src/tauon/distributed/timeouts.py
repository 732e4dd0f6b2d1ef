"""Timeouts between processes, including waits of torch that would last longer.

One number, TAUON_TIMEOUT_S (`launch.timeout`), bounds every wait. Torch applies it only to the first process group:

- later groups (e.g. of a mesh's dimensions) have thirty minutes (`torch.distributed.constants`, torch 2.13);
- gloo takes five times the timeout to connect a group, and the call cannot be interrupted: after twice the timeout the process ends;
- a client of the TCPStore waits without limit for an answer that is in flight when the network fails, holding the store's lock, so that
  every other thread that uses the store waits as well. The kernel drops an unanswered packet after 15 minutes (tcp_retries2 in tcp(7)),
  and never a silent connection. So the connection's own limit is set, TCP_USER_TIMEOUT (RFC 5482), with keep-alive: then the call fails.

Collectives have their own timeouts in gloo and NCCL. Linux only; elsewhere the kernel's limits apply.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from tauon.errors import RunError

__all__ = ["bounded_connections", "group_store", "later_groups_wait", "meeting", "time_limit"]


def time_limit() -> float:
    """Timeout in seconds of collectives and of the group's store: TAUON_TIMEOUT_S, or ten minutes."""
    return float(os.environ.get("TAUON_TIMEOUT_S", "600"))


def group_store() -> Any:
    """The store of the default process group."""
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


@contextmanager
def meeting(who: str) -> Iterator[None]:
    """Context for a call in which processes connect: after twice the timeout, end the process with a message.

    The call cannot be interrupted by an exception, and no training has started yet. The exit code is that of a `RunError`.
    """
    seconds = 2 * time_limit()

    def end() -> None:
        print(f"error: {who} could not connect to the others in {seconds:g} s, twice launch.timeout. {REACH}", file=sys.stderr, flush=True)
        os._exit(RunError.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


REACH = "Check that the machines can reach each other on every port (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network)."


@contextmanager
def later_groups_wait(seconds: float) -> Iterator[None]:
    """Context in which new process groups get this timeout by default."""
    import torch.distributed.distributed_c10d as c10d

    names = ("default_pg_timeout", "default_pg_nccl_timeout")  # read by `_get_default_timeout`; there is no public API
    before = {name: getattr(c10d, name) for name in names}
    for name in names:
        setattr(c10d, name, timedelta(seconds=seconds))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(c10d, name, value)


@contextmanager
def bounded_connections(port: int, seconds: float) -> Iterator[None]:
    """Context in which existing and new connections to `port` fail when the other end is silent for this time, also afterwards.

    A thread searches for them while the caller connects: a connection may fail before the call that makes it returns.
    """
    stop = threading.Event()
    done: set[int] = set()

    def look() -> None:
        while not stop.wait(0.05):
            _bound(port, seconds, done)
        _bound(port, seconds, done)

    thread = threading.Thread(target=look, name="bounded-connections", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bound(port: int, seconds: float, done: set[int]) -> None:
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError, ValueError):
                _bound_one(int(name), port, seconds, done)


def _bound_one(fd: int, port: int, seconds: float, done: set[int]) -> None:
    held = os.fstat(fd)
    if not stat.S_ISSOCK(held.st_mode) or held.st_ino in done:
        return
    with socket.socket(fileno=os.dup(fd)) as mine:  # a duplicate descriptor: closing it does not close the connection
        if mine.family not in (socket.AF_INET, socket.AF_INET6) or mine.getpeername()[1] != port:
            return
        each = max(1, int(seconds / 6))
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2 * each)
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, each)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        done.add(held.st_ino)
