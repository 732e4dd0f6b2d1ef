"""Balanced order of examples, class weights in the loss, and the numbering of classes. Pure functions of the targets.

Balanced order: the endless stream consists of rounds of one example of each class, the classes of a round in shuffled order; each class
repeats its own examples in shuffled order. Like the plain order it is a pure function of the position, with no state. An example's epoch
is then that of its class, so that a repeated example gets a new augmentation.

Class weights are scikit-learn's "balanced": rows / (classes * rows of the class), whose mean over the rows is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import key
from tauon.data.order import example_at, permute
from tauon.data.sources.base import Arrays, Table
from tauon.errors import DataError

__all__ = ["BalancedOrder", "class_weights", "reorder_classes"]

T = TypeVar("T", Arrays, Table)


class BalancedOrder:
    """`at(position)` returns (epoch, example): every round of `classes` consecutive positions has one example of each class."""

    setting, words = "data.sampling", "chooses examples by class"

    def __init__(self, targets: NDArray[np.int64], seed: int) -> None:
        """`targets` are the classes of the examples, (N); classes without an example are left out."""
        present = np.unique(targets)
        self.members = [np.flatnonzero(targets == c) for c in present]
        self.seed = seed

    def at(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (epoch of the class, example) of each position, in any order."""
        C = len(self.members)
        turn, place = position // C, position % C
        epoch, example = np.empty_like(position), np.empty_like(position)
        which = np.empty_like(position)
        for t in np.unique(turn).tolist():
            here = turn == t
            which[here] = permute(place[here], C, key(self.seed, "class order", t))
        for c, members in enumerate(self.members):
            here = which == c
            if here.any():
                seed = key(self.seed, "class", c)
                epoch[here], at = example_at(turn[here], len(members), seed)
                example[here] = members[at]
        return epoch, example


def class_weights(targets: NDArray[np.int64], asked: str | Sequence[float], labels: Sequence[str]) -> NDArray[np.float32]:
    """Return the weight of each class, (C) float32: as set, or by how rare the class is among `targets`.

    >>> class_weights(np.array([0, 0, 0, 1]), "balanced", ("a", "b")).tolist()
    [0.6666666865348816, 2.0]
    """
    classes = len(labels)
    if not isinstance(asked, str):
        if len(asked) != classes:
            raise DataError(f"data.class_weights: {len(asked)} weights for {classes} classes ({', '.join(labels[:8])}). Give one per class")
        return np.array(asked, np.float32)
    counts = np.bincount(targets, minlength=classes)
    there = np.maximum(counts, 1)
    return np.where(counts > 0, len(targets) / (int((counts > 0).sum()) * there), 0.0).astype(np.float32)


def reorder_classes(table: T, order: tuple[str, ...]) -> T:
    """Renumber the classes in the order of `data.label_order`; unchanged if it is empty."""
    if not order:
        return table
    if not table.classes:
        raise DataError("data.label_order: the targets are numbers, not classes. Remove it")
    if sorted(order) != sorted(table.label_names):
        odd = next(iter(set(order) ^ set(table.label_names)), order[0])
        raise DataError(
            f"data.label_order: {odd!r} is not in both the setting and the data ({', '.join(table.label_names)}). List each class once"
        )
    number = np.array([order.index(name) for name in table.label_names], np.int64)
    return replace(table, targets=number[table.targets], label_names=order)
