"""What each layer computes for the chosen examples, and units that are dead or saturated over a larger sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tauon.errors import TauonError
from tauon.explain.activations import activation_maps
from tauon.explain.base import Cases, Work
from tauon.explain.subject import Sample, Subject
from tauon.types import Batch

__all__ = ["explain_activations"]

_MAPS = 12
"""Layers whose maps are kept for drawing, evenly over the depth."""


def explain_activations(
    subject: Subject, batch: Batch, sample: Sample, arrays: dict[str, NDArray[Any]], work: Work, *, shown: int
) -> dict[str, Any]:  # fmt: skip
    """Return facts about every layer; the maps of some of them go into `arrays`.

    Args:
        subject: the model and its data.
        batch: the chosen examples; the first `shown` of them have maps.
        sample: held-out examples over which a unit must be silent to be called dead.
        arrays: where maps go.
        work: how to compute.
        shown: number of chosen examples.
    """

    def run() -> None:
        _outputs(subject.cases(batch.rows(0, max(1, min(shown, len(batch)))).to(subject.device)), work)
        for part, others in subject.batches(subject.heldout, sample.rows, work.at_once):
            subject.report("activations", part.stop, len(sample))
            _outputs(subject.cases(others), work)

    try:
        found = activation_maps(subject.model, run, examples=shown)
    except TauonError as err:
        return {"problem": str(err)}
    record = found.to_json()
    drawn = [layer for layer in found.layers if layer.map is not None]
    kept = drawn if len(drawn) <= _MAPS else [drawn[int(j)] for j in np.linspace(0, len(drawn) - 1, _MAPS).round()]
    record["maps"] = []
    for n, layer in enumerate(kept):
        assert layer.map is not None
        arrays[f"activation.{n}"] = layer.map.float().cpu().numpy()
        record["maps"].append({"layer": layer.name, "array": f"activation.{n}"})
    return record | {"examples": len(sample)}


def _outputs(cases: Cases, work: Work) -> None:
    with torch.no_grad():
        for part in work.chunks(len(cases)):
            cases.answers(cases.inputs[part], torch.arange(part.start, part.stop, device=cases.inputs.device))
