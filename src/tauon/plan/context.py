"""Input of the functions that decide a plan: the recipe, the mesh, settings recorded by this run, and earlier decisions."""

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
"""(plan, seconds) -> measured time of a step of the job with that plan, measured for about so many seconds; equal on all processes."""


@dataclass(frozen=True)
class Decision:
    """A value and its reason."""

    value: Any
    reason: str | None
    """None: the recipe sets the value, so it is not reported."""
    shown: Any = None
    """Value to report, if it is not `value`."""


@dataclass
class PlanContext:
    """Input of one plan, and the decisions so far."""

    config: JobConfig
    examples: int
    """Number of training examples."""
    mesh: Mesh
    parallel: ParallelConfig | None
    recorded: Mapping[str, Any]
    """The `Plan.record()` of the run that is resumed; empty for a new run."""
    measure: Measure | None
    on_note: Callable[[str], None]
    decided: dict[str, Any] = field(default_factory=dict)
    """Path -> value of earlier decisions."""
    timed: bool = False
    """Whether steps were measured."""

    def __post_init__(self) -> None:
        # Read here even if a value is recorded: the recorded value came from these keys, and an unread key is an error.
        names = ("steps", "epochs", "tokens", "time", "precision", "compile", "microbatch")
        self.requested: dict[str, Any] = {k: getattr(self.config.train, k) for k in names}

    @property
    def layout(self) -> Layout:
        return self.mesh.layout

    @property
    def device(self) -> torch.device:
        device: torch.device = self.decided["train.device"]
        return device

    @cached_property
    def still_valid(self) -> dict[str, Any]:
        """The recorded settings that are valid for this device and layout."""
        if self.recorded.get("device") != self.device.type:
            return {}
        valid = dict(self.recorded)
        if valid.get("layout", Layout().to_json()) != self.layout.to_json():
            for name in ("microbatch", "threads"):  # they depend on the number of processes: decide again
                valid.pop(name, None)
        return valid

    @cached_property
    def model(self) -> Model:
        """The model on the meta device, with `train.freeze` applied."""
        model = self.config.model.build_on_meta()
        freeze(model, self.config.train.freeze)
        return model

    @cached_property
    def sizes(self) -> BatchSizeScheduler:
        return BatchSizeScheduler.of(self.config.train, self.config.spec.seq_len)

    @property
    def neighbours(self) -> int:
        """Number of processes that share this one's memory, including itself; a GPU is never shared."""
        return self.mesh.world.local_size if self.device.type == "cpu" else 1

    @cached_property
    def flops_per_example(self) -> float:
        """Operations per example. A frozen weight has no weight gradient: 4 operations instead of 6."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters() if p.ndim >= 2]
        frozen = sum(n for n, trains in sizes if not trains) / max(1, sum(n for n, _ in sizes))
        return self.model.flops_per_example(self.config.spec) * (1 - frozen / 3)
