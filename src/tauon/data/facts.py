"""Facts about the data for `data.json` and the report: contents, notes, warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.files import canonical
from tauon.data.label_leaks import suspects
from tauon.data.sources.base import Arrays
from tauon.data.spelling import classes_alike
from tauon.data.split import Part

__all__ = ["content_of", "feature_facts", "notices", "warnings_of"]


def content_of(table: Arrays) -> str:
    digest = hashlib.sha256()
    for array in (table.features, table.targets):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(canonical([table.feature_names, table.label_names]).encode())
    return digest.hexdigest()


def notices(left_out: Mapping[Part, Sequence[str]], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Return notes and warnings about the data, as facts; `prepare_stage` prints them in the terminal, too. `left_out` is by part."""
    by_part = {part: [*lines] for part, lines in left_out.items() if lines}
    found: dict[str, Any] = {"left_out": by_part, "notes": [*dict.fromkeys(notes)], "warnings": [*dict.fromkeys(warnings)]}
    return {name: lines for name, lines in found.items() if lines}


_SHOWN = 64


def feature_facts(features: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Return mean, standard deviation and range: of each column of a small table, of everything otherwise."""
    if features.ndim == 2 and features.shape[1] <= _SHOWN:
        wide = features.astype(np.float64)
        listed = names or tuple(f"x{i}" for i in range(features.shape[1]))
        columns = zip(listed, wide.mean(0).tolist(), wide.std(0).tolist(), wide.min(0).tolist(), wide.max(0).tolist(), strict=True)
        return {n: {"mean": m, "std": s, "min": lo, "max": hi} for n, m, s, lo, hi in columns}
    return {"all": {"mean": float(features.mean(dtype=np.float64)), "min": float(features.min()), "max": float(features.max())}}


def warnings_of(table: Arrays, features: NDArray[Any], rows: NDArray[np.int64]) -> list[str]:
    """Return warnings: classes with similar spellings, and columns that leak the label. `features` and `rows` are the training rows'."""
    found = classes_alike(table.label_names, "the labels") if table.classes else []
    if features.ndim != 2:
        return found
    names = table.feature_names or tuple(f"x{i}" for i in range(features.shape[1]))
    return found + suspects(features, table.targets[rows], names, len(table.label_names) if table.classes else 0)
