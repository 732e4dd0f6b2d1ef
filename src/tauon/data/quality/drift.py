"""Drift between the training part and the held-out ones: columns of a table, lengths of texts, brightness of images, length and level of recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.quality.base import SHOWN, DataView, Example, Finding, QualityCheck
from tauon.data.quality.two_samples import chi_square_p, kolmogorov_smirnov

__all__ = ["PartDrift", "measures"]

LEVEL = 1e-4
"""p-value, after division by the number of columns (Bonferroni), below which a difference is more than chance."""
SMALL = 0.1
"""Distance of two distributions that matters: below it a difference is real in large data sets, but too small to act on."""


@register("drift")
class PartDrift(QualityCheck):
    """Whether the held-out records look like the training records."""

    title = "Drift between parts"

    def find(self, view: DataView) -> Iterator[Finding]:
        described = measures(view)
        for part in view.parts:
            if part == "train":
                continue
            train, held, moved = view.rows("train"), view.rows(part), []
            for name, values in described.items():
                distance, p = _difference(values, train, held)
                if p * len(described) < LEVEL and distance > SMALL:
                    moved.append((distance, name, p))
            if moved:
                moved.sort(reverse=True)
                distances = {name: round(distance, 4) for distance, name, _ in moved}
                named = ", ".join(name for _, name, _ in moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
                what = "columns" if view.columns else "measures"
                verb = "differs" if len(moved) == 1 else "differ"
                message = (
                    f"{len(moved)} of {len(described)} {what} {verb} between train and {part} by more than chance: {named}. Results on the {part} part "
                    "are about such records, not about those of training"
                )
                examples = tuple(
                    Example(
                        (),
                        (name,),
                        _compared(described[name], train, held, part),
                        f"distance of the distributions {d:.2f} (0: same, 1: apart)",
                    )
                    for d, name, _ in moved[:SHOWN]
                )
                columns = tuple(name for _, name, _ in moved)
                yield Finding("drift", "warn", message, (), examples, columns, {"part": part, "distance": distances})


def measures(view: DataView) -> dict[str, NDArray[Any]]:
    """Return numbers, or words, that describe each record."""
    if view.columns:
        found = {
            k: v if isinstance(v, np.ndarray) else np.array(["" if x is None else str(x) for x in v], object)
            for k, v in view.columns.items()
        }
    elif len(view.texts):
        found = {"length in characters": np.array([len(t) for t in view.texts], np.float64)}
        found["letters per character"] = np.array([sum(map(str.isalpha, t)) / max(1, len(t)) for t in view.texts])
    elif view.images is not None:
        flat = view.images.reshape(len(view.images), -1)
        step = max(1, flat.shape[1] // 4096)
        found = {"brightness": flat[:, ::step].mean(1), "contrast": flat[:, ::step].std(1)}
    elif len(view.waves):
        found = {
            "seconds": np.array([len(w) / view.rate for w in view.waves]),
            "level": np.array([float(np.sqrt(np.mean(w**2))) if len(w) else 0 for w in view.waves]),
        }
    else:
        found = {}
    if view.targets_N is not None and view.kind != "series":
        found[view.label or "target"] = view.targets_N
    return found


def _difference(values: NDArray[Any], train: NDArray[np.int64], held: NDArray[np.int64]) -> tuple[float, float]:
    if values.dtype != object:
        return kolmogorov_smirnov(values[train], values[held])
    a, b = Counter(values[train].tolist()), Counter(values[held].tolist())
    names = [n for n, c in (a + b).most_common(50) if c >= 5]
    if len(names) < 2 or len(a) > 0.5 * len(train):
        return 0.0, 1.0
    table = np.array([[a[n] for n in names], [b[n] for n in names]], np.float64)
    if (table.sum(1) == 0).any():
        return 1.0, 0.0
    shares = table / table.sum(1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), chi_square_p(table)


def _compared(values: NDArray[Any], train: NDArray[np.int64], held: NDArray[np.int64], part: str) -> str:
    """Return in words how a measure differs: the medians of numbers, or the word whose share changes most."""
    if values.dtype != object:
        said = []
        for where, rows in (("train", train), (part, held)):
            low, middle, high = np.nanpercentile(values[rows], [5, 50, 95])
            said.append(f"median {middle:.4g} (90% lie from {low:.4g} to {high:.4g}) in {where}")
        return "; ".join(said)
    a, b = Counter(values[train].tolist()), Counter(values[held].tolist())
    word = max(a + b, key=lambda w: abs(a[w] / len(train) - b[w] / len(held)))
    return f"{word or '(missing)'}: {a[word] / len(train):.1%} of train, {b[word] / len(held):.1%} of {part}"
