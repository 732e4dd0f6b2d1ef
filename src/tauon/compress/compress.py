"""`compress_model`: apply steps to a copy of a model, in the stated order. Reads no run and writes no file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tauon.artifacts.tensor_file import lay_out
from tauon.compress.base import PHASES, Calibration, CompressStep, Progress, Subject, no_progress
from tauon.config import dump
from tauon.errors import DataError
from tauon.models import ModelConfig
from tauon.tasks import Task

__all__ = ["Compressed", "Heal", "compress_model", "model_bytes", "ordered"]

Heal = Callable[[Subject, CompressStep], None]
"""Trains `subject.model` in place after a step; `subject.masks` have to hold afterwards."""


@dataclass
class Compressed:
    """A smaller model, in evaluation mode, and what was done to it."""

    model: nn.Module
    config: ModelConfig | None
    """Builds the model's structure; layers that differ from it are listed when it is saved. None: it cannot be saved."""
    steps: tuple[dict[str, Any], ...] = ()
    """Each step's settings, in the order in which they were applied."""
    facts: tuple[dict[str, Any], ...] = ()
    """What each step did."""
    masks: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights in a safetensors file."""
        return model_bytes(self.model)

    def to_json(self) -> dict[str, Any]:
        return {"steps": list(self.steps), "facts": list(self.facts), "size_bytes": self.size_bytes}


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights in a safetensors file. Tied weights count once."""
    layout = lay_out({k: v.detach() for k, v in model.state_dict(keep_vars=True).items()}, "model")
    return len(layout.header) + layout.size


def ordered(steps: Sequence[CompressStep]) -> list[CompressStep]:
    """Return the steps in the order of `PHASES`; those of one phase stay in their order."""
    return sorted(steps, key=lambda step: PHASES.index(step.phase))


def compress_model(
    model: nn.Module, task: Task, calibration: Calibration | None, steps: Sequence[CompressStep], *, config: ModelConfig | None = None,
    heal: Heal | None = None, seed: int = 0, progress: Progress = no_progress,
) -> Compressed:  # fmt: skip
    """Apply steps to a copy of `model`, which stays as it was.

    Args:
        model: any module that the task can call.
        task: how the model is called.
        calibration: needed by steps that observe activations.
        steps: any order; they are applied in that of `PHASES`.
        config: of the model, resolved: needed to save the result, and by steps that remove parts.
        heal: trains the copy after each step but quantisation.
        seed: of every random draw.
        progress: called with (what, done, total).

    Raises:
        DataError: weights are not finite, calibration data is missing or of one class, a step leaves nothing or cannot treat any layer.

    >>> from tauon.models import MLPConfig, materialize
    >>> from tauon.tasks import Classification
    >>> from tauon.types import DataSpec
    >>> from tauon.compress import Int8WeightOnly
    >>> config = MLPConfig(hidden=(64,)).resolve(DataSpec(input_shape=(32,), outputs=4))
    >>> small = compress_model(materialize(config, seed=0), Classification(), None, [Int8WeightOnly()], config=config)
    >>> type(small.model.layers[0]).__name__
    'Int8Linear'
    """
    _refuse_bad_weights(model)
    if calibration is not None:
        calibration.check_classes(task)
    for step in steps:
        if step.needs_calibration and calibration is None:
            raise DataError(f"{step.kind_} observes activations: give calibration data")
    subject = Subject(_copy(model), task, calibration, config, seed, progress)
    facts = []
    for i, step in enumerate(ordered(steps)):
        progress(step.kind_, i, len(steps))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            facts.append({"kind": step.kind_} | step.apply(subject))
        if heal is not None and step.heals:
            heal(subject, step)
            subject.model.eval()
            _apply_masks(subject)
    progress("compress", len(steps), len(steps))
    return Compressed(subject.model, subject.config, tuple(dump(s) for s in ordered(steps)), tuple(facts), subject.masks)


def _copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients."""
    copied = copy.deepcopy(model).eval()
    for p in copied.parameters():
        p.grad = None
    return copied


def _refuse_bad_weights(model: nn.Module) -> None:
    bad = [name for name, p in model.state_dict().items() if p.is_floating_point() and not bool(torch.isfinite(p).all())]
    if bad:
        raise DataError(f"the model has NaN or infinite weights ({', '.join(bad[:3])}): compress an earlier checkpoint")


@torch.no_grad()
def _apply_masks(subject: Subject) -> None:
    parameters = dict(subject.model.named_parameters())
    for name, mask in subject.masks.items():
        if name in parameters:
            parameters[name].mul_(mask)
