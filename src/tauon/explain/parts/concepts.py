"""Which readable concepts the model's answers rise and fall with, at one layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tauon.errors import DataError, Problem, RecipeError
from tauon.explain.base import Work
from tauon.explain.concepts import ConceptSettings, concepts_from_columns, tcav
from tauon.explain.config import ConceptConfig
from tauon.explain.parts.whole import Whole
from tauon.explain.subject import Sample, Subject

__all__ = ["explain_concepts"]

_EXPLAINED = 64
"""Examples whose output is followed."""


def explain_concepts(subject: Subject, config: ConceptConfig, whole: Whole, sample: Sample, target: int, work: Work) -> dict[str, Any]:
    """Return the effect of each concept on one output. `RecipeError` if the layer does not exist."""
    used = [row["name"] for row in (whole.record.get("tree") or {}).get("shap") or []]
    names = [f.name for f in whole.rows.features]
    chosen = [names.index(n) for n in used if n in names] or list(range(len(names)))
    columns = chosen[: config.most]
    concepts = concepts_from_columns(whole.rows.heldout[:, columns], [whole.rows.features[j] for j in columns])
    concepts = dict(list(concepts.items())[: config.most])
    if not concepts:
        return {"problem": "no readable feature has enough examples with and without it"}
    subject.report("concepts", 0, 1)
    pool = subject.cases(subject.heldout.batch(sample.rows).to(subject.device), torch.full((len(sample),), target, dtype=torch.int64))
    few = subject.heldout.batch(sample.rows[:_EXPLAINED]).to(subject.device)
    cases = subject.cases(few, torch.full((len(few),), target, dtype=torch.int64))
    try:
        found = tcav(
            cases,
            config.layer,
            concepts,
            pool,
            replace(work, at_once=64),
            settings=ConceptSettings(seed=subject.seed, direction="mean-difference"),
        )
    except DataError as err:
        if config.layer in str(err):
            raise RecipeError([Problem("explain.concepts.layer", str(err))]) from None
        return {"problem": str(err)}
    subject.report("concepts", 1, 1)
    return {"layer": config.layer, "output": subject.labels[target], "found": [c.to_json() for c in found]}
