"""Counting what goes over the network: bytes that this process hands to others, by kind of communication.

A count is of payload, not of what a ring or a tree makes of it: an all-reduce of N bytes counts N, on every rank.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Traffic"]


class Traffic:
    """Bytes by kind since `take` was last called, and in all."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def add(self, kind: str, size: int) -> None:
        """`size` bytes went out by `kind` (all-reduce, all-gather, push, pull, ...)."""
        self.now[kind] += size
        self.total[kind] += size

    def take(self) -> dict[str, int]:
        """Bytes by kind since the last call."""
        taken, self.now = dict(self.now), Counter()
        return taken
