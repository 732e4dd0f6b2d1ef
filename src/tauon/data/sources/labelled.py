"""Texts with labels in the formats of two public data sets. CSV and JSON lines of your own are read by `tables.py`."""

from __future__ import annotations

import numpy as np

from tauon.data.sources.base import LabelledTexts
from tauon.data.sources.separated import separated
from tauon.errors import DataError

__all__ = ["published"]


def published(text: str, where: str, form: str, label_names: tuple[str, ...]) -> LabelledTexts:
    """`class-title-text`: CSV without header, classes from 1 (AG News); `class-sentence`: a class, a blank, a sentence (SST-2)."""
    texts: list[str] = []
    numbers: list[int] = []
    places: list[str] = []
    if form == "class-title-text":
        rows = ((n, str(int(cells[0]) - 1), "\n\n".join(cells[1:])) for n, cells in separated(text, where, ","))
    else:
        rows = ((n, *line.partition(" ")[::2]) for n, line in enumerate(text.split("\n"), 1) if line)
    for number, label, said in rows:
        if not label.isdigit() or int(label) >= len(label_names):
            raise DataError(f"{where}, line {number}: {label!r} is not one of the {len(label_names)} classes")
        texts.append(said)
        numbers.append(int(label))
        places.append(f"{where}, line {number}")
    return LabelledTexts(texts, np.array(numbers, np.int64), label_names, places)
