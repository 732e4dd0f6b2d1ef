"""The section of report.html about explanations, drawn from `explain/explanation.json` and the arrays beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import tauon
from tauon.explain.drawing.activations import layers_html
from tauon.explain.drawing.cases import cases_html
from tauon.explain.drawing.comparison import comparison_html
from tauon.explain.drawing.folds import folds_html
from tauon.explain.drawing.language import contrast_html
from tauon.explain.drawing.model import concepts_html, features_html, influence_html, methods_html, prototypes_html, slices_html, tree_html
from tauon.report import Records, Section
from tauon.report.page import document, missing
from tauon.report.text import escape

__all__ = ["comparison_page", "explanation", "new_examples_page"]

TITLE = "What the model looks at"
RECORD, ARRAYS = "explain/explanation.json", "explain/maps.safetensors"


def explanation(records: Records) -> Section | None:
    """Return the section; None if the run was not explained. Of a cross-validation: how far the folds agree, and the first fold's explanation."""
    record, folder = records.json(RECORD), records.folder
    if isinstance(record, dict):
        return Section("explanation", TITLE, _body(record, read_arrays(folder / ARRAYS)))
    folds = {p.name: found for p in sorted(folder.glob("fold-*")) if isinstance(found := records.json(f"{p.name}/{RECORD}"), dict)}
    if not folds:
        return None
    name, first = next(iter(folds.items()))
    return Section("explanation", TITLE, _body(first, read_arrays(folder / name / ARRAYS), folds_html(folds)))


@cache
def style() -> str:
    """Return the style sheet of this package's drawings, which uses the colours of the page."""
    return f"<style>{(files('tauon.explain.drawing') / 'explain.css').read_text(encoding='utf-8')}</style>"


def _body(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], after_lead: str = "") -> str:
    lead = "".join(f"<p>{escape(s)}</p>" for s in record.get("opening") or [])
    html = (
        f'{style()}<div class="lead">{lead}</div>{after_lead}'
        + features_html(record)
        + tree_html(record)
        + concepts_html(record)
        + slices_html(record)
    )
    html += (
        influence_html(record, arrays)
        + prototypes_html(record, arrays)
        + methods_html(record)
        + cases_html(record, arrays)
        + contrast_html(record)
        + layers_html(record)
    )
    if record.get("cases") and not arrays:
        html += missing(f"{ARRAYS} is missing or damaged, so no map is drawn. Run `tauon explain` again.")
    return html


def new_examples_page(name: str, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a page about examples that are not in the run's data."""
    html = style() + cases_html(record, arrays) + methods_html(record)
    header = f'<p class="kicker">Tauon explanation</p><h1>{escape(name, 200)}</h1>'
    footer = f"Made by Tauon {escape(tauon.__version__)}. This page loads nothing from the network."
    return document(f"{name} · explanation of new examples", header, [Section("explanation", "What the model looks at", html)], footer)


def comparison_page(before: str, after: str, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a page about what changed from one run to another."""
    header = f'<p class="kicker">Tauon comparison</p><h1>{escape(before, 200)} → {escape(after, 200)}</h1>'
    footer = f"Made by Tauon {escape(tauon.__version__)}. This page loads nothing from the network."
    section = Section("comparison", "What changed", style() + comparison_html(record, arrays))
    return document(f"{before} and {after} · comparison", header, [section], footer)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays beside the record; none if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, NDArray[Any]] = load(path.read_bytes())
    except (OSError, SafetensorError):
        return {}
    return arrays
