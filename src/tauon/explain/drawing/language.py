"""What is said about prompts of a language model: layers, attention, whole answers, patched activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.drawing.shapes import diverging, picture, sequential, words
from tauon.report.page import missing, scroll, table
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["contrast_html", "prompt_html"]

Arrays = Mapping[str, NDArray[Any]]


def prompt_html(case: Mapping[str, Any], arrays: Arrays) -> str:
    """Return what is said about one prompt beside its maps; "" for other kinds of data."""
    return _written(case, arrays) + _lens(case) + _attention(case, arrays)


def _lens(case: Mapping[str, Any]) -> str:
    rows = [r for r in case.get("lens") or [] if isinstance(r, dict)]
    if not rows:
        return missing(str(case["lens_problem"])) if case.get("lens_problem") else ""
    lines = []
    for r in rows:
        best = " ".join(f"<code>{escape(t, 20)}</code>&nbsp;{p:.0%}" for t, p in zip(r["tokens"], r["probabilities"], strict=True))
        lines.append([escape(r["layer"], 30), best, f"{number(r['final']) or 0:.0%}", f"{r['rank']:,}"])
    head = [("After", ""), ("Most probable next tokens", ""), ("The final answer", "num"), ("Its rank", "num")]
    return f"<details><summary>What each layer would say (logit lens)</summary>{table(head, lines, 'Logit lens')}</details>"


def _attention(case: Mapping[str, Any], arrays: Arrays) -> str:
    found = case.get("attention") or {}
    weights = arrays.get(str(found.get("array")))
    if weights is None:
        return ""
    drawn = ""
    for name, w in zip(found.get("heads") or [], weights, strict=False):
        at = np.sqrt(np.clip(w, 0, 1))
        far = float((w * np.abs(np.subtract.outer(np.arange(len(w)), np.arange(w.shape[1])))).sum() / max(len(w), 1))
        alt = f"Attention of {name}: queries downwards, keys to the right; on average it looks {far:.1f} tokens back"
        drawn += (
            f"<figure>{picture(sequential(at), alt, 'small')}<figcaption>{escape(name, 60)}: {far:.1f} tokens back</figcaption></figure>"
        )
    of = f" ({len(weights)} of {found.get('of')} heads)" if found.get("of") != len(weights) else ""
    note = missing(
        "Attention weights are a part of the computation, not an explanation by themselves: the value that is moved matters as much."
    )
    return f'<details><summary>Attention patterns{of}</summary><div class="maps heads">{drawn}</div>{note}</details>'


def _written(case: Mapping[str, Any], arrays: Arrays) -> str:
    found = case.get("written") or {}
    values = arrays.get(str(found.get("array")))
    if values is None:
        return missing(str(case["answer_problem"])) if case.get("answer_problem") else ""
    tokens, P = [str(t) for t in found["tokens"]], int(found["prompt"])
    answer, sure = tokens[P:], [float(p) for p in found["probabilities"]]
    whole = words([_plain(t) for t in tokens[:P]], values[:, :P].sum(0).tolist(), signed=True)
    html = f"<p><b>It continues:</b> <q>{escape(_plain(''.join(answer)), 400)}</q></p><p class='note'>What the whole continuation rests on:</p>{whole}"
    rows = []
    for a, token in enumerate(answer):
        top = np.argsort(-np.abs(values[a, : P + a]))[:4].tolist()
        rest = " ".join(f"<code>{escape(tokens[t], 20)}</code>&nbsp;{figure(float(values[a, t]), 2)}" for t in top)
        rows.append([f"<code>{escape(token, 20)}</code>", f"{sure[a]:.0%}", rest])
    head = [("Token", ""), ("Probability", "num"), ("Rests most on", "")]
    return html + f"<details><summary>Token by token</summary>{table(head, rows, 'Attribution of each token')}</details>"


def _plain(text: str) -> str:
    return text.replace("␣", " ").replace("↵", "\n").replace("⇥", "\t")


def contrast_html(record: Mapping[str, Any]) -> str:
    """Return the effect of patched activations of two prompts."""
    found = record.get("contrast") or {}
    effect = np.array(found.get("effect") or [], float)
    if effect.ndim != 2:
        return ""
    first, second = found["tokens"]
    colours = diverging(np.clip(effect[::-1], -1, 1))
    depth, at = np.unravel_index(
        int(np.argmax(effect[1:-1])) if len(effect) > 2 else 0, effect[1:-1].shape if len(effect) > 2 else effect.shape
    )
    place = f"after block {depth} at {first[at]!r}" if len(effect) > 2 else ""
    alt = f"Effect of patching: layers upwards, positions to the right. Largest inside the model {place}: {effect[1:-1].max() if len(effect) > 2 else 0:.0%}"
    names = "".join(f"<td>{_two(a, b)}</td>" for a, b in zip(first, second, strict=True))
    body = picture(colours, alt, "patching") + f'<table class="tokens-below"><tr>{names}</tr></table>'
    a, b = found["answers"]
    text = (
        f"<p>After <q>{escape(found['prompts'][0], 300)}</q> the model says <code>{escape(a, 30)}</code>, after <q>{escape(found['prompts'][1], 300)}</q> "
        f"<code>{escape(b, 30)}</code>. Shown is how much of that difference comes back when one activation of the first prompt is put into the second: "
        f"columns are tokens, rows are layers from the embedding (below) to the last block. {escape(alt.partition('. ')[2], 200)}.</p>"
    )
    return f"<h3>Which activations carry the difference</h3>{text}{scroll(body, 'Effect of patched activations')}"


def _two(a: str, b: str) -> str:
    return f"<b>{escape(a, 12)}<br>{escape(b, 12)}</b>" if a != b else escape(a, 12)
