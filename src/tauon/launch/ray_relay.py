"""What passes between Ray's workers and who started them: lines one way, the wish to stop the other. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tauon.launch.outcome import STOPPED, cause, ended, is_final

__all__ = ["POLL_S", "Relay"]

POLL_S = 0.3
"""Seconds between two looks of a worker at its process, and of the driver at what workers said."""


class Relay:
    """An actor between the workers and who started them: lines one way, the wish to stop the other."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop_at: float | None = None
        self.failed: dict[int, int] = {}
        self.attempt = -1

    def begin(self, rank: int, size: int) -> int:
        """A worker of a new group begins; returns how often the group was started again."""
        if rank == 0:
            self.attempt += 1
            if self.attempt:
                bad = {r: c for r, c in self.failed.items() if c != 0}
                words = ended(cause(bad), bad[cause(bad)]) if bad else "a worker was lost"
                self.events.append({"kind": "restart", "restart": self.attempt, "words": words})
            self.failed = {}
        return self.attempt

    def say(self, rank: int, lines: list[str]) -> float | None:
        """Lines of a worker; returns in how many seconds it should stop, None for not at all."""
        if lines:
            self.events.append({"kind": "lines", "rank": rank, "lines": lines})
        if is_final_of(self.failed):
            return 0.0
        return None if self.stop_at is None else max(0.0, self.stop_at - time.monotonic())

    def ended(self, rank: int, code: int) -> bool:
        """A worker's process ended; returns whether nothing is to be tried again."""
        if code in (0, STOPPED) or not is_final_of(self.failed):  # else it ended because another failed
            self.failed[rank] = code
        return self.stop_at is not None or is_final_of(self.failed)

    def ask_to_stop(self) -> None:
        """All workers get SIGTERM soon, and together: one that has saved and is just ending would die of a signal that comes late."""
        self.stop_at = time.monotonic() + 3 * POLL_S

    def take(self) -> list[dict[str, Any]]:
        """What was said since the last call."""
        events, self.events = self.events, []
        return events

    def codes(self) -> dict[int, int]:
        """Exit code of each rank whose process ended, of the last group."""
        return dict(self.failed)


def is_final_of(codes: Mapping[int, int]) -> bool:
    """Whether some rank failed in a way that no restart mends."""
    bad = {rank: code for rank, code in codes.items() if code != 0}
    return bool(bad) and is_final(bad)
