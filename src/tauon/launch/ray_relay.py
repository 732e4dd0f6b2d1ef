"""Relay between Ray's workers and the launcher: output lines one way, the stop signal the other. Does not import Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tauon.launch.outcome import STOPPED, cause, ended, is_final

__all__ = ["POLL_S", "Relay"]

POLL_S = 0.3
"""Poll interval in seconds, of a worker for its process and of the driver for output."""


class Relay:
    """Actor between the workers and the launcher: output lines one way, the stop signal the other."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop_at: float | None = None
        self.failed: dict[int, int] = {}
        self.attempt = -1

    def begin(self, rank: int, size: int) -> int:
        """Register a worker of a new group; return the number of restarts."""
        if rank == 0:
            self.attempt += 1
            if self.attempt:
                bad = {r: c for r, c in self.failed.items() if c != 0}
                words = ended(cause(bad), bad[cause(bad)]) if bad else "a worker was lost"
                self.events.append({"kind": "restart", "restart": self.attempt, "words": words})
            self.failed = {}
        return self.attempt

    def say(self, rank: int, lines: list[str]) -> float | None:
        """Add output lines of a worker; return in how many seconds it should stop, None: not at all."""
        if lines:
            self.events.append({"kind": "lines", "rank": rank, "lines": lines})
        if is_final_of(self.failed):
            return 0.0
        return None if self.stop_at is None else max(0.0, self.stop_at - time.monotonic())

    def ended(self, rank: int, code: int) -> bool:
        """Record the end of a worker's process; return whether the run must not be restarted."""
        if code in (0, STOPPED) or not is_final_of(self.failed):  # otherwise it ended because another one failed
            self.failed[rank] = code
        return self.stop_at is not None or is_final_of(self.failed)

    def ask_to_stop(self) -> None:
        """Schedule SIGTERM for all workers at the same time: a late signal would kill a worker that has saved and is ending."""
        self.stop_at = time.monotonic() + 3 * POLL_S

    def take(self) -> list[dict[str, Any]]:
        """Output since the last call."""
        events, self.events = self.events, []
        return events

    def codes(self) -> dict[int, int]:
        """Exit codes of the last group, by rank."""
        return dict(self.failed)


def is_final_of(codes: Mapping[int, int]) -> bool:
    """Whether some rank failed in a way that a restart cannot fix."""
    bad = {rank: code for rank, code in codes.items() if code != 0}
    return bool(bad) and is_final(bad)
