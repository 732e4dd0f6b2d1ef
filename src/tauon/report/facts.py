"""Sections of facts: recipe with derived settings, environment, lineage. No plots."""

from __future__ import annotations

import json
from typing import Any

from tauon.report.page import Section, facts_table, missing, scroll, table
from tauon.report.records import Records
from tauon.report.text import escape

__all__ = ["environment", "lineage", "recipe"]


def recipe(records: Records) -> Section:
    """Return the section with the complete recipe and the derived settings with their reasons."""
    html = ""
    if records.derived:
        rows = [
            [f"<code>{escape(d.get('path', ''), 120)}</code>", _short(d.get("value")), escape(d.get("source", ""), 500)]
            for d in records.derived[:200]
        ]
        html += "<h3>Derived settings</h3>" + table(
            [("Setting", ""), ("Value", "any"), ("Derived from", "any")], rows, "Derived settings", "full stack"
        )
    elif not records.only_folds:
        html += missing("No derived settings: derived.json is missing, or the recipe sets everything itself.")
    html += "<h3>Complete recipe</h3>" + scroll(f"<pre>{escape(records.recipe_text, 200_000)}</pre>", "Recipe", "tall")
    return Section("recipe", "Recipe", html)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<code>{escape(text, 300)}</code>"


def environment(records: Records) -> Section | None:
    """Return the section about hardware and software: the manifest's `environment`."""
    facts = records.manifest.get("environment")
    if not facts and records.only_folds:
        return None
    if not isinstance(facts, dict) or not facts:
        return Section("environment", "Environment", missing("No environment: manifest.json is missing, or does not describe it."))
    return Section("environment", "Environment", facts_table(facts, "Environment"))


def lineage(records: Records) -> Section | None:
    """Return the section with the rest of the manifest: data hashes, seeds, parents, checkpoint, times."""
    rest = {k: v for k, v in records.manifest.items() if k != "environment"}
    if records.stages:
        rest["stages"] = records.stages
    if not rest and records.only_folds:
        return None
    if not rest:
        return Section("lineage", "Lineage", missing("No lineage: manifest.json is missing or empty."))
    intro = "<p>Where this run comes from, with hashes to verify it: the same recipe, data and seed give the same weights.</p>"
    return Section("lineage", "Lineage", intro + facts_table(rest, "Lineage"))
