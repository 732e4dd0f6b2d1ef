"""The section about the data: in sentences and small tables what was read, split and changed; all recorded facts below, folded."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from tauon.report.page import Section, facts_table, missing, table
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, label

__all__ = ["data"]

_MOST_PICTURE = 1_500_000
"""Largest size in bytes of the sheet of examples in the page."""
_MOST_COLUMNS = 200
_UNITS = ("rows", "texts", "windows", "moments", "documents", "tokens", "pairs", "conversations", "signals", "cut", "from", "to")


def data(records: Records) -> Section | None:
    """Return the section about the data."""
    facts = records.data
    if not facts and records.only_folds:
        return None
    if not facts:
        return Section("data", "Data", missing("No data facts: data.json is missing."))
    html = _pictures(records) + "".join(f"<p>{escape(s, 900)}</p>" for s in sentences(facts))
    html += _notices(facts) + _cleaning(facts.get("clean")) + _parts(facts) + _features(facts.get("features"))
    whole = facts_table(facts, "Data facts")
    return Section("data", "Data", html + f"<details><summary>Everything that was recorded about the data</summary>{whole}</details>")


def sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader should know of the data, a sentence or two each."""
    yield from _sources(facts.get("sources"))
    filled, step = number(facts.get("filled")), facts.get("step")
    if step is not None:
        moments = sum(int(number(p.get("moments")) or 0) for p in _maps(facts.get("parts")).values())
        gaps = "no moment was filled in" if not filled else f"{count(filled)} of {count(moments)} moments were missing and filled in"
        yield f"One value every {step}; {gaps}."
    split = facts.get("split")
    if isinstance(split, Mapping):
        yield _split(split)
    window = facts.get("window")
    if isinstance(window, Mapping):
        yield f"Each example reads {window.get('context')} steps and predicts the next {window.get('horizon')}."
    tokenizer, length = facts.get("tokenizer"), facts.get("seq_len")
    if isinstance(tokenizer, Mapping):
        words = f"Tokenizer: {tokenizer.get('kind')}, {count(number(tokenizer.get('vocab')) or 0)} tokens."
        if isinstance(length, Mapping):
            words += f" A row has up to {length.get('value')} tokens ({length.get('why')})."
        yield words
    yield from _changes(facts)


def _sources(sources: Any) -> Iterator[str]:
    seen: dict[str, list[str]] = {}
    for part, source in _maps(sources).items():
        name = source.get("title") or source.get("path") or source.get("name") or source.get("kind")
        licence = f" ({source['licence']})" if source.get("licence") else ""
        seen.setdefault(f"{name}{licence}", []).append(str(part))
    for name, parts in seen.items():
        yield f"Source{'' if len(seen) == 1 else ' of ' + ', '.join(parts)}: {name}."


def _split(split: Mapping[str, Any]) -> str:
    by = {"row": "at random", "position": "by position, the last part held out", "group": "by group", "document": "by document"}
    words = f"Split {by.get(str(split.get('by')), 'by ' + str(split.get('by')))}"
    words += f" ({split['why']})" if split.get("why") else ""
    words += ", each class in proportion" if split.get("stratified") else ""
    if split.get("folds"):
        words += f"; fold {split.get('fold')} of {split['folds']}"
    own = [str(p) for p in _list(split.get("own_parts"))]
    words += f"; {' and '.join(own)} {'has its' if len(own) == 1 else 'have their'} own source" if own else ""
    doubled = {k: int(v) for k, v in _mapping(split.get("rows_also_in_train")).items() if number(v)}
    words += "".join(f". {v} examples of {k} are in the training part, too" for k, v in doubled.items())
    return words + "."


def _changes(facts: Mapping[str, Any]) -> Iterator[str]:
    normalize = facts.get("normalize")
    if isinstance(normalize, Mapping) and normalize.get("kind"):
        yield f"Normalising: {normalize['kind']} ({normalize.get('why', 'as set')}), fitted to the training part."
    steps = [s for s in _list(facts.get("augment")) if isinstance(s, Mapping)]
    if steps:
        shown = (
            f"{s.get('kind')} ({', '.join(f'{k} {figure(n, 3)}' for k, v in s.items() if (n := number(v)) is not None and n)})"
            for s in steps
        )
        yield f"Augmentation of training examples: {'; '.join(shown)}."
    weights = facts.get("class_weights")
    if isinstance(weights, Mapping) and weights:
        yield "Weights of the classes: " + ", ".join(f"{k} {figure(number(v), 3)}" for k, v in list(weights.items())[:20]) + "."


def _notices(facts: Mapping[str, Any]) -> str:
    items = [str(x) for key in ("warnings", "notes") for x in _list(facts.get(key)) if isinstance(x, str)]
    return '<ul class="plain note">' + "".join(f"<li>{escape(x, 600)}</li>" for x in items[:20]) + "</ul>" if items else ""


def _cleaning(clean: Any) -> str:
    """Return a table of what each cleaning filter did, by source; why, by rule."""
    rows = []
    for part, source in _maps(clean).items():
        for one in _list(source.get("filters")):
            if isinstance(one, Mapping):
                rules = [f"{label(str(k))} {count(n)}" for k, v in list(_mapping(one.get("rules")).items())[:6] if (n := number(v))]
                line = [escape(part, 60), escape(one.get("filter"), 60), *(_shown(one.get(key)) for key in ("seen", "changed", "rejected"))]
                rows.append([*line, escape(", ".join(rules), 400)])
    head = [("Source", ""), ("Filter", ""), ("seen", "num"), ("changed", "num"), ("rejected", "num"), ("why", "")]
    return "<h3>Cleaning</h3>" + table(head, rows, "Cleaning filters") if rows else ""


def _parts(facts: Mapping[str, Any]) -> str:
    parts = _maps(facts.get("parts"))
    if not parts:
        return ""
    columns = [c for c in _UNITS if any(c in p for p in parts.values())]
    classes = list(dict.fromkeys(str(c) for p in parts.values() for c in _mapping(p.get("classes"))))
    classes = classes if len(classes) <= 12 else []
    rows = []
    for name, part in parts.items():
        inside, total = _mapping(part.get("classes")), sum(number(v) or 0 for v in _mapping(part.get("classes")).values())
        line = [escape(name, 60), *(_shown(part.get(c)) for c in columns)]
        rows.append(
            line + [f"{count(n)}<small>{n / total:.1%}</small>" if total and (n := number(inside.get(c)) or 0) else "0" for c in classes]
        )
    words = {"cut": "texts cut"}
    head = [("Part", ""), *((words.get(c, c), "num") for c in columns), *((c, "num") for c in classes)]
    return "<h3>Parts</h3>" + table(head, rows, "Parts of the data")


def _shown(value: Any) -> str:
    n = number(value)
    return count(n) if n is not None else escape("–" if value is None else value, 40)


def _features(features: Any) -> str:
    rows = _maps(features)
    if not rows:
        return ""
    columns = list(dict.fromkeys(str(k) for r in rows.values() for k, v in r.items() if not isinstance(v, (Mapping, list, tuple))))[:8]
    cells = [
        [
            escape(name, 100),
            *(figure(n) if (n := number(r.get(c))) is not None else escape("–" if r.get(c) is None else r[c], 80) for c in columns),
        ]
        for name, r in list(rows.items())[:_MOST_COLUMNS]
    ]
    more = missing(f"… and {len(rows) - _MOST_COLUMNS:,} more.") if len(rows) > _MOST_COLUMNS else ""
    shown = table([("", ""), *((label(c), "num") for c in columns)], cells, "Columns") + more
    if len(rows) <= 12:
        return f"<h3>Columns of the training part</h3>{shown}"
    return f"<details><summary>{len(rows):,} columns of the training part</summary>{shown}</details>"


def _maps(value: Any) -> dict[str, Mapping[str, Any]]:
    return {str(k): v for k, v in value.items() if isinstance(v, Mapping)} if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _pictures(records: Records) -> str:
    """Return the sheet of training images, embedded in the page; empty if there is none."""
    try:
        content = (records.folder / "examples.png").read_bytes()
    except OSError:
        return ""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) > _MOST_PICTURE:
        return missing("examples.png is left out: it is not a PNG, or it is too large for this page.")
    caption = "The first training examples of the run, as the model sees them: with augmentation, and mixed if the recipe uses mixing."
    return (
        '<figure><figcaption><b>Training examples</b></figcaption><img class="sheet" alt="32 training images" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}"><p class="note">{caption}</p></figure>'
    )
