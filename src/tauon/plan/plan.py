"""The plan: settings decided before the first step, with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tauon.distributed import Layout
from tauon.train import JobSettings

__all__ = ["Derived", "Plan"]

RECORDED = ("steps", "precision", "compile", "microbatch", "threads", "attention")
"""Settings that a run records at its start and keeps on resume, so that it continues exactly."""


@dataclass(frozen=True)
class Derived:
    """A derived setting: its value, and where it comes from."""

    path: str
    value: Any
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "value": self.value, "source": self.source}


@dataclass
class Plan(JobSettings):
    """Every setting decided before the first step: those of the job, and those of the loop around it."""

    validate_every: int
    checkpoint_every: int
    threads: int
    flops_per_example: float = 0.0
    derived: list[Derived] = field(default_factory=list)
    layout: Layout = field(default_factory=Layout)

    def record(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in RECORDED} | {"device": self.device.type, "layout": self.layout.to_json()}
