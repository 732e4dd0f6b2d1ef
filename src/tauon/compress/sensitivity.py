"""Which layers suffer most from quantisation: each is quantised alone, and the error of the model's output on calibration data is measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauon.compress.base import Calibration, Progress, Subject, no_progress
from tauon.compress.measure import call_of
from tauon.compress.quantized.layers import Int8Conv2d, Int8Linear
from tauon.compress.rebuild import set_module
from tauon.compress.statistics import input_ranges
from tauon.tasks import Task

__all__ = ["layer_sensitivity"]

ROWS = 8
"""Examples whose outputs are compared."""


def layer_sensitivity(
    model: nn.Module, task: Task, calibration: Calibration, *, names: Sequence[str] | None = None, progress: Progress = no_progress
) -> dict[str, float]:
    """Return the relative error of the outputs, ||f_q - f|| / ||f||, with each layer alone in int8 (static); largest first.

    `names`: the layers; default: all linear layers and convolutions that run (a language model's head is read, it does not run).
    """
    own = copy.deepcopy(model).eval()
    if names is None:
        names = [n for n, m in own.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    ranges = input_ranges(Subject(own, task, calibration, None), names)
    batch = calibration.batches[0].rows(0, ROWS)
    reference = _outputs(task, own, batch)
    errors = {}
    for i, name in enumerate(ranges):
        progress("sensitivity", i, len(ranges))
        layer: Any = own.get_submodule(name)
        kind: Any = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
        set_module(own, name, kind.quantize(layer, "static", input_scale=ranges[name] / 127))
        errors[name] = float((_outputs(task, own, batch) - reference).norm() / reference.norm().clamp_min(1e-30))
        set_module(own, name, layer)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _outputs(task: Task, model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = call_of(task, model, batch)()
    return out.float()
