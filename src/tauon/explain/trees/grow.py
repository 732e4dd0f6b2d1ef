"""A decision tree as plain data, grown by scikit-learn on the outputs of a model.

The tree is fitted on outputs as numbers (probabilities or values) with squared error: for probabilities that is the Gini impurity of soft
labels, so a row that the model is unsure about pulls less than one that it is sure about. Categories are ordered by their mean output, and a
split of that order is a set of categories (Breiman et al. 1984, section 4.2: for two classes and for values no better set exists; for
more classes the first principal component of the means is used, Coppersmith et al. 1999). Thresholds are the shortest decimals that part the
fitted rows the same way. Does not ask a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import MissingExtra
from tauon.explain.features.columns import Condition, Feature, Matrix, shortest_between

__all__ = ["Node", "PlainTree", "grow_tree"]


@dataclass(frozen=True)
class Node:
    """One node. A leaf has feature -1."""

    depth: int
    rows: int
    """Fitted rows in it, sampled ones included."""
    training_rows: int
    value: tuple[float, ...]
    """Mean output of its rows: shares of the classes, or the value."""
    feature: int = -1
    threshold: float | None = None
    """Numbers up to it go left."""
    codes: tuple[int, ...] = ()
    """Categories that go left."""
    left: int = -1
    right: int = -1


@dataclass(frozen=True)
class PlainTree:
    """Nodes in depth-first order; the root is node 0."""

    nodes: tuple[Node, ...]
    features: tuple[Feature, ...]

    @property
    def depth(self) -> int:
        return max(node.depth for node in self.nodes)

    @property
    def leaves(self) -> tuple[int, ...]:
        return tuple(i for i, node in enumerate(self.nodes) if node.feature < 0)

    def apply(self, rows_NF: Matrix, depth: int | None = None) -> NDArray[np.int64]:
        """Return the node that each row ends in, (N,); with `depth`, in the tree cut off at that depth."""
        at_N = np.zeros(len(rows_NF), np.int64)
        for i, node in enumerate(self.nodes):  # parents come first
            if node.feature < 0 or (depth is not None and node.depth >= depth):
                continue
            rows = np.flatnonzero(at_N == i)
            at_N[rows] = np.where(self.goes_left(node, rows_NF[rows]), node.left, node.right)
        return at_N

    def goes_left(self, node: Node, rows_NF: Matrix) -> NDArray[np.bool_]:
        column = rows_NF[:, node.feature]
        left: NDArray[np.bool_] = np.isin(column, node.codes) if node.threshold is None else column <= node.threshold
        return left

    def predict(self, rows_NF: Matrix, depth: int | None = None) -> Matrix:
        """Return the tree's outputs, (N, C)."""
        values: Matrix = np.array([node.value for node in self.nodes])
        return values[self.apply(rows_NF, depth)]

    def split_of(self, node: Node, left: bool) -> Condition:
        """Return the condition under which a row goes to the left or to the right."""
        if node.threshold is not None:
            return Condition(node.feature, high=node.threshold) if left else Condition(node.feature, low=node.threshold)
        every = range(len(self.features[node.feature].categories))
        return Condition(node.feature, codes=tuple(code for code in every if (code in node.codes) == left))

    def conditions_to(self, target: int) -> tuple[Condition, ...]:
        """Return the conditions of the path to a node, one for each feature, in the order in which features come first."""
        merged: dict[int, Condition] = {}
        at = 0
        while at != target:
            node = self.nodes[at]
            left = node.right < 0 or target < node.right  # depth-first order: the left subtree comes before the right one
            new = self.split_of(node, left)
            old = merged.get(node.feature)
            if old is not None:
                codes = tuple(code for code in old.codes if code in new.codes)
                new = Condition(node.feature, max(old.low, new.low), min(old.high, new.high), codes)
            merged[node.feature] = new
            at = node.left if left else node.right
        return tuple(merged.values())

    def to_json(self) -> dict[str, Any]:
        return {"nodes": [asdict(node) for node in self.nodes], "features": [feature.to_json() for feature in self.features]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> PlainTree:
        nodes = [Node(**(node | {"value": tuple(node["value"]), "codes": tuple(node["codes"])})) for node in plain["nodes"]]
        return cls(tuple(nodes), tuple(Feature.from_json(feature) for feature in plain["features"]))


def grow_tree(
    rows_NF: Matrix, outputs_NC: Matrix, features: Sequence[Feature], *, depth: int, training_rows: int | None = None,
    min_leaf: int = 5, seed: int = 0,
) -> PlainTree:  # fmt: skip
    """Fit a tree of at most `depth` levels. The first `training_rows` rows are counted as training rows, the others as sampled ones."""
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError as err:
        raise MissingExtra("a surrogate tree", "explain") from err

    ranks = [_ranks(rows_NF[:, j], outputs_NC, f) if f.kind == "category" else None for j, f in enumerate(features)]
    columns = [rows_NF[:, j] if r is None else r[rows_NF[:, j].astype(np.int64)] for j, r in enumerate(ranks)]
    encoded_NF = np.stack(columns, axis=1).astype(np.float32)  # scikit-learn splits float32
    fitted = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=min(min_leaf, max(1, len(rows_NF) // 2)), random_state=seed)
    fitted.fit(encoded_NF, outputs_NC)
    nodes = _plain_nodes(fitted.tree_, encoded_NF, rows_NF, ranks, len(rows_NF) if training_rows is None else training_rows)
    return PlainTree(tuple(nodes), tuple(features))


def _ranks(codes_N: Matrix, outputs_NC: Matrix, feature: Feature) -> Matrix:
    """Return the place of each code when codes are ordered by mean output; codes without rows are placed at the overall mean."""
    codes = codes_N.astype(np.int64)
    counts = np.bincount(codes, minlength=len(feature.categories))
    sums = np.stack([np.bincount(codes, column, minlength=len(feature.categories)) for column in outputs_NC.T], axis=1)
    mean_C = outputs_NC.mean(0)
    shifts = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None] - mean_C, 0.0)
    _, _, axes = np.linalg.svd(np.sqrt(counts)[:, None] * shifts, full_matrices=False)
    axis = axes[0] * (1 if axes[0][np.argmax(np.abs(axes[0]))] > 0 else -1)
    ranks = np.empty(len(feature.categories))
    ranks[np.argsort(shifts @ axis, kind="stable")] = np.arange(len(feature.categories))
    return ranks


def _plain_nodes(
    fitted: Any, encoded_NF: NDArray[np.float32], rows_NF: Matrix, ranks: Sequence[Matrix | None], training_rows: int
) -> list[Node]:
    """Nodes of scikit-learn's tree, which are in depth-first order, with readable splits."""
    nodes: list[Node] = []
    members = {0: np.arange(len(rows_NF))}
    depths = {0: 0}
    for i in range(fitted.node_count):
        rows = members.pop(i)
        value = tuple(float(v) for v in fitted.value[i].reshape(-1))
        counts: dict[str, Any] = {"depth": depths[i], "rows": len(rows), "training_rows": int((rows < training_rows).sum())}
        left, right, column = int(fitted.children_left[i]), int(fitted.children_right[i]), int(fitted.feature[i])
        if left < 0:
            nodes.append(Node(**counts, value=value))
            continue
        goes_left = encoded_NF[rows, column] <= fitted.threshold[i]
        members |= {left: rows[goes_left], right: rows[~goes_left]}
        depths |= {left: depths[i] + 1, right: depths[i] + 1}
        rank = ranks[column]
        threshold: float | None = None
        codes: tuple[int, ...] = ()
        if rank is None:
            threshold = shortest_between(float(rows_NF[members[left], column].max()), float(rows_NF[members[right], column].min()))
        else:
            codes = tuple(int(code) for code in np.flatnonzero(rank <= math.floor(fitted.threshold[i])))
        nodes.append(Node(**counts, value=value, feature=column, threshold=threshold, codes=codes, left=left, right=right))
    return nodes
