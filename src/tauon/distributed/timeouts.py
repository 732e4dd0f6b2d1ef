"""How long a process waits for another one, and the waits of torch that would last longer.

One number, TAUON_TIMEOUT_S (`launch.timeout`), bounds every wait. Torch takes it for the first process group, and for nothing else:

- groups made later, a mesh's dimensions for one, have thirty minutes of their own (`torch.distributed.constants`, torch 2.13);
- gloo takes five times the time-out for connecting a group, and the call cannot be interrupted: past twice the time-out the process ends;
- a client of the TCPStore waits without bound for an answer that is on its way when the network is cut, holding the store's lock, so that
  every thread that asks the store next waits with it. The kernel gives an unanswered packet up after 15 minutes (tcp_retries2 in tcp(7)),
  and never a silent connection. So the connection's own limit is set, TCP_USER_TIMEOUT (RFC 5482), with keep-alive: then the call fails.

Collectives have time-outs of their own in gloo and NCCL. Linux only; elsewhere the kernel's own limits stay.
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
    """Seconds that a collective, or an answer of the group's store, is waited for: TAUON_TIMEOUT_S, or ten minutes."""
    return float(os.environ.get("TAUON_TIMEOUT_S", "600"))


def group_store() -> Any:
    """The store of the default process group."""
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


@contextmanager
def meeting(who: str) -> Iterator[None]:
    """Around a call in which processes connect: one that lasts longer than twice the time-out ends the process, in words.

    An exception cannot be raised into it, and nothing of a run is under way yet. The exit code is that of a `RunError`.
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


REACH = "Check that the machines reach each other, on every port (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME choose the network)."


@contextmanager
def later_groups_wait(seconds: float) -> Iterator[None]:
    """Inside, process groups that are made without a time-out of their own get this one."""
    import torch.distributed.distributed_c10d as c10d

    names = ("default_pg_timeout", "default_pg_nccl_timeout")  # what `_get_default_timeout` reads; there is no public way
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
    """Connections to `port` that this process has, or makes inside, fail once the other end was silent for so long; afterwards, too.

    They are looked for while the caller is busy connecting: a connection may be cut before the call that makes it returns.
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
    with socket.socket(fileno=os.dup(fd)) as mine:  # a second name of the same connection: closing it leaves the connection alone
        if mine.family not in (socket.AF_INET, socket.AF_INET6) or mine.getpeername()[1] != port:
            return
        each = max(1, int(seconds / 6))
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2 * each)
        mine.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, each)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        done.add(held.st_ino)
