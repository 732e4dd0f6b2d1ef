"""`Rollout`: which version of a model answers. A version is swapped while requests are answered; a new one can first get a share of them (a canary),
and is taken back if it fails more often than the old one.

A request is answered by the version that it began with, so a swap fails none.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Counts", "Rollout", "Version", "fails_more"]

ENOUGH = 50
"""Requests of the canary before it is judged."""
PASSED = 500
"""Requests after which a canary that did not fail replaces the old version."""


class Version(Protocol):
    """A version of a model."""

    name: str
    version: str


@dataclass
class Counts:
    """Requests of one version."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, failed: bool, seconds: float) -> None:
        self.done, self.failed, self.seconds = self.done + 1, self.failed + failed, self.seconds + seconds


def fails_more(new: Counts, old: Counts) -> bool:
    """Return whether the new version's share of failures is larger at the level of 0.1%, by the two-proportion z-test with pooled variance
    and continuity correction.

    >>> fails_more(Counts(50, 5), Counts(950, 0)), fails_more(Counts(50, 1), Counts(950, 19))
    (True, False)
    """
    if not new.done or not old.done:
        return new.done >= ENOUGH and new.failed > new.done / 2
    p, n, m = (new.failed + old.failed) / (new.done + old.done), new.done, old.done
    spread = math.sqrt(max(p * (1 - p), 1e-12) * (1 / n + 1 / m))
    gap = new.failed / n - old.failed / m - 0.5 * (1 / n + 1 / m)
    return gap / spread > 3.09


@dataclass
class Rollout:
    """The version that answers, and a canary beside it."""

    current: Any
    canary: Any | None = None
    share: float = 0.0
    tell: Callable[[str, str], None] = field(default=lambda kind, message: None)
    """Called with (swap, canary, rollback or promoted; a message)."""
    counts: dict[str, Counts] = field(default_factory=dict)

    def choose(self, request_id: str) -> Any:
        """Return the version for a request. The same id always gets the same version."""
        if self.canary is not None and zlib.crc32(request_id.encode("utf-8", "replace")) % 10_000 < self.share * 10_000:
            return self.canary
        return self.current

    def swap(self, version: Any) -> None:
        """Make `version` the one that answers new requests."""
        old, self.current, self.canary = self.current, version, None
        self.counts.clear()
        self.tell("swap", f"{version.name} {version.version} answers instead of {old.name} {old.version}")

    def start_canary(self, version: Any, share: float) -> None:
        """Give `version` a share of the requests."""
        self.canary, self.share = version, share
        self.counts.clear()
        self.tell("canary", f"{version.name} {version.version} answers {share:.0%} of the requests")

    def done(self, version: Any, *, failed: bool, seconds: float) -> None:
        """Count a finished request; take the canary back if it fails more often, or is ten times slower; make it current once it has passed.

        `failed` means a fault of the server, not of the request.
        """
        if self.canary is None:
            return
        self.counts.setdefault(version.version, Counts()).add(failed, seconds)
        if version is not self.canary:
            return
        new, old = self.counts[version.version], self.counts.get(self.current.version, Counts())
        slow = old.done >= ENOUGH and new.done >= ENOUGH and new.seconds / new.done > 10 * old.seconds / old.done
        if (new.done >= 5 and fails_more(new, old)) or slow:
            why = f"{new.failed} of {new.done} requests failed" if not slow else f"{new.seconds / new.done:.3f} s a request"
            self.canary = None
            self.tell("rollback", f"{version.name} {version.version} was taken back: {why}; {self.current.version} answers all requests")
        elif new.done >= PASSED:
            self.current, self.canary = version, None
            self.tell("promoted", f"{version.name} {version.version} passed {new.done} requests and answers all")
