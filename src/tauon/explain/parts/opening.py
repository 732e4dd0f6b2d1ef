"""Three sentences at the top of an explanation: what the model answers, what it looks at, how far the explanation may be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.parts.maps import Maps
from tauon.explain.subject import Sample, Subject
from tauon.report.text import figure

__all__ = ["opening", "where_it_looks"]

_THIRDS = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
_NAMES = {"image": "images", "table": "rows", "text": "texts", "audio": "recordings", "series": "windows of the series"}


def opening(subject: Subject, sample: Sample, maps: Maps | None, record: dict[str, Any]) -> list[str]:
    """Return the three sentences."""
    return [_what_it_does(subject, sample, record["kind"]), _what_counts(record, maps), _how_far(record, maps)]


def _what_it_does(subject: Subject, sample: Sample, kind: str) -> str:
    n, things = len(sample), _NAMES.get(kind, "examples")
    if subject.input_kind == "tokens":
        right = float((sample.answers == sample.targets).mean())
        return f"Given the text before it, the model's most likely next token was the right one in {right:.0%} of {n:,} places in the {subject.part} part."
    if subject.classes:
        right, answers = float((sample.answers == sample.targets).mean()), sample.answers
        counts = np.bincount(answers, minlength=len(subject.labels))
        most = int(counts.argmax())
        share = f'; its most frequent answer is "{subject.labels[most]}" ({counts[most] / n:.0%})'
        return f"The model answered {right:.0%} of {n:,} {things} of the {subject.part} part correctly{share}."
    if subject.spec.horizon is not None:
        names = ", ".join(subject.labels[:4]) + (" and others" if len(subject.labels) > 4 else "")
        return f"The model forecasts {subject.spec.horizon} steps of {names}; explained is the mean of a forecast, on {n:,} {things}."
    if subject.task.family == "multi-label":
        right = float(((sample.outputs >= 0.5) == (sample.targets >= 0.5)).all(1).mean())
        return f"The model gave exactly the right labels to {right:.0%} of {n:,} {things} of the {subject.part} part."
    errors = np.abs(sample.outputs[:, 0] - sample.targets.reshape(n, -1)[:, 0])
    scale = subject.spec.target_scale[0] if subject.spec.target_scale else 1.0
    return f"On half of {n:,} {things} of the {subject.part} part the model's answer is within {figure(float(np.median(errors)) * scale, 3)} of the truth."


def _what_counts(record: dict[str, Any], maps: Maps | None) -> str:
    importance = (record.get("features") or {}).get("importance") or []
    if importance:
        top = [row for row in importance if row["value"] > 0][:3]
        if not top:
            return "Shuffling any single column changes its answers little: no column matters alone."
        if "probability" in record["features"]["metric"]:
            cost = f"shuffled, it lowers the probability of the right answer by {100 * top[0]['value']:.2g} points"
        else:
            cost = f"shuffled, it raises {record['features']['metric']} by {figure(top[0]['value'], 2)}"
        first = f"{top[0]['name']} ({cost})"
        others = " and ".join(row["name"] for row in top[1:])
        doubt = "" if top[0]["low"] > 0 else " With these held-out rows this is not beyond chance."
        return f"Its answers rest most on {first}{', then on ' + others if others else ''}.{doubt}"
    looks = where_it_looks(maps)
    words = [w["name"] for w in (record.get("tree") or {}).get("shap") or []][:3] if record["kind"] == "text" else []
    if words:
        looks += f" Of single words, {', '.join(words[:-1])} and {words[-1]} separate its answers most." if len(words) > 1 else ""
    if looks:
        return looks
    return "No single part of the input stands out in its explanations."


def where_it_looks(maps: Maps | None) -> str:
    """Return where the best map's importance lies, over the chosen examples; "" if there is none."""
    if maps is None or not maps.methods:
        return ""
    report = maps.best or maps.methods[0]
    cases = maps.cases
    sizes = report.attribution.values.abs().double().cpu().numpy()
    total = sizes.sum(1, keepdims=True)
    shares = (sizes / np.where(total > 0, total, 1)).mean(0)
    if not shares.sum() > 0:
        return ""
    if cases.kind == "image":
        H, W = cases.grid
        grid = shares.reshape(H, W)
        sums = [[grid[a * H // 3 : (a + 1) * H // 3, b * W // 3 : (b + 1) * W // 3].sum() for b in range(3)] for a in range(3)]
        a, b = np.unravel_index(int(np.argmax(sums)), (3, 3))
        part = _half(sizes)
        return f"It looks most at the {_THIRDS[a][b]} of the image; in a typical image half of what counts is in {part:.0%} of the area."
    if cases.kind == "audio":
        S, M = cases.grid
        bands = shares.reshape(S, M).sum(0)
        low, high = _span(bands)
        part = _half(sizes)
        return f"It listens most to bands {low + 1} to {high + 1} of {M}; in a typical recording half of what counts is in {part:.0%} of the sound."
    if cases.kind == "series":
        T, K = cases.grid
        steps = shares.reshape(T, K).sum(1)
        low, high = _span(steps)
        return f"It looks most at steps {T - high} to {T - low} before the forecast, which carry half of what counts."
    if cases.kind == "text":
        return f"In a typical text half of what counts is in {_half(sizes):.0%} of its tokens."
    return ""


def _half(sizes_NF: NDArray[np.float64]) -> float:
    """Return the share of features that carry half of the importance, averaged over examples."""
    shares = []
    for row in sizes_NF:
        row = row[row > 0]
        if len(row):
            ordered = np.sort(row)[::-1].cumsum()
            shares.append((int(np.searchsorted(ordered, ordered[-1] / 2)) + 1) / len(row))
    return float(np.mean(shares)) if shares else 0.0


def _span(along: NDArray[np.float64]) -> tuple[int, int]:
    """Return the shortest span that holds half of the sum."""
    n, sums = len(along), np.concatenate([[0.0], along.cumsum()])
    for width in range(1, n + 1):
        inside = sums[width:] - sums[:-width]
        if inside.max() >= sums[-1] / 2:
            start = int(inside.argmax())
            return start, start + width - 1
    return 0, n - 1


def _how_far(record: dict[str, Any], maps: Maps | None) -> str:
    parts: Sequence[str] = [p for p in (_of_maps(maps), _of_tree(record)) if p]
    return " ".join(parts) if parts else "None of these explanations was tested, so none of them proves what the model does."


def _of_maps(maps: Maps | None) -> str:
    if maps is None or not maps.methods or all(m.faithful is None for m in maps.methods):
        return ""
    best = maps.best
    if best is None:
        return "No map passed all of its tests, so do not rely on what they mark; the table below says which test failed."
    assert best.faithful is not None
    ratio = best.faithful.deletion_ratio
    failed = [m.title for m in maps.methods if m.failed]
    shown = any(m.drawn for m in maps.methods if m.failed)
    how = "marked as such" if shown else "not drawn"
    more = f" {' and '.join(failed)} failed the tests and {'is' if len(failed) == 1 else 'are'} {how}." if failed else ""
    if ratio > 0.95:
        return (
            f"The maps were tested, and say little: hiding what they mark changes the answer hardly faster than hiding random parts.{more}"
        )
    return (
        f"The maps were tested: while the parts that {best.title} marks are hidden, {1 - ratio:.0%} less of the answer is left than while random "
        f"parts are hidden. Take them as a hint, not as a proof.{more}"
    )


def _of_tree(record: dict[str, Any]) -> str:
    tree = record.get("tree") or {}
    fidelity = tree.get("fidelity") or {}
    if tree.get("note") or fidelity.get("agreement") is None:
        return ""
    return (
        f"A tree of at most {tree['depth']} questions gives the model's answer to {fidelity['agreement']:.0%} of held-out examples (always giving "
        f"its most frequent answer: {fidelity['majority']:.0%})."
    )
