"""What holds for the model as a whole: how far each method may be believed, importance of features, the tree, slices, units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.explain.drawing.examples import training_example
from tauon.explain.drawing.shapes import bars
from tauon.explain.trees import Surrogate, draw_tree
from tauon.report.page import missing, scroll
from tauon.report.plots import Band, Line, chart
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["concepts_html", "features_html", "influence_html", "methods_html", "prototypes_html", "slices_html", "stacked", "tree_html"]

_MOST = 12
"""Columns whose importance is drawn."""
_FAITHFUL = 0.4
"""Kappa against the model (R2 of values) below which a tree is not shown as a description of it: moderate agreement begins there (Landis & Koch
1977)."""


def methods_html(record: Mapping[str, Any]) -> str:
    """Return the table of methods with what the checks say about each."""
    methods = [m for m in record.get("methods") or [] if isinstance(m, dict)]
    left_out = record.get("left_out") or {}
    if not methods and not left_out:
        return ""
    head = [("Method", ""), ("Deletion", "num"), ("Insertion", "num"), ("Shuffled weights", "num"), ("Small noise", "num")]
    rows = []
    for m in methods:
        faithful = m.get("faithful") or {}
        verdict = "; ".join(map(str, m.get("problems") or [])) if m.get("failed") else "passed" if faithful else "not tested"
        verdict += "" if m.get("drawn", True) else "; not drawn"
        about = ". ".join(str(x) for x in (m.get("why"), m.get("note")) if x)
        tone = ' class="tone-bad"' if m.get("failed") else ""
        rows.append(
            [
                f"{escape(m.get('title'), 60)}: <span{tone}>{escape(verdict, 400)}</span><small>{escape(about, 300)}</small>",
                _ratio(faithful.get("deletion_ratio")), _ratio(faithful.get("insertion_ratio")),
                _ratio(m.get("weights")), _ratio(m.get("stable")),
            ]
        )  # fmt: skip
    for name, why in left_out.items():
        rows.append([f"{escape(name, 60)}<small>{escape(f'not used: {why}', 300)}</small>", "", "", "", ""])
    tested = next((m["faithful"] for m in methods if m.get("faithful")), None)
    what = (
        ""
        if tested is None
        else f" Tested on {tested['examples']} example{'s' if tested['examples'] != 1 else ''}, {tested['regions']} regions, hidden by the {tested['fill']}."
    )
    note = (
        "Deletion: what is left of the answer while the marked parts are hidden, as a share of what is left while random parts are hidden; below 1 is "
        "better than random. Insertion: the same while they are shown; above 1 is better. Shuffled weights: rank correlation with the map of a model that "
        f"learned nothing; near 0 is good. Small noise: rank correlation with the map of nearly the same example; near 1 is good.{what}"
    )
    return "<h3>How far the maps may be believed</h3>" + stacked(head, rows, "Checks of the maps") + missing(note)


def stacked(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], name: str) -> str:
    """Return a table whose rows become short lists on a phone. As `tauon.report.page.table` otherwise."""
    top = "".join(f'<th scope="col" class="{css}">{escape(text)}</th>' for text, css in head)
    body = ""
    for first, *cells in rows:
        body += f'<tr><th scope="row">{first}</th>'
        for cell, (text, css) in zip(cells, head[1:], strict=True):
            heading = f' data-h="{escape(text)}"' if cell else ""
            body += f'<td class="{css}"{heading}>{cell}</td>'
        body += "</tr>"
    return scroll(f'<table class="full stack"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', name)


def _ratio(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.2f}"


# ---------------------------------------------------------------------------------------------- features, tree, slices


def features_html(record: Mapping[str, Any]) -> str:
    """Return importance, effects and interactions of columns; "" for other data."""
    found = record.get("features") or {}
    rows = [r for r in found.get("importance") or [] if isinstance(r, dict)]
    if not rows:
        return ""
    top = rows[:_MOST]
    drawn = bars([r["name"] for r in top], [r["value"] for r in top], low=[r["low"] for r in top], high=[r["high"] for r in top])
    more = f" The other {len(rows) - len(top)} columns count less." if len(rows) > len(top) else ""
    html = (
        "<h3>Which columns the answers rest on</h3>"
        f"<p class='note'>How much {escape(found['metric'])} gets worse when a column is shuffled among held-out rows, with 95% intervals. A column "
        f"that another one can stand in for looks less important than it is.{more}</p>{drawn}"
    )
    charts = "".join(_effect(e, i, str(found.get("output"))) for i, e in enumerate(found.get("effects") or []))
    html += f"<h3>How the answer changes with a column</h3><div class='charts'>{charts}</div>" if charts else ""
    pairs = [p for p in found.get("interactions") or [] if number(p.get("size_low")) and p["size_low"] > 0]
    if pairs:
        lines = [
            [f"{escape(p['first'], 60)} and {escape(p['second'], 60)}", _ratio(p["h"]), f"{p['h_low']:.2f} to {p['h_high']:.2f}"]
            for p in pairs
        ]
        head = [("Columns", ""), ("Share of their joint effect that is not a sum (H)", "num"), ("Interval", "num")]
        html += "<h3>Columns that act together</h3>" + stacked(head, lines, "Interactions")
    return html


def _effect(effect: Mapping[str, Any], i: int, output: str) -> str:
    name, average = str(effect["feature"]), effect["average"]
    title = name
    if effect.get("labels"):
        return (
            f"<figure><figcaption><b>{escape(title, 80)}</b></figcaption>"
            + bars(list(effect["labels"]), average, low=effect["low"], high=effect["high"])
            + f"<p class='note'>Mean answer for {escape(output, 60)} if every row had this value.</p></figure>"
        )
    grid = effect["grid"]
    pieces: list[Any] = [Band("95% interval", list(zip(grid, effect["low"], effect["high"], strict=True)), tone="a")]
    single: list[Any] = []
    for curve in (effect.get("ice") or [])[:12]:
        single += [*zip(grid, curve, strict=True), None]
    pieces += [Line("single rows", single, tone="quiet")] if single else []
    pieces.append(Line("mean of all rows", list(zip(grid, average, strict=True)), tone="b"))
    return chart(f"effect-{i}", title, pieces, x_label=name, y_label=f"answer for {output}", log=False)


def tree_html(record: Mapping[str, Any]) -> str:
    """Return the surrogate tree with its fidelity beside it."""
    found = record.get("tree") or {}
    if not found:
        return ""
    if found.get("problem"):
        return "<h3>A small tree that imitates the model</h3>" + missing(f"No tree: {found['problem']}")
    note = (record.get("readable") or {}).get("note") or ""
    about = f"<p class='note'>Its questions are about the {escape(note)}.</p>" if note else ""
    tree = draw_tree(Surrogate.from_json(found))
    fidelity = found.get("fidelity") or {}
    agreement = number(fidelity.get("kappa")) if found.get("kind") == "classes" else number(fidelity.get("r2"))
    if agreement is not None and agreement < _FAITHFUL and not found.get("note"):
        warning = "This tree does not describe the model: it gives other answers too often. It is folded away so that it is not read as the model."
        tree = f'<div class="warn">{warning}</div><details><summary>Show it</summary>{tree}</details>'
    html = f"<h3>A small tree that imitates the model</h3>{about}{tree}"
    shap = found.get("shap") or []
    if found.get("shap_problem"):
        html += missing(f"SHAP values are left out: {found['shap_problem']}")
    if shap:
        html += (
            "<details><summary>How much each feature counts in the tree (exact SHAP values)</summary>"
            + bars([s["name"] for s in shap], [s["value"] for s in shap])
            + "</details>"
        )
    return html


def slices_html(record: Mapping[str, Any]) -> str:
    """Return the slices on which the model fails."""
    found = record.get("slices") or {}
    if not found:
        return ""
    html = "<h3>On whom it fails</h3>"
    if found.get("problem"):
        return html + missing(f"Not searched: {found['problem']}")
    rows = []
    for s in found.get("slices") or []:
        low, high = s["error_interval"]
        cells = [escape(s["text"], 300), f"{s['rows']:,}", f"{figure(s['error'], 3)}<small>{figure(low, 3)} to {figure(high, 3)}</small>"]
        rows.append([*cells, figure(s["error_outside"], 3), f"{s['p_corrected']:.2g}"])
    head = [("Where", ""), ("Examples", "num"), ("Error there", "num"), ("Elsewhere", "num"), ("Corrected p", "num")]
    html += f"<p>{escape(found.get('note', ''), 500)}</p>"
    return html + (stacked(head, rows, "Slices with more errors") if rows else "")


def influence_html(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Return what the scores of training examples mean, and the training examples that look mislabelled."""
    found, suspects = record.get("influence") or {}, record.get("mislabelled") or {}
    html = ""
    if found.get("problem"):
        html += "<h3>Which training examples its answers rest on</h3>" + missing(f"Not computed: {found['problem']}")
    elif found:
        n, of = number(found.get("examples")) or 0, number(found.get("of")) or 0
        part = f" {n:,.0f} of {of:,.0f} training examples were looked at." if n < of else ""
        common = found.get("dominance") or {}
        warn = f'<div class="warn">{escape(common["message"], 400)}</div>' if common.get("message") else ""
        unseen = [str(x) for x in found.get("left_out") or []]
        if unseen:
            part += f" Layers and parameters that the scores do not see: {len(unseen)} ({', '.join(escape(x, 60) for x in unseen[:6])})."
        html += (
            "<h3>Which training examples its answers rest on</h3>"
            f"<p>They are named with each example below. {escape(found.get('meaning', ''), 600)}{part}</p>{warn}"
        )
    if suspects.get("problem"):
        return html + "<h3>Training examples that look mislabelled</h3>" + missing(str(suspects["problem"]))
    examples = suspects.get("examples") or []
    if examples:
        rows = "".join(f"<li>{training_example(e, arrays)}</li>" for e in examples)
        steps = ", ".join(str(s) for s in suspects.get("steps") or [])
        html += (
            f"<h3>Training examples that look mislabelled</h3><p>{escape(suspects.get('meaning', ''), 500)} Look at these first; most suspicious "
            f"first, from checkpoints at steps {escape(steps, 80)}.</p><ul class='examples'>{rows}</ul>"
        )
    return html


def prototypes_html(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Return prototypes and criticisms."""
    found = record.get("prototypes") or {}
    if not found.get("prototypes"):
        return ""
    html = "<h3>Typical and unusual examples</h3>"
    for key, text in (
        ("prototypes", "Examples that stand for the others, as the model sees them; the number counts the examples that each stands for."),
        ("criticisms", "Examples that none of these stands for: look at them before relying on the model for unusual cases."),
    ):
        rows = "".join(f"<li>{training_example(e, arrays)}</li>" for e in found.get(key) or [])
        html += f"<p class='what'>{text}</p><ul class='examples'>{rows}</ul>" if rows else ""
    return html


def concepts_html(record: Mapping[str, Any]) -> str:
    """Return the effect of each concept."""
    found = record.get("concepts") or {}
    if not found:
        return ""
    html = "<h3>Concepts that the answers rise and fall with</h3>"
    if found.get("problem"):
        return html + missing(f"Not computed: {found['problem']}")
    rows = [
        [
            f"{escape(c['name'], 80)}<small>{escape(c['text'], 300)}</small>",
            f"{c['effect']:+.2g}<small>{c['effect_low']:+.2g} to {c['effect_high']:+.2g}</small>",
            f"{c['accuracy']:.0%}", f"{c['corrected_p']:.2g}", "yes" if c["significant"] else "no",
        ]
        for c in found.get("found") or []
    ]  # fmt: skip
    head = [("Concept", ""), ("Effect on the logit", "num"), ("Separates", "num"), ("Corrected p", "num"), ("Beyond chance", "num")]
    about = f"At layer {escape(found['layer'], 60)}, for {escape(found['output'], 60)}. A concept that the layer does not separate says nothing."
    return html + f"<p class='note'>{about}</p>" + stacked(head, rows, "Concepts")
