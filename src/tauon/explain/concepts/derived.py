"""Concepts that need no examples of their own: which rows of a table, or examples of a data set, have a property that a person can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.features.columns import Condition, Feature, Matrix

__all__ = ["concepts_from_columns", "concepts_from_labels"]

Mask = NDArray[np.bool_]


def concepts_from_columns(readable_NK: Matrix, features: Sequence[Feature], *, least: int = 20) -> dict[str, Mask]:
    """Return concepts of a table: of a number "above the median", of a flag "is yes", of a category each frequent value.

    Args:
        readable_NK: rows, as people read them.
        features: of `describe_features`.
        least: fewest rows with a concept, and without; what has fewer is left out.

    >>> from tauon.explain.features import describe_features
    >>> rows = np.array([[20.0, 0.0], [30.0, 1.0], [40.0, 0.0], [50.0, 1.0]])
    >>> {name: mask.tolist() for name, mask in concepts_from_columns(rows, describe_features(rows, ["age", "paid"]), least=1).items()}
    {'age is above 35': [False, False, True, True], 'paid is yes': [False, True, False, True]}
    """
    found = {}
    for j, feature in enumerate(features):
        if feature.kind == "category":
            conditions = [Condition(j, codes=(code,)) for code in feature.possible_codes()]
        else:
            conditions = [Condition(j, low=0.5 if feature.kind == "flag" else float(np.median(readable_NK[:, j])))]
        for condition in conditions:
            mask = condition.mask(readable_NK)
            if least <= mask.sum() <= len(mask) - least:
                name = f"{feature.name} is yes" if feature.kind == "flag" and not feature.categories else condition.text(features)
                found[name] = mask
    return found


def concepts_from_labels(labels_N: NDArray[Any], names: Sequence[str] = (), *, least: int = 20) -> dict[str, Mask]:
    """Return a concept for each class that occurs: examples of the class. They show which classes a model treats alike.

    >>> {name: mask.tolist() for name, mask in concepts_from_labels(np.array([0, 1, 1]), ["cat", "dog"], least=1).items()}
    {'cat': [True, False, False], 'dog': [False, True, True]}
    """
    masks = {int(c): labels_N == c for c in np.unique(labels_N)}
    return {
        names[c] if c < len(names) else f"class {c}": mask for c, mask in masks.items() if least <= mask.sum() <= len(mask) - least
    }  # fmt: skip
