"""Shared by all kinds of data: what was asked for, a recipe draft, and sizes that depend on the amount of data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tauon.config import write_yaml
from tauon.data.files import read_bytes
from tauon.data.text_files import detect_encoding
from tauon.errors import DataError

__all__ = ["FEWEST_GROUPS", "Asked", "Draft", "encoding_of", "held_out", "name_of", "suffix_of", "suffixes", "training"]

FEWEST_GROUPS = 5
"""Groups (speakers, patients) that a split needs: training, validation and test each need some."""
_SMALL = 50_000
"""Examples below which the best checkpoint is kept: models memorise so few."""


@dataclass(frozen=True)
class Asked:
    """What was said beside the data."""

    name: str
    """Of the recipe and its runs."""
    label: str | None = None
    """What to predict: `folder`, a column, or the pattern of file names."""
    model: str | None = None
    """The trained model that conversations or preferences are to tune."""
    inputs: tuple[str, ...] = ()
    """Columns to predict from. Empty: chosen by looking."""
    encoding: str | None = None
    """Of text files. None: detected."""


@dataclass
class Draft:
    """A recipe draft."""

    name: str
    about: str
    """The recipe's first line."""
    sections: dict[str, Any] = field(default_factory=dict)
    why: dict[str, list[str]] = field(default_factory=dict)
    """Sentences for each section."""
    examples: int = 0
    """Number of training examples, probably; 0: unknown."""
    seconds: float | None = None
    """Of all epochs on this machine, if it was measured."""

    def set(self, section: str, value: Any, *why: str) -> None:
        self.sections[section] = value
        self.why[section] = [sentence for sentence in why if sentence]

    @property
    def task(self) -> str:
        """Kind of the task."""
        task = self.sections["task"]
        return str(task["kind"] if isinstance(task, dict) else task)

    def to_yaml(self) -> str:
        """Return the recipe with its comments."""
        lines = [
            f"# {self.about}",
            "# Written by looking at the data: every choice below can be changed.",
            f"name: {write_yaml(self.name, flow=True)}",
            "seed: 0",
        ]
        for section, value in self.sections.items():
            lines += [f"# {line}" for sentence in self.why[section] for line in sentence.splitlines()]
            if section == "data":
                lines.append("data:")
                lines += [f"  {key}: {write_yaml(part, flow=True)}" for key, part in value.items()]
            else:
                lines.append(f"{section}: {write_yaml(value, flow=True)}")
        return "\n".join(lines) + "\n"


def name_of(place: Path) -> str:
    stem = place.name.split(".")[0] if place.is_file() else place.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "mine"


def training(examples: int, *, batch: int, seen: int, most: int = 200) -> tuple[dict[str, Any], list[str]]:
    """Return batch and epochs, about `seen` examples in all and at least 3 epochs, with the best checkpoint kept; and the reasons."""
    batch = max(2, min(batch, examples // 10 or 2))
    epochs = max(3, min(most, round(seen / max(1, examples))))
    section: dict[str, Any] = {"epochs": epochs, "batch": batch}
    why = [f"{examples:,} examples: {epochs} epochs at most."]
    if examples < _SMALL:
        section["early_stopping"] = {"patience": 3}
        why = [
            f"{examples:,} examples: {epochs} epochs at most. Training stops after 3 validations without improvement; the best checkpoint is used."
        ]
    return section, why


def held_out(examples: int, *, groups: int = 0, what: str = "") -> tuple[dict[str, Any], str]:
    """Return the split and its reason: of rows, or of `groups` groups that are called `what`."""
    share = 10 if examples >= 2000 else 20
    if not groups:
        return {"validation": "10%", "test": f"{share}%"}, f"{share}% is held out to measure on, 10% to watch training."
    split = {"validation": f"{max(10, math.ceil(100 / groups))}%", "test": f"{max(share, min(34, math.ceil(200 / groups)))}%"}
    return split, (
        f"Rows of one {what} belong together ({groups:,} of them, {examples:,} rows): {split['test']} of them are held out to measure on, "
        f"{split['validation']} to watch training, so that no {what} is in two parts. Intervals count {what}s, not rows."
    )


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, without that of a compression.

    >>> suffix_of("a/Notes.TXT.gz")
    '.txt'
    """
    bare = name.lower().removesuffix(".gz").removesuffix(".zst")
    return Path(bare).suffix


def suffixes(place: Path) -> Counter[str]:
    return Counter(suffix_of(p.name) for p in islice((p for p in place.rglob("*") if p.is_file()), 50_000))


def encoding_of(paths: Iterable[Path], asked: Asked, where: Path) -> tuple[dict[str, Any], str]:
    """Return (the key `encoding` of a source, if it is not UTF-8; a sentence on it). `DataError` if it must be named."""
    if asked.encoding is not None:
        return {"encoding": asked.encoding}, ""
    found = {detect_encoding(read_bytes(path)): path for path in islice(paths, 200)}
    if None in found:
        raise DataError(
            f"{found[None]}: neither UTF-8 nor a western encoding. Name it with --encoding (gb18030, shift_jis, cp1251, utf-16, ...), or convert the file"
        )
    odd = [name for name in found if name not in (None, "utf-8")]
    if not odd:
        return {}, ""
    if len(found) > 1 and "utf-8" in found and _has_accents(found["utf-8"]):
        raise DataError(f"{where}: {found['utf-8']} is UTF-8, but {found[odd[0]]} is not. Convert all files to one encoding")
    name = "cp1252" if "cp1252" in odd else odd[0]
    return {"encoding": name}, f"Read as {name}, because it is not UTF-8: check letters with accents (encoding)."


def _has_accents(path: Path) -> bool:
    return not read_bytes(path).isascii()
