"""Held-out examples that stand for the others as the model sees them (prototypes), and those that none of them stands for (criticisms)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tauon.errors import TauonError
from tauon.explain.features.columns import Feature
from tauon.explain.parts.examples import shown_record
from tauon.explain.prototypes import find_prototypes
from tauon.explain.subject import Sample, Subject

__all__ = ["embeddings", "explain_prototypes"]


def explain_prototypes(
    subject: Subject, sample: Sample, arrays: dict[str, NDArray[Any]], features: tuple[Feature, ...], *, most: int = 5
) -> dict[str, Any]:  # fmt: skip
    """Return prototypes and criticisms of the sample, by what the model's last layer reads. Pictures go into `arrays`."""
    try:
        layer, embedding = embeddings(subject, sample)
        found = find_prototypes(embedding, most, most, seed=subject.seed)
    except TauonError as err:
        return {"problem": str(err)}
    record: dict[str, Any] = {
        "layer": layer,
        "examples": len(sample),
        "mmd": found.mmd[-1] if found.mmd else None,
        "random_mmd": found.random_mmd,
    }
    for kind, places in (("prototypes", found.prototypes), ("criticisms", found.criticisms)):
        record[kind] = [
            shown_record(subject, subject.heldout, int(sample.rows[p]), f"{kind}.{n}", arrays, features) for n, p in enumerate(places)
        ]
    for row, stands_for in zip(record["prototypes"], found.nearest, strict=True):
        row["score"] = stands_for
    return record


def embeddings(subject: Subject, sample: Sample) -> tuple[str, NDArray[np.float64]]:
    """Return (name of the last linear layer that is called, what it reads of each example of the sample, N D)."""
    called: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: called.__setitem__(name, inputs[0].detach()))  # type: ignore[misc]
        for name, module in subject.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    found: list[NDArray[Any]] = []
    name = ""
    try:
        with torch.no_grad():
            for part, batch in subject.batches(subject.heldout, sample.rows, 64):
                subject.report("prototypes", part.stop, len(sample))
                cases = subject.cases(batch)
                called.clear()
                cases.outputs(cases.inputs, torch.arange(len(batch), device=cases.inputs.device))
                name = next(reversed(called), "")
                read = called[name] if name else cases.inputs
                found.append(read.reshape(len(batch), -1).float().cpu().numpy())  # some models read each series as a row of its own
    finally:
        for handle in handles:
            handle.remove()
    return name or "inputs", np.concatenate(found).astype(np.float64)
