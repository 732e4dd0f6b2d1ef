"""Logs of machines: each a sequence of events, and whether the machine failed. Drawn from a seed.

In the log of a machine that fails, an alarm follows soon after it gets hot; in the others it follows late. Counts of events say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tauon.config import Count, register
from tauon.data import SourceConfig

__all__ = ["Log", "Logs", "MachineLogConfig"]

TYPES = ("start", "idle", "hot", "alarm")
SOON, LATE = 1.0, 20.0


@dataclass(frozen=True)
class Log:
    """The events of one machine, in order of time."""

    types: tuple[str, ...]
    minutes: tuple[float, ...]
    """Since the event before."""


@dataclass(frozen=True)
class Logs:
    """What a source of this kind of data gives."""

    logs: tuple[Log, ...]
    targets: tuple[int, ...]
    """Class of each."""
    labels: tuple[str, ...]


@register("machine-log")
class MachineLogConfig(SourceConfig):
    """Logs of machines, half of which fail."""

    machines: Count = Field(400, ge=4)
    """How many logs."""
    events: Count = Field(16, ge=4)
    """The longest log; the shortest has half as many events."""
    seed: Count = 0
    """Of all that is drawn."""

    provides: ClassVar[str] = "events"

    def logs(self) -> Logs:
        """Every log: what `EventsKind.read` asks for."""
        g = np.random.default_rng(self.seed)
        logs = []
        for machine in range(self.machines):
            n = int(g.integers(self.events // 2, self.events + 1))
            types = [TYPES[i] for i in g.integers(0, 2, n)]
            minutes = g.exponential(10.0, n)
            at = int(g.integers(1, n - 1))
            types[at], types[at + 1] = "hot", "alarm"
            minutes[at + 1] = (SOON if machine % 2 else LATE) * g.uniform(0.5, 1.5)
            logs.append(Log(tuple(types), tuple(minutes.round(3).tolist())))
        return Logs(tuple(logs), tuple(machine % 2 for machine in range(self.machines)), ("runs", "fails"))

    def hash_content(self, digest: Any) -> None:
        digest.update(repr(self.logs()).encode())
