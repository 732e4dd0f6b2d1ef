"""Two models of the same data side by side: what changed from one to the other (fine-tuning, private training, compression)?

Do they give the same answers; where they do, for the same reasons; which classes got better or worse; which examples changed most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.base import Attribution, Work, method_named, untouched
from tauon.explain.checks import rank_correlation
from tauon.explain.methods import auto_methods
from tauon.explain.overview import Explanation
from tauon.explain.parts.shown import answer_text, show_example, target_text
from tauon.explain.subject import Sample, Subject
from tauon.metrics.intervals import wilson

__all__ = ["compare"]

FORMAT = "tauon-comparison-1"


def compare(
    before: Subject, after: Subject, *, sample: int = 512, explained: int = 24, shown: int = 4, maps: Sequence[str] = (), seed: int = 0
) -> Explanation:
    """Compare two models on the held-out examples of `after`.

    Args:
        before: the earlier model.
        after: the later one; its data is used for both.
        sample: held-out examples whose answers are compared.
        explained: of these, examples whose attributions are compared.
        shown: of these, examples to draw, those whose reasons changed most.
        maps: attribution methods; empty: those that suit the model.
        seed: of everything that is drawn.

    Raises:
        DataError: the models read or give other things.
    """
    if before.spec.input_shape != after.spec.input_shape or before.spec.vocab != after.spec.vocab or before.labels != after.labels:
        raise DataError(
            f"the two models cannot be compared: inputs {before.spec.input_shape or before.spec.vocab} and {after.spec.input_shape or after.spec.vocab}, "
            f"outputs {', '.join(before.labels[:5])} and {', '.join(after.labels[:5])}. Compare models of the same data."
        )
    if _coding(before) != _coding(after):
        raise DataError(
            "the two models cannot be compared: they were trained on the same kind of inputs in another coding (data.normalize, data.table or "
            "data.tokenizer differ), so one of them cannot read the other's examples. Compare models whose data sections prepare inputs alike."
        )
    work = Work(seed=seed)
    rows = after.draw(after.heldout, sample)
    shared = replace(after, model=before.model, task=before.task)
    with untouched(before.model), untouched(after.model):
        answers = [s.answers_to(rows, work=work, what=f"answers {name}") for s, name in ((shared, "before"), (after, "after"))]
        record: dict[str, Any] = {"format": FORMAT, "examples": len(rows), "part": after.part, "family": after.task.family}
        record |= _answers(after, answers[0], answers[1])
        explanation = Explanation(record)
        _reasons(shared, after, rows[:explained], [a.outputs[:explained] for a in answers], maps, work, shown, explanation)
    record["opening"] = _opening(record)
    return explanation


def _coding(subject: Subject) -> tuple[Any, ...]:
    """Return how inputs are coded, without the figures that are fitted to the training part."""
    kept = subject.preprocess
    columns = kept.get("columns") or ()
    if isinstance(columns, dict):
        columns = columns.get("columns") or ()
    named = [[c.get(k) for k in ("name", "kind", "encoding", "categories", "indicator")] if isinstance(c, dict) else c for c in columns]
    words = None if subject.tokenizer is None else [subject.tokenizer.decode([t]) for t in range(subject.spec.vocab or 0)]
    return kept.get("kind"), (kept.get("normalize") or {}).get("kind"), named, words


def _answers(subject: Subject, before: Sample, after: Sample) -> dict[str, Any]:
    if not subject.classes:
        change = np.abs(before.outputs - after.outputs).mean(0)
        spread = after.outputs.std(0)
        return {
            "change": change.tolist(), "change_in_spreads": (change / np.where(spread > 0, spread, 1)).tolist(),
            "loss": [float(before.losses.mean()), float(after.losses.mean())],
        }  # fmt: skip
    same = before.answers == after.answers
    right = [a.answers == a.targets for a in (before, after)]
    classes = []
    for c in np.unique(after.targets)[:50].tolist():
        mine = after.targets == c
        pair = [_interval(r[mine]) for r in right]
        classes.append(
            {"label": subject.labels[c], "n": int(mine.sum()), "accuracy": [float(r[mine].mean()) for r in right], "intervals": pair}
        )
    return {
        "agreement": float(same.mean()), "agreement_interval": _interval(same), "accuracy": [float(r.mean()) for r in right],
        "gained": int((right[1] & ~right[0]).sum()), "lost": int((right[0] & ~right[1]).sum()), "p": _mcnemar(right[0], right[1]),
        "classes": classes,
    }  # fmt: skip


def _interval(hits: NDArray[np.bool_]) -> list[float]:
    return list(wilson(float(hits.sum()), len(hits), 0.95))


def _mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p-value that both are right equally often (McNemar 1947)."""
    import math

    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def _reasons(
    before: Subject, after: Subject, rows: NDArray[np.int64], outputs: list[NDArray[Any]], maps: Sequence[str], work: Work, shown: int,
    explanation: Explanation,
) -> None:  # fmt: skip
    """Compare attributions of the same output of the same examples."""
    batch = after.heldout.batch(rows).to(after.device)
    theirs = after.cases(batch)
    mine = before.cases(batch, theirs.targets)
    names = list(maps) or list(auto_methods(theirs))
    methods, correlations = [], []
    for name in names:
        method = method_named(name, "explain.maps")
        if method.why_not(theirs) or method.why_not(mine):
            continue
        pair: list[Attribution] = [method.run(cases, work) for cases in (mine, theirs)]
        rho = rank_correlation(pair[0].values, pair[1].values).cpu().numpy()
        methods.append(
            {"name": name, "title": method.title, "signed": pair[1].signed, "correlation": float(rho.mean()), "lowest": float(rho.min())}
        )
        correlations.append(rho)
        for i in range(len(rows)):
            for attribution, which in zip(pair, ("before", "after"), strict=True):
                explanation.arrays[f"{i}.{name}.{which}"] = attribution.values[i].float().cpu().numpy().reshape(theirs.grid)
    explanation.record["methods"] = methods
    order = np.argsort(np.mean(correlations, 0), kind="stable")[:shown].tolist() if correlations else []
    cases = []
    for i in order:
        facts, array = show_example(after, theirs, batch, i)
        target = int(theirs.targets[i])
        if array is not None:
            explanation.arrays[f"{i}.shown"] = array
        cases.append(
            {
                "row": int(rows[i]), "from": f"{after.part} {int(rows[i]):,}", "shown": facts, "place": i,
                "truth": target_text(after, after.truth(batch)[i], target),
                "answers": [_said(after, out[i], target) for out in outputs], "correlation": float(np.mean([c[i] for c in correlations])),
            }
        )  # fmt: skip
    kept = {f"{c['place']}." for c in cases}
    explanation.arrays = {k: v for k, v in explanation.arrays.items() if any(k.startswith(p) for p in kept)}
    explanation.record["cases"] = cases


def _said(subject: Subject, outputs: NDArray[Any], target: int) -> Any:
    said = answer_text(subject, outputs, target)
    words = {key: said[key] for key in ("answer", "probability") if key in said}
    return words if isinstance(said["answer"], str) else said["answer"]


def _opening(record: dict[str, Any]) -> list[str]:
    sentences = []
    if "agreement" in record:
        low, high = record["agreement_interval"]
        a, b = record["accuracy"]
        sentences.append(
            f"Both models give the same answer to {record['agreement']:.1%} of {record['examples']:,} examples ({low:.1%} to {high:.1%})."
        )
        doubt = "which chance alone would explain" if record["p"] > 0.05 else f"more than chance explains (p = {record['p']:.2g})"
        sentences.append(
            f"Accuracy went from {a:.1%} to {b:.1%}: {record['gained']} answers became right and {record['lost']} wrong, {doubt}."
        )
    else:
        a, b = record["loss"]
        sentences.append(f"The mean loss went from {a:.4g} to {b:.4g} on {record['examples']:,} examples.")
        sentences.append(f"A prediction changed by {np.mean(record['change_in_spreads']):.2f} of the predictions' own spread on average.")
    best = record.get("methods") or []
    if best:
        rho = max(m["correlation"] for m in best)
        word = "nearly the same" if rho > 0.9 else "similar" if rho > 0.6 else "different"
        sentences.append(f"Their reasons are {word}: the rank correlation of what counts is {rho:.2f} on average.")
    return sentences
