"""Running text, and JSON lines of text or of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tauon.data import ColumnLook, TableLook
from tauon.data.numbers import is_number
from tauon.data.text_files import json_lines
from tauon.errors import DataError
from tauon.starter.draft import Draft, held_out, suffixes, training
from tauon.starter.text_tasks import ANSWER_KEYS, CHAT_KEYS, PAIR_KEYS, answers, classes

__all__ = ["is_jsonl", "is_text", "jsonl", "text", "text_classes"]

LABELS = ("label", "target", "class", "y", "outcome", "category", "sentiment", "topic")
"""Keys that are probably labels."""
LOOKED_AT = 2000
"""Number of lines that are read."""


def is_jsonl(place: Path) -> bool:
    return place.is_file() and ".jsonl" in "".join(place.suffixes[-2:]).lower()


def _first_rows(place: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in islice(json_lines(place), LOOKED_AT)]
    if not rows:
        raise DataError(f"{place}: expected one JSON object per line")
    return rows


def jsonl(place: Path, label: str | None, name: str, model: str | None = None) -> Draft:
    rows = _first_rows(place)
    known = [*dict.fromkeys(k for r in rows for k in r)]
    keys = [k for k in known if all(k in r for r in rows)]
    texts = [k for k in keys if all(isinstance(r[k], str) for r in rows) and sum(len(str(r[k]).split()) for r in rows) >= 4 * len(rows)]
    if label is None and (set(keys) & {*CHAT_KEYS} or any(all(k in keys for k in both) for both in (PAIR_KEYS, ANSWER_KEYS))):
        return answers(place, keys, len(rows), name, model)
    if model is not None:
        raise DataError(f"{place}: --model is only for conversations and preferences. Its keys: {', '.join(keys)}")
    if label is None and len(texts) == 1 and len(keys) == 1:
        return language(place, {"kind": "jsonl", "path": str(place), "text": texts[0]}, sum(len(str(r[texts[0]])) for r in rows), name)
    named = [k for k in keys if k.lower() in LABELS]
    label = label or (named[0] if len(named) == 1 else None)
    if label is None:
        raise DataError(f"{place}: cannot decide which key to predict. Name it with --label-from. Available: {', '.join(keys)}")
    if label not in keys:
        raise DataError(f"{place}: no key {label!r} in every row. Available: {', '.join(keys)}")
    values = [str(r[label]) for r in rows]
    if len(texts) == 1:
        look = ColumnLook(label, "category", 0, len(set(values)), "", ())
        return text_classes(place, None, texts[0], look, name, examples=len(rows))
    numbers = [k for k in known if k != label and _numbers(r.get(k) for r in rows)]
    if not numbers:
        raise DataError(f"{place}: has no text and no number to predict {label!r} from")
    classes = not all(map(is_number, values)) or len(set(values)) <= 20
    made = Draft(name, f"{label} from {len(numbers)} numbers of {place.name}")
    source: dict[str, Any] = {"kind": "jsonl", "path": str(place), "label": label, "target": "class" if classes else "value"}
    if odd := [k for k in known if k not in (label, *numbers)]:
        source["drop"] = odd
    split, sentence = held_out(len(rows))
    lost = any(r.get(k) is None for k in numbers for r in rows)
    data = {"source": source} | ({"table": {"impute": "median"}} if lost else {}) | {"split": split}
    made.set("data", data, *(["Missing numbers become the median of the training rows."] if lost else []), sentence)
    made.set("task", "classification" if classes else "regression")
    made.set("model", {"kind": "mlp", "hidden": [64, 64], "dropout": 0.1}, "All inputs are numbers: two hidden layers.")
    made.set("optim", {"kind": "adamw", "lr": 0.003, "schedule": {"kind": "cosine", "warmup": "5%", "final": 0}})
    train, sentence = training(len(rows), batch=64, seen=60_000, most=100)
    made.set("train", train, sentence)
    return made


def _numbers(values: Iterable[Any]) -> bool:
    """Return whether all values that are not missing are numbers, and there is one."""
    there = [v for v in values if v is not None]
    return bool(there) and all(isinstance(v, int | float) for v in there)


def text_classes(place: Path, look: TableLook | None, key: str, target: ColumnLook, name: str, *, examples: int = 0) -> Draft:
    """Draft for texts with a label, in a table or in JSON lines (no `look`)."""
    source: dict[str, Any] = {"kind": "jsonl" if look is None else "csv", "path": str(place), "text": key, "label": target.name}
    if look is not None:
        if target.missing:
            raise DataError(f"{place}: {target.missing:,} rows have no {target.name!r}. Remove them first: the label must be known")
        if look.delimiter != ",":
            source["delimiter"] = look.delimiter
        if not look.header:
            source["header"] = False
        examples = look.rows
    return classes(place, source, examples=examples, distinct=target.distinct, name=name)


def is_text(place: Path) -> bool:
    if place.is_file():
        return place.name.removesuffix(".gz").lower().endswith((".txt", ".md"))
    found = suffixes(place)
    return found[".txt"] + found[".md"] > sum(found.values()) / 2


def text(place: Path, label: str | None, name: str) -> Draft:
    if label is not None:
        raise DataError(f"{place}: running text has no label, got --label-from {label!r}")
    size = place.stat().st_size if place.is_file() else sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    source = {"kind": "text", "path": str(place)}
    return language(place, source, size, name)


def language(place: Path, source: dict[str, Any], characters: int, name: str) -> Draft:
    vocab = 512 if characters < 1_000_000 else 4096
    seq_len = 64 if characters < 200_000 else 256
    made = Draft(name, f"A small language model of {place.name}, about {characters:,} characters")
    data = {"source": source, "tokenizer": {"kind": "bpe", "vocab": vocab}, "seq_len": seq_len, "split": {"validation": "10%"}}
    made.set("data", data, f"{vocab:,} pieces of words are learned from the text; examples are {seq_len} of them.")
    made.set("task", "language-modelling")
    width = 64 if characters < 1_000_000 else 256
    made.set(
        "model", {"kind": "gpt", "layers": 4, "width": width, "heads": 4}, "A small transformer: more layers and width want more text."
    )
    made.set("optim", {"kind": "muon", "lr": 0.02, "schedule": {"kind": "wsd"}})
    examples = max(20, characters // (3 * seq_len))
    train, sentence = training(examples, batch=16, seen=20_000, most=20)
    made.set("train", train, sentence)
    return made
