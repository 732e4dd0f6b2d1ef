"""The examples that were explained one by one: what was given, what the model answered, the maps and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.drawing.activations import activations_html
from tauon.explain.drawing.examples import training_example
from tauon.explain.drawing.language import prompt_html
from tauon.explain.drawing.shapes import bars, diverging, heat_image, key_of_colours, picture, scaled, spectrogram, words
from tauon.report.page import missing
from tauon.report.plots import Line, chart
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["case_html", "cases_html", "draw_map"]

Arrays = Mapping[str, NDArray[Any]]
_COLUMNS = 8
"""Columns of a table that are drawn, largest attribution first."""
_SERIES = 3
_LEAST = 0.02
"""Share of what counts below which a series is not drawn."""


def cases_html(record: Mapping[str, Any], arrays: Arrays) -> str:
    """Return all examples, each in a box of its own."""
    cases = [c for c in record.get("cases") or [] if isinstance(c, dict)]
    if not cases:
        return ""
    methods = {str(m.get("name")): m for m in record.get("methods") or [] if isinstance(m, dict)}
    html = "".join(case_html(case, i, methods, record, arrays) for i, case in enumerate(cases))
    signs = {bool(m.get("signed")) for m in methods.values()}
    return f"<h3>Examples, one by one</h3>{key_of_colours(True in signs, False in signs)}{html}"


def case_html(case: Mapping[str, Any], i: int, methods: Mapping[str, Any], record: Mapping[str, Any], arrays: Arrays) -> str:
    """Return one example."""
    shown = case.get("shown") or {}
    body = _given(case, i, shown, record, arrays) + _maps(case, i, shown, methods, record, arrays)
    if case.get("path"):
        body += f"<p><b>In the small tree:</b> {escape(case['path'])}</p>"
    changes = [str(c) for c in case.get("counterfactuals") or []]
    if changes:
        body += f"<p><b>What would change the answer:</b> {escape(' '.join(changes))}</p>"
    outside = [f"<li>{escape(o)}</li>" for o in shown.get("outside") or []]
    if outside:
        body += f'<div class="warn"><b>Outside of what the model was trained on</b><ul class="plain">{"".join(outside)}</ul></div>'
    body += prompt_html(case, arrays) + activations_html(record, i, arrays) + _influence(case, arrays)
    return f'<article class="case"><h4>{_title(case)}</h4>{body}</article>'


def _title(case: Mapping[str, Any]) -> str:
    answer, probability, truth = case.get("answer"), number(case.get("probability")), case.get("truth")
    said = f'"{escape(answer, 120)}"' if isinstance(answer, str) else figure(number(answer))
    sure = f" ({probability:.0%} sure)" if probability is not None else ""
    verdict = ""
    if isinstance(truth, str):
        right = truth == answer
        verdict = (
            f', <span class="{"right" if right else "wrong"}">{"right" if right else f"wrong: it is {escape(repr(truth), 120)}"}</span>'
        )
    elif truth is not None:
        verdict = f", the truth is {figure(number(truth))}"
    why = f" <small>{escape(case['why'], 80)}</small>" if case.get("why") else ""
    explained = case.get("explained")
    about = f" <small>explained: {escape(explained, 80)}</small>" if explained not in (None, answer) else ""
    return f"{escape(case.get('from', 'new example'), 80)}: answered {said}{sure}{verdict}{why}{about}"


def _given(case: Mapping[str, Any], i: int, shown: Mapping[str, Any], record: Mapping[str, Any], arrays: Arrays) -> str:
    """What the model was given, where the maps do not already show it."""
    kind = shown.get("kind")
    if kind == "series" and f"{i}.shown" in arrays:
        return ""
    if kind == "text" and not case.get("maps"):
        return f"<pre>{escape(''.join(map(str, shown.get('tokens') or [])), 1500)}</pre>"
    return ""


def _maps(
    case: Mapping[str, Any], i: int, shown: Mapping[str, Any], methods: Mapping[str, Any], record: Mapping[str, Any], arrays: Arrays
) -> str:
    drawn, kind = [], shown.get("kind")
    answer = str(case.get("explained", case.get("answer")))
    original = arrays.get(f"{i}.shown")
    if kind == "image" and original is not None:
        drawn.append(f"<figure>{picture(original, 'The image that the model was given')}<figcaption>given</figcaption></figure>")
    if kind == "audio" and original is not None:
        sound = spectrogram(original)
        drawn.append(
            f"<figure>{picture(sound, 'The spectrogram: time from left to right, high bands on top', 'wide')}<figcaption>given: time to the right, "
            f"pitch upwards, {figure(number(shown.get('seconds')), 3)} s</figcaption></figure>"
        )
    if kind == "series":
        drawn = [_series(case, i, original, shown, methods, arrays)]
    for one in (case.get("maps") or []) if kind != "series" else []:
        values, method = arrays.get(str(one.get("array"))), methods.get(str(one.get("method")), {})
        if values is None:
            continue
        signed = bool(method.get("signed", True))
        body = draw_map(kind, values, original, shown, signed, f"{method.get('title')} of {answer!r}")
        failed = ' class="failed"' if one.get("failed") else ""
        drawn.append(f"<figure{failed}>{body}<figcaption>{_caption(one, method)}</figcaption></figure>")
    if not drawn:
        return missing("No map: no attribution method suits this kind of input.")
    return f'<div class="maps {escape(kind or "array")}">{"".join(drawn)}</div>'


def draw_map(kind: Any, values: NDArray[Any], original: NDArray[Any] | None, shown: Mapping[str, Any], signed: bool, title: str) -> str:
    """Return one map as its kind of data is drawn: over the image, the words, the columns, the steps."""
    values = np.asarray(values, float)
    if kind == "image" and values.ndim == 2:
        return picture(heat_image(values, original, signed=signed), f"Heat map: {title}. {_image_words(values)}")
    if kind == "audio" and values.ndim == 2:
        return picture(heat_image(_sound(values), None, signed=signed), f"Heat map over the spectrogram: {title}", "wide")
    if kind == "text":
        tokens = [str(t) for t in shown.get("tokens") or []]
        more = missing(f"… and {shown['more']:,} more tokens, which are in the record of the maps.") if shown.get("more") else ""
        return words(tokens, values.ravel()[: len(tokens)].tolist(), signed=signed) + more
    if kind == "table":
        columns = shown.get("columns") or []
        order = np.argsort(-np.abs(values))[:_COLUMNS]
        names = [f"{columns[k]['name']} = {columns[k]['value']}" if k < len(columns) else f"column {k}" for k in order.tolist()]
        return bars(names, [float(values[k]) for k in order])
    if kind == "series" and values.ndim == 2:
        names = [str(n) for n in shown.get("names") or []]
        return "".join(_strip(values, k, names, title) for k in np.argsort(-np.abs(values).sum(0))[:_SERIES].tolist())
    return bars([str(k) for k in range(min(_COLUMNS, values.size))], values.ravel()[:_COLUMNS].tolist())


def _series(
    case: Mapping[str, Any], i: int, original: NDArray[Any] | None, shown: Mapping[str, Any], methods: Mapping[str, Any], arrays: Arrays
) -> str:
    """The series that count most, and under each a strip for each method: how much each step counts."""
    names = [str(n) for n in shown.get("names") or []]
    maps = [(one, np.asarray(arrays[str(one["array"])], float)) for one in case.get("maps") or [] if str(one.get("array")) in arrays]
    total = sum(np.abs(v).sum(0) / max(float(np.abs(v).sum()), 1e-30) for _, v in maps) / max(1, len(maps))
    html = ""
    for k in np.argsort(-np.asarray(total))[:_SERIES].tolist() if maps else []:
        if total[k] < _LEAST:
            continue
        name = names[k] if k < len(names) else f"column {k}"
        if original is not None:
            points = [(float(t - len(original)), float(v)) for t, v in enumerate(original[:, k])]
            title = f"{name}: {total[k]:.0%} of what counts"
            html += chart(
                f"series-{case.get('row', 'new')}-{i}-{k}",
                title,
                [Line(name, points)],
                x_label="steps before the forecast",
                y_label=name,
                log=False,
            )
        for one, values in maps:
            method = methods.get(str(one.get("method")), {})
            html += f'<div class="stripe">{_strip(values, k, names, str(method.get("title")))}<span>{escape(method.get("title"), 40)}</span></div>'
    captions = "".join(f"<figcaption>{_caption(one, methods.get(str(one.get('method')), {}))}</figcaption>" for one, _ in maps)
    return f"<figure>{html}{captions}</figure>"


def _strip(values_TK: NDArray[Any], k: int, names: Sequence[str], title: str) -> str:
    name = names[k] if k < len(names) else f"column {k}"
    whole = scaled(values_TK)[:, k]  # one scale for all series
    strip = np.repeat(diverging(whole)[None], 2, 0)
    top = np.argsort(-np.abs(whole))[:3]
    steps = ", ".join(str(len(whole) - int(t)) for t in top)
    return picture(strip, f"How much each step of {name} counts, oldest left: {title}. Most: {steps} steps before the forecast.", "strip")


def _sound(values_SM: NDArray[Any]) -> NDArray[np.float64]:
    """Frames x bands to a picture: time to the right, high bands on top."""
    return np.asarray(values_SM, float).T[::-1]


def _image_words(values_HW: NDArray[np.float64]) -> str:
    sizes = np.abs(values_HW)
    if not sizes.sum() > 0:
        return "Nothing is marked."
    H, W = sizes.shape
    names = (
        ("upper left", "upper middle", "upper right"),
        ("middle left", "centre", "middle right"),
        ("lower left", "lower middle", "lower right"),
    )
    sums = {names[a][b]: sizes[a * H // 3 : (a + 1) * H // 3, b * W // 3 : (b + 1) * W // 3].sum() for a in range(3) for b in range(3)}
    top = sorted(sums, key=lambda n: -sums[n])[:2]
    return f"Most marked: {top[0]} ({sums[top[0]] / sizes.sum():.0%}), {top[1]} ({sums[top[1]] / sizes.sum():.0%})."


def _caption(one: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    words_: list[str] = []
    error = number(one.get("completeness_error"))
    if error is not None:
        steps = number(one.get("steps"))
        words_.append(f"completeness error {error:.1%}" + (f" at {steps:.0f} steps" if steps is not None else ""))
    own, random = number(one.get("deletion")), number(one.get("random_deletion"))
    if own is not None and random:
        words_.append(f"deletion {figure(own, 2)} (random {figure(random, 2)})")
    own, random = number(one.get("insertion")), number(one.get("random_insertion"))
    if own is not None and random:
        words_.append(f"insertion {figure(own, 2)} (random {figure(random, 2)})")
    badge = '<b class="tone-bad">Failed its test: do not rely on it.</b> ' if one.get("failed") else ""
    return f"{badge}<b>{escape(method.get('title', one.get('method')), 60)}</b> {escape('; '.join(words_))}"


def _influence(case: Mapping[str, Any], arrays: Arrays) -> str:
    found = case.get("influence") or {}
    html = ""
    for key, title in (("helped", "Training examples that argued for this answer"), ("hurt", "Training examples that argued against it")):
        rows: Sequence[Mapping[str, Any]] = [r for r in found.get(key) or [] if isinstance(r, dict)]
        if rows:
            items = "".join(f"<li>{training_example(r, arrays)}</li>" for r in rows)
            html += f'<p class="what"><b>{title}</b></p><ul class="examples">{items}</ul>'
    return html
