"""Where a federated run takes place, if it is not simulated: which end this process is, and how it reaches the other. Not part of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

__all__ = ["JoinAt", "ServeAt", "network", "this_end"]


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
