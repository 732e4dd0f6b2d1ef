"""The section about the quality of the data: what was found, the worst first, with examples to look at. Reads `quality.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tauon.report.page import Section, table
from tauon.report.records import Records, number
from tauon.report.text import count, escape

__all__ = ["quality", "quality_html"]

_TONES = {"bad": "bad", "warn": "warn", "note": "plain"}


def quality(records: Records) -> Section | None:
    """Return the section; None if no look was taken at the data."""
    found = records.json("quality.json")
    if not isinstance(found, dict) or not isinstance(found.get("findings"), list):
        return None
    return Section("quality", "Quality of the data", quality_html(found))


def quality_html(found: Mapping[str, Any]) -> str:
    """Return the markup of a record (`Quality.to_json`)."""
    findings = [f for f in found["findings"] if isinstance(f, Mapping)]
    records = {str(k): int(number(v) or 0) for k, v in (found.get("records") or {}).items()}
    serious = sum(f.get("severity") == "bad" for f in findings)
    worth = sum(f.get("severity") == "warn" for f in findings)
    tone = "bad" if serious else "warn" if worth else "good"
    words = (
        f"{_times(serious, 'finding')} that a figure cannot be trusted with, {worth} worth a look"
        if serious
        else f"{_times(worth, 'finding')} worth a look"
    )
    head = words if serious or worth else "Nothing was found that should be looked at"
    sizes = ", ".join(f"{count(n)} {part}" for part, n in records.items())
    html = f'<p class="status {tone}">{escape(head)}.</p><p class="note">{count(sum(records.values()))} records ({escape(sizes)}).</p>'
    html += "".join(_finding(f) for f in findings)
    asked = [str(a) for a in found.get("asked") or []]
    html += f'<p class="note">Asked: {escape("; ".join(asked), 1000)}.</p>' if asked else ""
    skipped = {str(k): str(v) for k, v in (found.get("skipped") or {}).items()}
    return html + "".join(f'<p class="note">Not asked: {escape(k)}. {escape(v, 300)}</p>' for k, v in skipped.items())


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _finding(finding: Mapping[str, Any]) -> str:
    tone, name = _TONES.get(str(finding.get("severity")), "plain"), str(finding.get("check"))
    html = f'<h3>{escape(name[:1].upper() + name[1:], 80)}</h3><p class="status {tone}">{escape(finding.get("message", ""), 900)}</p>'
    rows = [[*cells] for cells in _examples(finding)]
    if not rows:
        return html
    head = [("Where", ""), ("What", "any")]
    if any(len(r) > 2 and r[2] for r in rows):
        head.append(("Why", "any"))
    else:
        rows = [r[:2] for r in rows]
    total = int(number(finding.get("count")) or 0)
    more = f'<p class="note">{len(rows)} of {count(total)} shown.</p>' if total > len(rows) else ""
    return html + table(head, rows, f"Examples: {name}", css="full stack") + more


def _examples(finding: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for example in finding.get("examples") or []:
        if not isinstance(example, Mapping):
            continue
        places = "<br>".join(escape(p, 200) for p in example.get("places") or [])
        shown = escape(example.get("text", ""), 400)
        image = str(example.get("image") or "")
        if image and all(c.isalnum() or c in "+/=" for c in image):
            alt = escape(f"{example.get('text', '')} {example.get('note', '')}".strip(), 200)
            shown = f'<img alt="{alt}" src="data:image/png;base64,{image}"> {shown}'
        yield places, shown, escape(example.get("note", ""), 300)
