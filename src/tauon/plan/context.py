"""Input of the functions that decide a plan: the recipe, the mesh, settings recorded by this run, and earlier decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tauon.distributed import Layout, Mesh, ParallelConfig
from tauon.models import Model
from tauon.plan.trial import Trial, Work, attention_seconds, compiled_seconds, fused_seconds, layers_of, seconds_a_step
from tauon.train import BatchSizeScheduler, JobConfig, freeze

__all__ = ["BY_THIS_RUN", "VALIDATION_SHARE", "Decision", "Measure", "PlanContext"]

BY_THIS_RUN = "recorded by this run"
VALIDATION_SHARE = 0.15
"""Share of `train.time` that validation may take."""

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
    work: Work | None = None
    """What a step computes, to be tried. None: nothing is tried."""
    decided: dict[str, Any] = field(default_factory=dict)
    """Path -> value of earlier decisions."""
    timed: bool = False
    """Whether steps were measured."""
    _timed: dict[str, float] = field(default_factory=dict)
    """Precision -> seconds of a step, as far as measured."""

    def __post_init__(self) -> None:
        # Read here even if a value is recorded: the recorded value came from these keys, and an unread key is an error.
        names = ("steps", "epochs", "tokens", "time", "precision", "compile", "attention", "microbatch")
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

    # ------------------------------------------------------------------------------------------ measured on a CPU, equal on all processes

    @property
    def rows(self) -> int:
        """Examples of a step in this process."""
        return -(-self.config.train.batch // self.layout.data)

    @cached_property
    def trial(self) -> Trial | None:
        """The job's work, to be tried on this process alone."""
        if self.work is None:
            return None
        trains = {n: p.requires_grad for n, p in self.model.named_parameters(remove_duplicate=False)}
        return Trial(self.config, self.work, trains, self.rows, min(self.rows, self.requested["microbatch"] or self.rows))

    def seconds_a_step(self, *precisions: str) -> dict[str, float] | None:
        """Return the seconds of forward and backward of a step in each precision; None if that could not be measured."""
        if not set(precisions) <= set(self._timed):
            self._timed |= self._agreed(lambda trial: seconds_a_step(trial, precisions)) or {}
        return {p: self._timed[p] for p in precisions} if set(precisions) <= set(self._timed) else None

    def fused_seconds(self, precision: str) -> float:
        """Return the seconds of a step, at most, that compiling could save."""
        found = self._agreed(lambda trial: {"fused": fused_seconds(trial, precision)})
        return 0.0 if found is None else found["fused"]

    def compiled_seconds(self, precision: str) -> dict[str, float] | None:
        """Return the seconds that compiling takes (`cost`) and saves in a step (`saved`); None if it failed."""
        rows = self.decided["train.microbatch"]
        return self._agreed(lambda trial: compiled_seconds(trial, precision, rows, self.on_note))

    @property
    def layers(self) -> int:
        """Number of equal layers; 1 if the model does not say."""
        return layers_of(self.config.model)

    def attention_seconds(self, precision: str) -> dict[str, float] | None:
        """Return the seconds of attention with each kernel, and the `bytes` that one layer keeps of an example; None: not measured."""
        return self._agreed(lambda trial: attention_seconds(trial, precision))

    def _agreed(self, measure: Callable[[Trial], dict[str, float] | None]) -> dict[str, float] | None:
        """Measure on rank 0; all processes get its figures, and so decide the same."""
        return self.mesh.world.rank0_broadcast(lambda: None if self.trial is None else measure(self.trial))
