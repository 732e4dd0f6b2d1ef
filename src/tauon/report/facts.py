"""The sections of record: data facts, the recipe with derived settings, environment, lineage. Draws no plot."""

from __future__ import annotations

import base64
import json
from typing import Any

from tauon.report.page import Section, facts_table, missing, scroll, table
from tauon.report.records import Records
from tauon.report.text import escape

__all__ = ["data", "environment", "lineage", "recipe"]


def data(records: Records) -> Section | None:
    """What the run learned from: data.json as it is."""
    if not records.data and records.only_folds:
        return None
    if not records.data:
        return Section("data", "Data", missing("No data facts are on record: data.json is missing."))
    return Section("data", "Data", _pictures(records) + facts_table(records.data, "Data facts"))


_MOST_PICTURE = 1_500_000
"""Bytes of the sheet of examples that a page takes in."""


def _pictures(records: Records) -> str:
    """The sheet of training pictures, in the page itself; empty where there is none."""
    try:
        content = (records.folder / "examples.png").read_bytes()
    except OSError:
        return ""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) > _MOST_PICTURE:
        return missing("examples.png is no PNG of a size that a page can hold; it is left out.")
    said = "The first training examples of the run, as the model is given them: augmented, and mixed where the recipe mixes."
    return (
        '<figure><figcaption><b>Training examples</b></figcaption><img class="sheet" alt="32 training pictures" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}"><p class="note">{said}</p></figure>'
    )


def recipe(records: Records) -> Section:
    """The recipe as it was run, and which settings were worked out from what."""
    html = ""
    if records.derived:
        rows = [
            [f"<code>{escape(d.get('path', ''), 120)}</code>", _short(d.get("value")), escape(d.get("source", ""), 500)]
            for d in records.derived[:200]
        ]
        html += "<h3>Derived settings</h3>" + table(
            [("Setting", ""), ("Value", "any"), ("Worked out from", "any")], rows, "Derived settings", "full stack"
        )
    elif not records.only_folds:
        html += missing("No derived settings are on record: derived.json is missing, or the recipe says everything itself.")
    html += "<h3>Complete recipe</h3>" + scroll(f"<pre>{escape(records.recipe_text, 200_000)}</pre>", "Recipe", "tall")
    return Section("recipe", "Recipe", html)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<code>{escape(text, 300)}</code>"


def environment(records: Records) -> Section | None:
    """What it ran on: the manifest's `environment`."""
    found = records.manifest.get("environment")
    if not found and records.only_folds:
        return None
    if not isinstance(found, dict) or not found:
        return Section(
            "environment", "Environment", missing("No environment is on record: manifest.json is missing, or says nothing of it.")
        )
    return Section("environment", "Environment", facts_table(found, "Environment"))


def lineage(records: Records) -> Section | None:
    """Everything else of the manifest: data hashes, seeds, parents, checkpoint, times."""
    rest = {k: v for k, v in records.manifest.items() if k != "environment"}
    if records.stages:
        rest["stages"] = records.stages
    if not rest and records.only_folds:
        return None
    if not rest:
        return Section("lineage", "Lineage", missing("No lineage is on record: manifest.json is missing, or holds none."))
    said = "<p>Where this run comes from, and the hashes that prove it: the same recipe, data and seed give the same weights.</p>"
    return Section("lineage", "Lineage", said + facts_table(rest, "Lineage"))
