"""The section about the quality of the data: what was found, the worst first, with examples to look at. Reads `quality.json`.

A finding says how grave it is in a word, as colours are not seen by everyone. Does not look at data: what is shown was masked and cut by `data/quality`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from posixpath import commonpath
from typing import Any

from tauon.report.page import Section, table
from tauon.report.records import Records, number
from tauon.report.text import count, escape

__all__ = ["quality", "quality_html"]

_TONES = {"bad": ("bad", "Serious"), "warn": ("warn", "Worth a look"), "note": ("plain", "Note")}
_SENTENCE = re.compile(r"(.*?[a-z0-9)%>])\. ([A-Z].*)", re.DOTALL)


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
    sizes = ", ".join(f"{count(n)} {part}" for part, n in records.items())
    asked = [str(a) for a in found.get("asked") or []]
    tone, head = _verdict(findings, len(asked))
    html = f'<p class="status {tone}">{escape(head)}</p><p class="note">{count(sum(records.values()))} records ({escape(sizes)}).</p>'
    if len(findings) > 1:
        html += '<ul class="plain findings">' + "".join(_line(k, f) for k, f in enumerate(findings, 1)) + "</ul>"
    folder = _common_folder(findings)
    if folder:
        html += f'<p class="note">Files named below are in {escape(folder, 300)}</p>'
    html += "".join(_finding(k, f, folder) for k, f in enumerate(findings, 1))
    html += f'<h3>What was looked for</h3><p class="note">{escape("; ".join(asked), 1000)}.</p>' if asked else ""
    skipped = {str(k): str(v) for k, v in (found.get("skipped") or {}).items()}
    html += "".join(f'<p class="note">Not looked for: {escape(k)}. {escape(v, 300)}</p>' for k, v in skipped.items())
    words = found.get("kind") in ("texts", "table") and any(_examples(f, folder) for f in findings)
    return html + (f'<p class="note">{_PERSONAL.get(str(found.get("personal_data")), "")}</p>' if words else "")


_PERSONAL = {
    "masked": "E-mail addresses, telephone, card, account and national numbers in the examples are masked as far as their form tells; names of people and "
    "street addresses have no form, and are shown. Show this page only to those who may see the data.",
    "shown": "Personal data in the examples is shown as it is. Show this page only to those who may see the data.",
}


def _verdict(findings: Sequence[Mapping[str, Any]], asked: int) -> tuple[str, str]:
    """Return (tone, what matters in a sentence or two)."""
    bad, warn, note = (sum(f.get("severity") == s for f in findings) for s in ("bad", "warn", "note"))
    others = " and ".join(filter(None, (f"{_times(warn, 'finding')} worth a look" if warn else "", _times(note, "note") if note else "")))
    if bad:
        head = f"{_times(bad, 'serious finding')}: results measured with this data cannot be trusted before {'it is' if bad == 1 else 'they are'} settled."
        return "bad", head + (f" Also {others}." if others else "")
    if others:
        return ("warn" if warn else "good"), f"Nothing serious was found. {others[:1].upper()}{others[1:]}."
    checks = _times(asked, "check")
    return (
        "good",
        f"{checks} found nothing. The data can still be wrong in ways that these checks do not see.",
    )


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _name(finding: Mapping[str, Any]) -> str:
    name, facts = str(finding.get("check")), finding.get("facts")
    part = facts.get("part") if isinstance(facts, Mapping) else None
    return f"{name[:1].upper()}{name[1:]}{f', {part} part' if isinstance(part, str) else ''}"


def _sentences(finding: Mapping[str, Any]) -> tuple[str, str]:
    """Return (first sentence, the others) of the message."""
    message = str(finding.get("message", "")).strip()
    message = message[:1].upper() + message[1:]
    parts = _SENTENCE.fullmatch(message)
    first, rest = (parts[1], parts[2]) if parts else (message, "")
    return first.rstrip(".") + ".", f"{rest.rstrip('.')}." if rest else ""


def _prose(text: str, most: int) -> str:
    """Return safe markup of our own words, in which `names` of filters and settings are between backticks."""
    return re.sub(r"`([a-z_.-]+)`", r"<code>\1</code>", escape(text, most))


def _line(number_: int, finding: Mapping[str, Any]) -> str:
    word = _TONES.get(str(finding.get("severity")), _TONES["note"])[1]
    first = _sentences(finding)[0]
    return f'<li><b>{word}</b> · <a href="#finding-{number_}">{escape(_name(finding), 80)}</a>: {_prose(first, 300)}</li>'


def _finding(number_: int, finding: Mapping[str, Any], folder: str) -> str:
    tone, word = _TONES.get(str(finding.get("severity")), _TONES["note"])
    first, rest = _sentences(finding)
    html = f'<h3 id="finding-{number_}">{escape(_name(finding), 80)}</h3><p class="status {tone}">{word}. {_prose(first, 900)}</p>'
    html += f"<p>{_prose(rest, 900)}</p>" if rest else ""
    rows = _examples(finding, folder)
    if not rows:
        return html
    head = [("Where", ""), ("What", "any"), ("Why", "any")]
    kept = [k for k in range(3) if k == 0 or any(row[k] for row in rows)]
    total = int(number(finding.get("count")) or 0)
    more = f'<p class="note">{len(rows)} of {count(total)} shown; all of them with --json.</p>' if total > len(rows) else ""
    cells = [[row[k] for k in kept] for row in rows]
    return html + table([head[k] for k in kept], cells, f"Examples: {_name(finding)}", css="full stack examples") + more


def _examples(finding: Mapping[str, Any], folder: str) -> list[tuple[str, str, str]]:
    """Return safe markup of (where, what, why) of each example."""
    rows = []
    for example in finding.get("examples") or []:
        if not isinstance(example, Mapping):
            continue
        places = [str(p).removeprefix(folder) for p in example.get("places") or []]
        texts = str(example.get("text", "")).split("\n")
        shown = _listed(texts)
        image = str(example.get("image") or "")
        if image and all(c.isalnum() or c in "+/=" for c in image):
            alt = escape(f"{'Images' if len(places) > 1 else 'Image'}: {'; '.join(places)}", 300)
            shown = f'<img alt="{alt}" src="data:image/png;base64,{image}"><span>{shown}</span>'
        rows.append((_listed(places, len(texts) == len(places)), shown, escape(example.get("note", ""), 300)))
    return rows


def _listed(texts: Sequence[str], numbered: bool = True) -> str:
    """Return safe markup of texts, one below the other, numbered if there are several."""
    shown = [escape(t, 400) for t in texts]
    if len(shown) > 1 and numbered:
        shown = [f"<b>{k}</b> {t}" for k, t in enumerate(shown, 1)]
    return "".join(f'<span class="one">{t}</span>' for t in shown) if len(shown) > 1 else "".join(shown)


def _common_folder(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return the folder that all places begin with, which need not be said each time; "" if there is none."""
    places = [
        str(p) for f in findings for e in f.get("examples") or [] if isinstance(e, Mapping) and e.get("rows") for p in e.get("places") or []
    ]
    if not places or not all("/" in p for p in places):
        return ""
    parents = {p.rpartition("/")[0] or "/" for p in places}
    if len({p.startswith("/") for p in parents}) > 1:
        return ""
    shared = commonpath(sorted(parents))
    return f"{shared.rstrip('/')}/" if shared else ""
