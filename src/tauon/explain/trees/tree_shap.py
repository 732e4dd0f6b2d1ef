"""Exact Shapley values of a surrogate tree (TreeSHAP: Lundberg et al. 2020, doi:10.1038/s42256-019-0138-9), by the library `shap`.

They are exact for the tree. How far they are the model's is the tree's fidelity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError, MissingExtra
from tauon.explain.features.columns import Matrix, check_rows
from tauon.explain.trees.grow import Node, PlainTree
from tauon.metrics.intervals import generator, percentile

__all__ = ["TreeShap", "tree_shap"]


@dataclass(frozen=True)
class TreeShap:
    """Shapley values of rows, in units of the output (probability, or the value)."""

    names: tuple[str, ...]
    values_NFC: NDArray[np.float64]
    base_C: NDArray[np.float64]
    """Output of the tree before any column is known: its mean over the fitted rows, or over the background."""
    sum_error: float
    """Largest |base + sum of the values - the tree's output|: rounding alone."""

    def importance(self, output: int, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """Return the mean absolute value of each column with a bootstrap interval over rows, largest first."""
        size_NF = np.abs(self.values_NFC[:, :, output])
        rng = generator(seed, "importance by TreeSHAP")
        draws = np.stack([size_NF[rng.integers(0, len(size_NF), len(size_NF))].mean(0) for _ in range(resamples)])
        found = []
        for j, name in enumerate(self.names):
            low, high = percentile(draws[:, j], confidence) or (float(size_NF[:, j].mean()),) * 2
            found.append({"name": name, "value": float(size_NF[:, j].mean()), "low": low, "high": high})
        return sorted(found, key=lambda one: -float(one["value"]))

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names), "values": self.values_NFC.tolist(), "base": self.base_C.tolist(), "sum_error": self.sum_error,
        }  # fmt: skip


def tree_shap(tree: PlainTree, rows_NF: Matrix, background_MF: Matrix | None = None) -> TreeShap:
    """Return the Shapley values of each row and output, (N, F, C).

    Without `background_MF` a column that is not known is averaged over the tree's own fitted rows (path-dependent); with it, over those rows
    (interventional). DataError if the values and the base do not sum to the tree's output within 1e-6.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shap 0.51 calls what matplotlib deprecates
            import shap
    except ImportError as err:
        raise MissingExtra("TreeSHAP", "explain") from err

    rows_NF = check_rows(rows_NF, tree.features)
    outputs_NC = tree.predict(rows_NF)
    if len(tree.nodes) == 1:
        zeros = np.zeros((*rows_NF.shape, outputs_NC.shape[1]))
        return TreeShap(tuple(f.name for f in tree.features), zeros, np.array(tree.nodes[0].value), 0.0)
    arrays, encode = _as_arrays(tree)
    background = None if background_MF is None else encode(check_rows(background_MF, tree.features, "the background"))
    explainer = shap.TreeExplainer({"trees": [arrays]}, data=background)
    values = np.asarray(explainer.shap_values(encode(rows_NF), check_additivity=False), dtype=np.float64)
    values_NFC = values if values.ndim == 3 else values[:, :, None]
    base_C = np.atleast_1d(np.asarray(explainer.expected_value, dtype=np.float64))
    error = float(np.abs(base_C + values_NFC.sum(1) - outputs_NC).max())
    if error > 1e-6:
        raise DataError(
            f"Shapley values and base differ from the tree's output by {error:.2g}: this version of shap reads the tree differently"
        )
    return TreeShap(tuple(f.name for f in tree.features), values_NFC, base_C, error)


def _as_arrays(tree: PlainTree) -> tuple[dict[str, NDArray[Any]], Callable[[Matrix], Matrix]]:
    """Return the tree as the arrays that shap reads, and a function that replaces codes by their place.

    The sets of codes that go left are prefixes of one order a feature, so a place in that order and a threshold stand for each set.
    """
    sets: dict[int, list[tuple[int, ...]]] = {}
    for node in tree.nodes:
        if node.codes:
            sets.setdefault(node.feature, []).append(node.codes)
    ordered = {j: sorted(set(found), key=len) for j, found in sets.items()}
    places = {
        j: np.array([sum(code not in s for s in found) for code in range(len(tree.features[j].categories))]) for j, found in ordered.items()
    }

    def encode(rows_NF: Matrix) -> Matrix:
        columns = [places[j][rows_NF[:, j].astype(np.int64)] if j in places else rows_NF[:, j] for j in range(len(tree.features))]
        return np.stack(columns, axis=1).astype(np.float64)

    def threshold(node: Node) -> float:
        return ordered[node.feature].index(node.codes) + 0.5 if node.codes else node.threshold or 0.0

    left = np.array([node.left for node in tree.nodes])
    arrays = {
        "children_left": left, "children_right": np.array([node.right for node in tree.nodes]), "children_default": left,
        "features": np.array([node.feature if node.feature >= 0 else -2 for node in tree.nodes]),
        "thresholds": np.array([threshold(node) for node in tree.nodes], np.float64),
        "values": np.array([node.value for node in tree.nodes], np.float64),
        "node_sample_weight": np.array([node.rows for node in tree.nodes], np.float64),
    }  # fmt: skip
    return arrays, encode
