"""`Sites`: refuses requests that a web page of another site makes in a browser.

A browser lets any page send a POST to 127.0.0.1 (as text/plain, without asking first), and a page whose name is made to point to 127.0.0.1 (DNS
rebinding) can read the answers too. The first shows in `Origin`, the second in `Host`. There are no CORS headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tauon.serve.errors import HttpError

__all__ = ["Sites", "name_in"]

SAFE = ("GET", "HEAD", "OPTIONS")


class Sites:
    """The names that a server answers to. None given: every name."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)

    def check(self, method: str, headers: Mapping[bytes, str]) -> None:
        """Raise `HttpError` 403 for a name that is not the server's, or a request that another site's page has made."""
        host = headers.get(b"host", "")
        if self.hosts and name_in(host) not in self.hosts:
            raise HttpError(403, f"this server does not answer to the name {name_in(host)[:100]!r}. Start it with --allow-host to let it.")
        origin = headers.get(b"origin")
        if origin is None or method in SAFE:
            return
        own = origin.rpartition("://")[2]
        if own != host and (name_in(own) not in self.hosts or name_in(host) not in self.hosts):
            raise HttpError(403, f"a page of {origin[:100]!r} may not use this server")


def name_in(authority: str) -> str:
    """Return the name of `NAME:PORT` in lower case.

    >>> name_in("LocalHost:8000"), name_in("[::1]:8000"), name_in("a.example")
    ('localhost', '::1', 'a.example')
    """
    text = authority.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if ":" in text else text
