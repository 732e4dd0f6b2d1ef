"""The model as a whole: a surrogate tree, the importance and effect of features, slices on which it fails; and for single rows of a table their
path in the tree and what would change the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.config import ExplainConfig, TreeConfig
from tauon.explain.counterfactuals import CounterfactualSettings, find_counterfactuals
from tauon.explain.features import ShuffleSettings, interactions, partial_dependence, permutation_importance
from tauon.explain.features.columns import Matrix
from tauon.explain.parts.readable import ReadableRows
from tauon.explain.parts.shown import in_units
from tauon.explain.slices import SliceSettings, find_slices
from tauon.explain.subject import Sample, Subject
from tauon.explain.trees import Surrogate, SurrogateSettings, fit_surrogate, fit_surrogate_of_answers, tree_shap

__all__ = ["Whole", "explain_rows", "explain_whole", "output_of"]

_EFFECTS = 4
"""Columns whose effect is drawn."""
_PAIRS = 8
"""Columns among which interactions are looked for: the most important ones."""


@dataclass
class Whole:
    """What holds for the model as a whole, and what single rows are compared with."""

    record: dict[str, Any]
    tree: Surrogate | None
    rows: ReadableRows


def explain_whole(subject: Subject, config: ExplainConfig, rows: ReadableRows, sample: Sample) -> Whole:
    """Explain the model by readable features. What cannot be done is named in the record."""
    record: dict[str, Any] = {"readable": {"features": len(rows.features), "note": rows.note}}
    tree = None
    target = subject.labels.index(config.target) if config.target else 0
    if config.tree:
        subject.report("surrogate tree", 0, 1)
        try:
            tree = _tree(subject, config, rows, sample, target)
            record["tree"] = tree.to_json() | _shap(tree, rows)
        except DataError as err:
            record["tree"] = {"problem": str(err)}
        subject.report("surrogate tree", 1, 1)
    if config.features and rows.predict is not None:
        record["features"] = _features(subject, config, rows, sample, target)
    if config.slices and len(sample) < 4 * SliceSettings.min_rows:
        few = f"{len(sample)} examples are too few to search for groups; {4 * SliceSettings.min_rows} are needed"
        record["slices"] = {"problem": f"{few}. Hold out more, or raise explain.sample."}
    elif config.slices:
        try:
            errors = (sample.answers != sample.targets).astype(np.float64) if subject.classes else sample.losses.astype(np.float64)
            record["slices"] = find_slices(rows.heldout, errors, rows.features, settings=SliceSettings(seed=subject.seed)).to_json()
            if subject.input_kind == "series":
                record["slices"]["note"] += (
                    " Windows of a series overlap, so their errors are alike and p is too small: take it as an order."
                )
        except DataError as err:
            record["slices"] = {"problem": str(err)}
    return Whole(record, tree, rows)


def _tree(subject: Subject, config: ExplainConfig, rows: ReadableRows, sample: Sample, target: int) -> Surrogate:
    depth = config.tree.depth if isinstance(config.tree, TreeConfig) else "auto"
    kind: Any = "classes" if subject.classes else "values"
    settings = SurrogateSettings(kind=kind, depth=None if depth == "auto" else depth, seed=subject.seed)
    outputs = subject.labels if subject.classes else subject.labels[target : target + 1]
    truth = sample.targets.astype(np.float64) if subject.classes else None
    if rows.predict is not None:
        predict = rows.predict if subject.classes else partial(_one_output, subject, rows.predict, target)
        return fit_surrogate(predict, rows.train, rows.features, rows.heldout, outputs=outputs, truth_M=truth, settings=settings)
    answers, held = rows.train_answers, sample.outputs.astype(np.float64)
    if not subject.classes:
        answers, held = (_values_in_units(subject, x[:, target], target) for x in (answers, held))
    return fit_surrogate_of_answers(
        rows.train, answers, rows.features, rows.heldout, held, outputs=outputs, truth_M=truth, settings=settings
    )


def _values_in_units(subject: Subject, values_N: Matrix, target: int) -> Matrix:
    """Return one output of the model in the units of the data, N1."""
    zero, one = (in_units(subject, v, target) for v in (0.0, 1.0))
    return (values_N * (one - zero) + zero)[:, None]


def _one_output(subject: Subject, predict: Any, target: int, rows: Matrix) -> Matrix:
    return _values_in_units(subject, predict(rows)[:, target], target)


def _shap(tree: Surrogate, rows: ReadableRows) -> dict[str, Any]:
    """Return the mean |SHAP value| of each feature in the tree, largest first, or why there is none."""
    from tauon.errors import MissingExtra

    if tree.note:
        return {"shap": []}
    try:
        found = tree_shap(tree.tree, rows.heldout)
    except MissingExtra as err:
        return {"shap": [], "shap_problem": str(err)}
    sums: dict[str, float] = {}
    for output in range(1 if len(tree.outputs) <= 2 else len(tree.outputs)):
        for one in found.importance(output):
            sums[str(one["name"])] = sums.get(str(one["name"]), 0.0) + float(one["value"])
    return {"shap": [{"name": name, "value": value} for name, value in sorted(sums.items(), key=lambda item: -item[1])[:12] if value > 0]}


def _right_probability(targets: NDArray[Any], outputs: Matrix) -> float:
    return float(outputs[np.arange(len(targets)), targets.astype(np.int64)].mean())


def _mean_error(targets: NDArray[Any], outputs: Matrix) -> float:
    return float(np.abs(outputs - targets.reshape(len(outputs), -1)).mean())


def _features(subject: Subject, config: ExplainConfig, rows: ReadableRows, sample: Sample, target: int) -> dict[str, Any]:
    assert rows.predict is not None
    metric = _right_probability if subject.classes else _mean_error
    name = "the mean absolute error, in standard deviations of the target"
    if subject.reading.link != "identity":
        name = "the probability of the right answer" if subject.classes else "the mean error of the labels' probabilities"
    settings = ShuffleSettings(higher_is_better=subject.classes, seed=subject.seed)

    def progress(done: int, total: int) -> None:
        subject.report("importance of columns", done, total)

    found = permutation_importance(rows.predict, rows.heldout, sample.targets, metric, rows.features, settings=settings, progress=progress)
    top = [i.name for i in found if i.value > 0]
    output = output_of(subject, sample, config, target)
    effects = [partial_dependence(rows.predict, rows.heldout, rows.features, j, output=output).to_json() for j in top[:_EFFECTS]]
    pairs = interactions(rows.predict, rows.heldout, rows.features, columns=top[:_PAIRS], output=output) if len(top) > 1 else []
    return {
        "metric": name, "importance": [i.to_json() for i in found], "output": subject.labels[output], "effects": effects,
        "interactions": [p.to_json() for p in pairs[:6]],
    }  # fmt: skip


def output_of(subject: Subject, sample: Sample, config: ExplainConfig, target: int) -> int:
    """Return the output whose effects are drawn: the one asked for, or of two classes the second, else the most frequent answer."""
    if config.target or not subject.classes:
        return target
    return 1 if sample.outputs.shape[1] == 2 else int(np.bincount(sample.answers).argmax())


def explain_rows(subject: Subject, config: ExplainConfig, whole: Whole, readable: Matrix, cases: list[dict[str, Any]]) -> None:
    """Add the path in the tree, and what would change the answer, to each case of a table, in place."""
    predict = whole.rows.predict
    for row, case in zip(readable, cases, strict=True):
        outputs = None if predict is None else predict(row[None])[0]
        if whole.tree is not None and not whole.tree.note:
            case["path"] = whole.tree.path_of(row, outputs).sentence
        if predict is None or not config.counterfactuals or not subject.classes:
            continue
        subject.report("counterfactuals", cases.index(case), len(cases))
        found = find_counterfactuals(
            predict, row, whole.rows.train, whole.rows.features, settings=CounterfactualSettings(most=2, seed=subject.seed)
        )
        case["counterfactuals"] = found.sentences(subject.labels)
