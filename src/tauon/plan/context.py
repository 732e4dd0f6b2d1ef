"""What the deciders of a plan read: the recipe's part, where it runs, what an earlier part of the run recorded, and what was decided before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tauon.distributed import Layout, Mesh, ParallelConfig
from tauon.models import Model
from tauon.train import BatchSizeScheduler, JobConfig, freeze

__all__ = ["BY_THIS_RUN", "Decision", "Measure", "PlanContext"]

BY_THIS_RUN = "recorded by this run"
Measure = Callable[[Any, float], float]
"""Seconds of a step of the job that a `Plan` makes, measured for about so many seconds: the same number on all processes."""


@dataclass(frozen=True)
class Decision:
    """A value and the reason for it."""

    value: Any
    reason: str | None
    """None: nothing was decided, the recipe says so; it is not told."""
    shown: Any = None
    """What people are told, where it is not the value."""


@dataclass
class PlanContext:
    """One plan in the making."""

    config: JobConfig
    examples: int
    """Of the training data."""
    mesh: Mesh
    parallel: ParallelConfig | None
    recorded: Mapping[str, Any]
    """An earlier `Plan.record()` of the same run; empty where there is none."""
    measure: Measure | None
    on_note: Callable[[str], None]
    decided: dict[str, Any] = field(default_factory=dict)
    """Values by path, of the deciders before."""
    timed: bool = False
    """Whether steps were measured."""

    def __post_init__(self) -> None:
        # Read here, whatever this run recorded earlier: what was recorded came from these, and a key that nothing reads is an error.
        names = ("steps", "epochs", "tokens", "time", "precision", "compile", "microbatch")
        self.asked: dict[str, Any] = {k: getattr(self.config.train, k) for k in names}

    @property
    def layout(self) -> Layout:
        return self.mesh.layout

    @property
    def device(self) -> torch.device:
        found: torch.device = self.decided["train.device"]
        return found

    @cached_property
    def kept(self) -> dict[str, Any]:
        """What was recorded and holds for this device and layout."""
        if self.recorded.get("device") != self.device.type:
            return {}
        kept = dict(self.recorded)
        if kept.get("layout", Layout().to_json()) != self.layout.to_json():
            for name in ("microbatch", "threads"):  # of another number of processes: found anew
                kept.pop(name, None)
        return kept

    @cached_property
    def model(self) -> Model:
        """The model without numbers, with what does not train frozen."""
        bare = self.config.model.build_on_meta()
        freeze(bare, self.config.train.freeze)
        return bare

    @cached_property
    def sizes(self) -> BatchSizeScheduler:
        return BatchSizeScheduler.of(self.config.train, self.config.spec.seq_len)

    @property
    def neighbours(self) -> int:
        """Processes that share a machine's memory with this one, itself included; a GPU is never shared."""
        return self.mesh.world.local_size if self.device.type == "cpu" else 1

    @cached_property
    def flops_per_example(self) -> float:
        """A frozen weight has no gradient: 4 operations of 6."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters() if p.ndim >= 2]
        frozen = sum(n for n, trains in sizes if not trains) / max(1, sum(n for n, _ in sizes))
        return self.model.flops_per_example(self.config.spec) * (1 - frozen / 3)
