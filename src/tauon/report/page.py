"""HTML of a report: sections, tables, nested facts, the document with its style and script. Does not depend on records of runs.

The page loads nothing: a Content-Security-Policy forbids every fetch except images embedded in the page, and every script except ours (by
its hash), so that text from a data set cannot run as code even if an escape is missing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from tauon.report.records import number
from tauon.report.text import count, cut, escape, figure, human_bytes, label

__all__ = ["Section", "document", "facts_table", "missing", "scroll", "table"]


@dataclass(frozen=True)
class Section:
    """One section of the page. `html` is safe markup: everything from a record went through `escape`."""

    identity: str
    """Anchor: letters, digits, dashes."""
    title: str
    html: str


@cache
def _asset(name: str) -> str:
    return (files("tauon.report") / name).read_text(encoding="utf-8")


def document(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """Return the complete page. `header` and `footer` are safe markup; `title` is text."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{s.identity}">{escape(s.title)}</a>' for s in sections)
    navigation = f'<nav aria-label="Sections">{links}</nav>' if len(sections) > 1 else ""
    body = "".join(f'<section id="{s.identity}"><h2>{escape(s.title)}</h2>{s.html}</section>' for s in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title, 200)}</title><style>{_asset('page.css')}</style></head><body><main>\n"
        f"<header>{header}{navigation}</header>\n{body}\n<footer>{footer}</footer></main>"
        f"<script>{script}</script></body></html>\n"
    )


def missing(what: str) -> str:
    """Return a sentence to show instead of a missing record. `what` is our own text."""
    return f'<p class="missing">{escape(what)}</p>'


def scroll(inner: str, name: str, css: str = "") -> str:
    """Return a box that scrolls sideways, so that the page does not; `name` is for screen readers."""
    hint = (
        '<p class="continues" aria-hidden="true">Swipe sideways: the table continues to the right.</p>'
        if inner.count('scope="col"') > 4
        else ""
    )
    return f'{hint}<div class="scroll {css}" tabindex="0" role="region" aria-label="{escape(name, 100)}">{inner}</div>'


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], name: str, css: str = "full") -> str:
    """head: (text, class) of each column; rows: safe markup of each cell, the first one heading its row."""
    top = "".join(f'<th scope="col" class="{c}">{escape(t)}</th>' for t, c in head)
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{cell}</th>' if i == 0 else f'<td class="{head[i][1]}">{cell}</td>' for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return scroll(f'<table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', name)


# ---------------------------------------------------------------------------------------------- facts of any shape


def value_html(key: str, value: Any) -> str:
    """One JSON value in a cell: numbers grouped, sizes in bytes readable, hashes in a fixed-width face."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        size = f" ({human_bytes(value)})" if key.rsplit(".", 1)[-1] in ("bytes", "memory", "size") and value >= 1024 else ""
        return f"{value:,}{size}" if not _is_name(key) else str(value)
    if isinstance(value, float):
        return figure(value, 6)
    if isinstance(value, (list, tuple)):
        if not value:
            return "none"
        items = [cut(str(v), 200) for v in value[:24]]
        while len(items) > 1 and sum(map(len, items)) > 400:
            items.pop()
        more = f", … ({len(value):,} in all)" if len(value) > len(items) else ""
        return escape(", ".join(items) + more)
    text = str(value)
    if len(text) >= 16 and all(c in "0123456789abcdef:" for c in text.removeprefix("sha256")):
        return f'<span class="hash">{escape(text, 200)}</span>'
    return escape(text, 1000)


def _is_name(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in ("seed", "seeds", "year", "id", "pid", "port")


@dataclass
class _Facts:
    """Rows and tables as they are found; what is beyond the limits is counted, not drawn."""

    rows: list[list[str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    left: int = 0

    def row(self, name: str, value: Any) -> None:
        if len(self.rows) < 400:
            shown = "–" if isinstance(value, Mapping) and not value else value_html(name, value)
            self.rows.append([escape(name, 200).replace(".", ".<wbr>"), shown])
        else:
            self.left += 1

    def table(self, draw: Callable[[str, Any], str], name: str, value: Any) -> None:
        if len(self.tables) < 40:
            self.tables.append(draw(name, value))
        else:
            self.left += 1


def facts_table(facts: Mapping[str, Any], name: str) -> str:
    """Nested JSON as tables: plain values as rows with dotted names; lists of alike records and maps of counts as tables of their own."""
    found = _Facts()
    _walk("", facts, found, 0)
    html = table([("", ""), ("", "any")], found.rows, name, "pairs") if found.rows else ""
    html += "".join(found.tables) + (missing(f"… and {found.left:,} more.") if found.left else "")
    return html or missing("Nothing recorded.")


def _walk(prefix: str, value: Any, found: _Facts, depth: int) -> None:
    if isinstance(value, Mapping) and value and depth < 8:
        numbers = {str(k): n for k, v in value.items() if (n := number(v)) is not None}
        if prefix and len(numbers) == len(value) >= 2 and _is_distribution(prefix, numbers):
            found.table(_shares, prefix, numbers)
        elif prefix and len(value) >= 2 and all(_flat(v) for v in value.values()) and len({tuple(v) for v in value.values()}) == 1:
            found.table(_records, prefix, [{"": k} | dict(v) for k, v in value.items()])
        else:
            for key, inner in value.items():
                _walk(f"{prefix}.{key}" if prefix else str(key), inner, found, depth + 1)
    elif isinstance(value, (list, tuple)) and value and all(_flat(v) for v in value):
        found.table(_records, prefix, value)
    elif isinstance(value, (list, tuple)) and depth < 8 and any(isinstance(v, (Mapping, list, tuple)) for v in value):
        for i, inner in enumerate(value[:50]):
            _walk(f"{prefix}.{i}", inner, found, depth + 1)
    else:
        found.row(prefix, value)


def _flat(value: Any) -> bool:
    return isinstance(value, Mapping) and 0 < len(value) <= 10 and not any(isinstance(v, (Mapping, list, tuple)) for v in value.values())


def _is_distribution(prefix: str, numbers: Mapping[str, float]) -> bool:
    """Whether a map of numbers counts the same thing by class, split, source: by its name, since numbers alone do not tell."""
    last = prefix.rsplit(".", 1)[-1].lower()
    return last in ("balance", "class_balance", "classes", "labels", "splits", "class_counts", "per_class") and min(numbers.values()) >= 0


def _shares(name: str, numbers: Mapping[str, float]) -> str:
    total, top = sum(numbers.values()) or 1.0, max(numbers.values()) or 1.0
    rows = [
        [
            escape(k, 100),
            count(v) if v == int(v) else figure(v),
            f"{v / total:.1%}",
            f'<span class="share" style="width:{v / top * 100:.1f}%"></span>',
        ]
        for k, v in list(numbers.items())[:200]
    ]
    said = missing(f"… and {len(numbers) - 200:,} more.") if len(numbers) > 200 else ""
    return f"<h3>{escape(_heading(name))}</h3>" + table([("", ""), ("count", "num"), ("share", "num"), ("", "bar-cell")], rows, name) + said


def _records(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(str(k) for row in rows for k in row))[:10]
    kinds = ["num" if all(number(r.get(c, 0)) is not None for r in rows) else "any" for c in columns]
    cells = [[value_html(c, row.get(c)) for c in columns] for row in rows[:100]]
    said = missing(f"… and {len(rows) - 100:,} more.") if len(rows) > 100 else ""
    return f"<h3>{escape(_heading(name))}</h3>" + table([(label(c), k) for c, k in zip(columns, kinds, strict=True)], cells, name) + said


def _heading(name: str) -> str:
    return " · ".join(label(part) for part in name.split("."))
