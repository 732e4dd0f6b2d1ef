"""A training example in a line: the picture, the words or the row, its label, its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.drawing.shapes import picture
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["training_example"]


def training_example(row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return one training example as safe markup."""
    shown, drawn = row.get("shown") or {}, ""
    array = arrays.get(str(row.get("array")))
    if array is not None and array.ndim == 3 and array.dtype == np.uint8:
        drawn = picture(array, f"Training image labelled {row.get('label')}", "small")
    elif shown.get("kind") == "text":
        drawn = f"<q>{escape(''.join(map(str, shown.get('tokens') or [])), 160)}</q> "
    elif shown.get("kind") == "table":
        drawn = escape(", ".join(f"{c['name']} {c['value']}" for c in (shown.get("columns") or [])[:6]), 240) + " "
    label = f" labelled {escape(row['label'], 60)}" if row.get("label") is not None else ""
    label += f", answered {escape(row['answer'], 60)}" if row.get("answer") not in (None, row.get("label")) else ""
    return f"{drawn}<b>{figure(number(row.get('score')), 3)}</b>{label} <small>{escape(row.get('from', ''), 60)}</small>"
