"""Where a federated run takes place, if it is not simulated: which end this process is, and how it reaches the other. Not part of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tauon.errors import LaunchError

__all__ = ["JoinAt", "ServeAt", "Trouble", "network", "parse_address", "this_end"]


@dataclass(frozen=True)
class ServeAt:
    """The coordinator."""

    address: str
    """`host:port` to listen on."""
    keys: Path
    """Folder with `server.crt`, `server.key` and `roster`."""
    sites: int
    """Sites that must have joined before the first round."""
    wait: float
    """Seconds to wait for them."""


@dataclass(frozen=True)
class JoinAt:
    """One of the sites."""

    address: str
    """`host:port` of the coordinator."""
    name: str
    """Name of the site, as in the coordinator's roster."""
    keys: Path
    """Folder with `<name>.key`, `ca.crt`, and the identity for secure aggregation."""


class Trouble(str):
    """A note about what a person should look at: shown as a warning."""


def parse_address(address: str, *, listen: bool = False) -> tuple[str, int]:
    """Return host and port of `host:port`. Raises `LaunchError`.

    Args:
        address: an IPv6 address is in brackets.
        listen: whether port 0, which takes a free one, is possible.

    >>> parse_address("[::1]:9443")
    ('::1', 9443)
    """
    host, colon, port = address.rpartition(":")
    example = "0.0.0.0:9443" if listen else "fed.example.org:9443"
    if "/" in address:
        raise LaunchError(f"The address is {address!r}, expected host:port without https:// and without a path, such as {example}")
    if not colon or not host or not (port.isascii() and port.isdigit()) or (":" in host and not host.startswith("[")):
        raise LaunchError(
            f"The address is {address!r}, expected host:port, such as {example}; an IPv6 address in brackets, such as [::1]:9443"
        )
    if not (0 if listen else 1) <= int(port) <= 65535:
        raise LaunchError(f"The address is {address!r}: a port is a number from 1 to 65535, such as {example}")
    return host.removeprefix("[").removesuffix("]"), int(port)


_END: ContextVar[ServeAt | JoinAt | None] = ContextVar("federation", default=None)


@contextmanager
def network(end: ServeAt | JoinAt) -> Iterator[None]:
    """Context in which federated runs take place over the network, with this process as that end."""
    token = _END.set(end)
    try:
        yield
    finally:
        _END.reset(token)


def this_end() -> ServeAt | JoinAt | None:
    """Return which end this process is; None: sites are simulated."""
    return _END.get()
