"""Which layers suffer most from quantisation: each is quantised alone, and the error of the model's output on calibration data is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauon.compress.base import Calibration, LayerStep, Progress, no_progress
from tauon.compress.compress import compress_model
from tauon.compress.measure import call_of
from tauon.compress.steps import Int8
from tauon.tasks import Task

__all__ = ["layer_sensitivity"]


def layer_sensitivity(
    model: nn.Module, task: Task, calibration: Calibration, *, names: Sequence[str] | None = None, progress: Progress = no_progress
) -> dict[str, float]:
    """Return the relative error of the outputs, ||f_q - f|| / ||f||, with each layer alone in int8 (static); largest first.

    `names`: the layers; default: all linear layers and convolutions.
    """
    if names is None:
        names = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    batch = calibration.batches[0]
    reference = _outputs(task, model, batch)
    errors = {}
    for i, name in enumerate(names):
        progress("sensitivity", i, len(names))
        step: LayerStep = Int8(only=(_literal(name),), activations="static", embeddings=False)
        small = compress_model(model, task, calibration, [step])
        errors[name] = float((_outputs(task, small.model, batch) - reference).norm() / reference.norm().clamp_min(1e-30))
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _literal(name: str) -> str:
    """The pattern that matches this name only."""
    return name.replace("[", "[[]")


def _outputs(task: Task, model: nn.Module, batch: Any) -> Tensor:
    training = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            out: Tensor = call_of(task, model, batch)()
    finally:
        for m, was in training:
            m.training = was
    return out.float()
