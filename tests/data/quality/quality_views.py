"""Planted data as what checks look at; tables, texts and images for all tests of quality."""

from __future__ import annotations

from typing import Any

import numpy as np

from tauon.data.quality import DataView
from tauon.testing import Planted


def view_of_planted(planted: Planted, kind: str, missing: tuple[str, ...] = ("",)) -> DataView:
    names = tuple(sorted(set(planted.labels)))
    labels = np.array([names.index(label) for label in planted.labels])
    content: dict[str, Any] = {}
    if kind == "table":
        content["columns"] = {k: [str(r[k]) for r in planted.records] for k in planted.records[0]}
    elif kind == "texts":
        content["texts"] = planted.records
    else:
        images = np.stack(planted.records)
        content["images"] = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    return DataView(kind, np.array(planted.parts), lambda i: f"record {i}", labels, names, label="label", missing=missing, **content)


def patients(n: int = 2000, seed: int = 0) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with whole numbers, skewed ones, fractions and words, and a label that two of them decide, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "age": int(rng.integers(18, 90)), "dose": round(float(rng.normal(50, 8)), 2), "cost": round(float(rng.lognormal(5, 1)), 2),
            "visits": int(rng.poisson(2)), "town": str(rng.choice(["Bonn", "Ulm", "Kiel"])),
        }
        for _ in range(n)
    ]  # fmt: skip
    labels = ["yes" if (r["age"] - 54) / 20 + (r["dose"] - 50) / 8 + rng.normal() * 0.1 > 0 else "no" for r in rows]
    return rows, labels
