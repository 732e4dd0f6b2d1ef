"""Shared by all kinds of data: a recipe draft, and sizes that depend on the amount of data."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tauon.config import write_yaml

__all__ = ["Draft", "held_out", "name_of", "suffixes", "training"]


@dataclass
class Draft:
    """A recipe draft."""

    name: str
    about: str
    """The recipe's first line."""
    sections: dict[str, Any] = field(default_factory=dict)
    why: dict[str, list[str]] = field(default_factory=dict)
    """Sentences for each section."""

    def set(self, section: str, value: Any, *why: str) -> None:
        self.sections[section] = value
        self.why[section] = list(why)

    def to_yaml(self) -> str:
        """Return the recipe with its comments."""
        lines = [
            f"# {self.about}",
            "# Written by looking at the data: every choice below can be changed.",
            f"name: {write_yaml(self.name, flow=True)}",
            "seed: 0",
        ]
        for section, value in self.sections.items():
            lines += [f"# {sentence}" for sentence in self.why[section]]
            if section == "data":
                lines.append("data:")
                lines += [f"  {key}: {write_yaml(part, flow=True)}" for key, part in value.items()]
            else:
                lines.append(f"{section}: {write_yaml(value, flow=True)}")
        return "\n".join(lines) + "\n"


def name_of(place: Path) -> str:
    stem = place.name.split(".")[0] if place.is_file() else place.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "mine"


def training(examples: int, *, batch: int, seen: int, most: int = 200) -> tuple[dict[str, Any], str]:
    """Return batch and epochs: about `seen` examples in all, at least 3 epochs."""
    batch = max(2, min(batch, examples // 10 or 2))
    epochs = max(3, min(most, round(seen / max(1, examples))))
    return {"epochs": epochs, "batch": batch}, f"{examples:,} examples: {epochs} epochs; more help until validation loss rises."


def held_out(examples: int) -> tuple[dict[str, Any], str]:
    share = "10%" if examples >= 2000 else "20%"
    return {"validation": "10%", "test": share}, f"{share} is held out to measure on, 10% to watch training."


def suffixes(place: Path) -> Counter[str]:
    return Counter(p.suffix.lower() for p in islice((p for p in place.rglob("*") if p.is_file()), 50_000))
