"""Everything that explains one model: the parts in order, into one record and the arrays beside it.

subject -> answers -> chosen examples -> maps and their checks -> tree, features, slices -> training examples -> opening sentences
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tauon.errors import DataError, Problem, RecipeError
from tauon.explain.base import Cases, Work, method_named, untouched
from tauon.explain.config import ExplainConfig, InfluenceConfig
from tauon.explain.features.columns import Feature
from tauon.explain.memory import plan_memory
from tauon.explain.parts.activations import explain_activations
from tauon.explain.parts.choose import choose_examples
from tauon.explain.parts.concepts import explain_concepts
from tauon.explain.parts.examples import add_influence, find_mislabelled
from tauon.explain.parts.language import add_language, contrast
from tauon.explain.parts.maps import Maps, explain_cases
from tauon.explain.parts.opening import opening
from tauon.explain.parts.prototypes import explain_prototypes
from tauon.explain.parts.readable import readable_rows, table_rows
from tauon.explain.parts.shown import answer_text, show_example, target_text
from tauon.explain.parts.whole import Whole, explain_rows, explain_whole, output_of
from tauon.explain.subject import Sample, Subject, refuse_not_finite
from tauon.explain.trees import Surrogate
from tauon.plan.machine import available_memory
from tauon.types import Batch

__all__ = ["FORMAT", "Explanation", "explain_batch", "explain_model", "explain_new_examples"]

FORMAT = "tauon-explanation-1"
_UNKNOWN = 4 << 30
"""Bytes that are taken to be free where the system does not say."""


@dataclass
class Explanation:
    """A record of JSON values, and arrays that it names."""

    record: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def explain_model(subject: Subject, config: ExplainConfig) -> Explanation:
    """Explain a model by its held-out examples.

    Args:
        subject: the model and its data.
        config: what to explain.

    Returns:
        The record (`explanation.json`) and the arrays that it names.

    Raises:
        DataError: there is nothing to explain, or a method cannot explain these examples.
        RecipeError: a row, a class or a layer does not exist.
    """
    work = Work(seed=subject.seed)
    _targets(subject, config, 0)  # first: what is refused is refused at once
    with untouched(subject.model):
        patched = contrast(subject, config.language.contrast, work) if config.language.contrast else None
        sample = subject.sample(config.sample, work=work)
        places = _chosen(subject, sample, config, work)
        rows = np.array([row for row, _ in places], np.int64)
        more = [row for row in subject.draw(subject.heldout, config.tested).tolist() if row not in set(rows.tolist())]
        tested = np.array(more[: max(0, config.tested - len(rows)) if len(rows) else 0], np.int64)
        batch = subject.heldout.batch(np.concatenate([rows, tested]))
        features = _features_of(subject, config)
        explanation, maps = explain_batch(subject, config, batch, features, shown=len(rows))
        record = explanation.record
        whole = _whole(subject, config, record, sample, features, work)
        if whole is not None and record["kind"] == "table" and subject.table is not None and len(rows):
            explain_rows(subject, config, whole, subject.table.read(subject.heldout.batch(rows).inputs.numpy()), record["cases"])
        if config.activations and len(rows):
            record["activations"] = explain_activations(subject, batch, sample, explanation.arrays, work, shown=len(rows))
        if config.prototypes:
            record["prototypes"] = explain_prototypes(subject, sample, explanation.arrays, features)
        _training_examples(subject, config, explanation, batch, features)
        for case, (row, why) in zip(record["cases"], places, strict=True):
            case |= {"row": row, "from": f"{subject.part} {row:,}", "why": why}
        _add_truth(subject, record["cases"], batch)
        record["outputs"] = _summary(subject, sample)
        record |= {} if patched is None else {"contrast": patched}
        record["opening"] = opening(subject, sample, maps, record)
    return explanation


def explain_new_examples(subject: Subject, config: ExplainConfig, batch: Batch, tree: Surrogate | None = None) -> Explanation:
    """Explain examples that are not in the subject's data, whose true answers are unknown.

    Args:
        subject: the model and its data.
        config: what to explain.
        batch: the examples; their targets are not read.
        tree: the surrogate tree of the model, for their paths.
    """
    with untouched(subject.model):
        features = _features_of(subject, config)
        explanation, _ = explain_batch(subject, config, batch, features)
        cases = explanation.record["cases"]
        if subject.table is not None and explanation.record["kind"] == "table" and cases:
            rows = table_rows(subject, features)
            explain_rows(subject, config, Whole({}, tree, rows), subject.table.read(batch.inputs.cpu().numpy()), cases)
        known = subject.records
        if known is not None and not known.refusal and (known.index / "index.json").is_file():
            _training_examples(subject, config, explanation, batch, features, suspects=False)
    for case in cases:
        case.pop("target")
    return explanation


def explain_batch(
    subject: Subject, config: ExplainConfig, batch: Batch, features: tuple[Feature, ...] = (), *, shown: int | None = None
) -> tuple[Explanation, Maps | None]:
    """Explain examples one by one: new ones, or held-out ones. `shown`: the others only test the methods."""
    labels = [] if subject.input_kind == "tokens" else list(subject.labels)
    base: dict[str, Any] = {
        "format": FORMAT, "family": subject.task.family, "labels": labels, "part": subject.part, "seed": subject.seed,
    }  # fmt: skip
    if not len(batch):
        return Explanation(base | {"kind": subject.kind, "cases": [], "methods": []}), None
    batch = batch.to(subject.device)
    cases = subject.cases(batch, _targets(subject, config, len(batch)))
    with torch.no_grad():
        found_MC = cases.answers(cases.inputs, torch.arange(len(batch), device=cases.inputs.device))
        outputs = cases.probabilities(found_MC).cpu().numpy()
    refuse_not_finite(outputs)
    work = Work(seed=subject.seed)
    maps = explain_cases(
        cases, lambda model: subject.cases(batch, cases.targets, model), config.maps, work, layer=config.layer, checks=config.tested > 0,
        tested=partial(_planned, subject, config, cases),
    )  # fmt: skip
    explanation = Explanation(base | {"kind": cases.kind, "grid": list(cases.grid), "methods": [m.to_json() for m in maps.methods]})
    explanation.record["left_out"] = maps.left_out
    explanation.record["cases"] = found = [
        _case(subject, maps, batch, i, outputs[i], features, explanation.arrays) for i in range(len(batch) if shown is None else shown)
    ]
    if subject.input_kind == "tokens":
        add_language(subject, batch, found, explanation.arrays, answer=config.language.answer if shown is None else 0, work=work)
    return explanation, maps


def _training_examples(
    subject: Subject, config: ExplainConfig, explanation: Explanation, batch: Batch, features: tuple[Feature, ...], *, suspects: bool = True
) -> None:  # fmt: skip
    """Add the training examples behind each answer, and those that look mislabelled."""
    wanted = InfluenceConfig() if config.influence is True else config.influence
    if subject.records is None or not wanted or not wanted.examples:
        return
    record, arrays = explanation.record, explanation.arrays
    if subject.records.refusal:
        record["influence"] = {"problem": subject.records.refusal}
        return
    known = subject.records
    if record["cases"]:
        record["influence"] = add_influence(subject, wanted, known.index, known.fingerprint, batch, record["cases"], arrays, features)
    if not suspects:
        return
    early = list(known.early())
    record["mislabelled"] = find_mislabelled(subject, [m for _, m in early], [s for s, _ in early], arrays, most=wanted.most)


def _whole(
    subject: Subject, config: ExplainConfig, record: dict[str, Any], sample: Sample, features: tuple[Feature, ...], work: Work
) -> Whole | None:  # fmt: skip
    of_tables = [config.features, config.counterfactuals] if subject.table is not None else []
    if not any([config.tree, config.slices, config.concepts, *of_tables]):
        return None
    try:
        readable = readable_rows(subject, record["kind"], sample, features, work)
    except DataError as err:
        record["readable"] = {"problem": str(err)}
        return None
    if readable is None:
        return None
    whole = explain_whole(subject, config, readable, sample)
    record |= whole.record
    if config.concepts is not None:
        target = output_of(subject, sample, config, subject.labels.index(config.target) if config.target else 0)
        record["concepts"] = explain_concepts(subject, config.concepts, whole, sample, target, work)
    return whole


def _planned(subject: Subject, config: ExplainConfig, cases: Cases, name: str) -> Work:
    """Return how a method computes within the share of free memory that the recipe allows, and say so."""
    options: dict[str, Any] = {"layer": config.layer} if config.layer and method_named(name).needs == "layer" else {}
    plan = plan_memory(
        cases, method_named(name), int(config.memory * (available_memory(subject.device) or _UNKNOWN)), seed=subject.seed, **options
    )
    subject.note(str(plan))

    def progress(done: int, total: int) -> None:
        subject.report(method_named(name).title, done, total)

    return Work(at_once=plan.at_once, seed=subject.seed, progress=progress)


def _case(
    subject: Subject,
    maps: Maps,
    batch: Batch,
    i: int,
    outputs: NDArray[Any],
    features: tuple[Feature, ...],
    arrays: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    cases = maps.cases
    shown, array = show_example(subject, cases, batch, i, features)
    if array is not None:
        arrays[f"{i}.shown"] = array
    found = []
    for report in (m for m in maps.methods if m.drawn):
        attribution = report.attribution
        arrays[f"{i}.{report.name}"] = attribution.values[i].float().cpu().numpy().reshape(cases.grid)
        failed = attribution.failed is not None and bool(attribution.failed[i])
        facts = {name: float(values[i]) for name, values in attribution.facts.items()}
        checks = {} if report.faithful is None else {
            "deletion": float(report.faithful.deletion[i]), "random_deletion": float(report.faithful.random_deletion[i]),
            "insertion": float(report.faithful.insertion[i]), "random_insertion": float(report.faithful.random_insertion[i]),
        }  # fmt: skip
        found.append({"method": report.name, "array": f"{i}.{report.name}", "failed": failed or report.failed} | facts | checks)
    target = int(cases.targets[i])
    return answer_text(subject, outputs, target) | {"target": target, "shown": shown, "maps": found}


def _add_truth(subject: Subject, cases: list[dict[str, Any]], batch: Batch) -> None:
    truths = subject.truth(batch)
    for i, case in enumerate(cases):
        truth = target_text(subject, truths[i], int(case.pop("target")))
        if truth is not None:
            case["truth"] = truth


def _chosen(subject: Subject, sample: Sample, config: ExplainConfig, work: Work) -> list[tuple[int, str]]:
    """Return (row of the held-out part, why) of the examples that are explained one by one."""
    n = len(subject.heldout)
    missing = [row for row in config.rows if row >= n]
    if missing:
        raise RecipeError([Problem("explain.rows", f"row {missing[0]:,} does not exist: the {subject.part} part has rows 0 to {n - 1:,}.")])
    if config.rows:
        return [(row, "asked for") for row in config.rows]
    chosen = choose_examples(sample, config.examples, classes=subject.classes, seed=subject.seed)
    return [(int(sample.rows[place]), why) for place, why in chosen]


def _targets(subject: Subject, config: ExplainConfig, n: int) -> torch.Tensor | None:
    if not config.target:
        return None
    labels = subject.labels
    if config.target not in labels:
        import difflib

        close = difflib.get_close_matches(config.target, labels, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise RecipeError([Problem("explain.target", f"{config.target!r} does not exist{hint} Available: {', '.join(labels[:30])}.")])
    return torch.full((n,), labels.index(config.target), dtype=torch.int64)


def _features_of(subject: Subject, config: ExplainConfig) -> tuple[Feature, ...]:
    if subject.table is None:
        for name in ("counterfactuals", "features"):
            if name in config.model_fields_set:
                raise RecipeError(
                    [Problem(f"explain.{name}", "has no effect: it is for tables, and this run reads other data. Remove it.")]
                )
        return ()
    fixed = config.keep_columns
    unknown = [name for name in fixed if name not in subject.table.names]
    if unknown:
        names = ", ".join(subject.table.names[:40])
        raise RecipeError([Problem("explain.counterfactuals.keep", f"{unknown[0]!r} is not a column. Available: {names}.")])
    rows = subject.draw(subject.train, 10_000)
    return subject.table.features(subject.table.read(subject.train.batch(rows).inputs.numpy()), fixed)


def _summary(subject: Subject, sample: Sample) -> Mapping[str, Any]:
    """Return what the model answers, and how often it is right."""
    if not subject.classes:
        return {"examples": len(sample)}
    counts = np.bincount(sample.answers, minlength=len(subject.labels)).tolist()
    return {
        "examples": len(sample), "answers": dict(zip(subject.labels, counts, strict=True)),
        "accuracy": float((sample.answers == sample.targets).mean()),
    }  # fmt: skip
