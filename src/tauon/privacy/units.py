"""Who is protected: one example, one document, or whoever several rows of a table are of (a patient, a customer).

A unit is drawn as a whole, and of its rows at most `rows_per_unit` take part in a step; their mean gradient is clipped as one. So the promise
is for all that a unit has brought, at the price of fewer units than rows (user-level privacy; McMahan et al. 2018, arXiv:1710.06963).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data import DocumentDataset, MaskedDataset, TokenDataset
from tauon.errors import Problem, RecipeError
from tauon.types import Dataset

__all__ = ["Protected", "Units", "protect", "same_unit"]


class Units:
    """Which rows are whose."""

    def __init__(self, unit_N: NDArray[np.int64], most: int) -> None:
        """`unit_N`: number of the unit of each row, any integers; `most`: rows of a unit in one step."""
        self.most = most
        _, numbered, sizes = np.unique(unit_N, return_inverse=True, return_counts=True)
        self._rows = np.argsort(numbered, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def cut(self) -> int:
        """Units of which only some rows take part in a step."""
        return int((np.diff(self._starts) > self.most).sum())

    def rows(self, units_U: NDArray[np.int64], generator: Callable[[int], np.random.Generator]) -> NDArray[np.int64]:
        """(U, most) numbers of rows, -1 where a unit has no more; of a unit with more of them, so many drawn without replacement by the
        generator of its number: a unit's draw does not depend on which others are there, nor on how many rows these have.
        """
        found = np.full((len(units_U), self.most), -1, np.int64)
        for at, unit in enumerate(units_U.tolist()):
            mine = self._rows[self._starts[unit] : self._starts[unit + 1]]
            if len(mine) > self.most:
                mine = generator(unit).choice(mine, self.most, replace=False)
            found[at, : len(mine)] = mine
        return found


@dataclass(frozen=True)
class Protected:
    """A training part as private training sees it."""

    dataset: Dataset
    """Every example of it is the same in each epoch, but for its own augmentation."""
    units: Units | None
    """None: every example is a unit."""
    name: str
    """What a unit is, in words."""

    def __len__(self) -> int:
        return len(self.dataset) if self.units is None else len(self.units)


def protect(dataset: Dataset, unit: str, most: int) -> Protected:
    """The training part `dataset` with its units. Raises `RecipeError` where it has none of the kind.

    Windows over a text are held still: were they shifted from epoch to epoch, one of them would be in two, and no promise would be for it.
    """
    spec = dataset.spec
    if unit == "example":
        name = f"sequence of {spec.seq_len} tokens" if spec.vocab is not None else "example"
        return Protected(_still(dataset), None, name)
    if unit == "document":
        by_document = _by_document(dataset)
        if by_document is None:
            raise RecipeError(
                [Problem("privacy.unit", "document is for running text, whose windows cut and join documents. Take example.")]
            )
        dataset, units = by_document
        return Protected(dataset, Units(units, most), "document")
    groups: NDArray[np.int64] | None = getattr(dataset, "groups", None)
    if groups is None:
        message = "group needs a column that says whose a row is: a table with data.table.group. Name it, or take example."
        raise RecipeError([Problem("privacy.unit", message)])
    column = str(dataset.facts["group"])
    return Protected(dataset, Units(groups, most), f"{column} (all rows with one value of that column)")


def _still(dataset: Dataset) -> Dataset:
    tokens = dataset.tokens if isinstance(dataset, MaskedDataset) else dataset
    if not isinstance(tokens, TokenDataset):
        return dataset
    return _over(dataset, tokens.without_augmentation())


def _by_document(dataset: Dataset) -> tuple[Dataset, NDArray[np.int64]] | None:
    tokens = dataset.tokens if isinstance(dataset, MaskedDataset) else dataset
    if not isinstance(tokens, TokenDataset):
        return None
    documents = DocumentDataset(tokens.shards, tokens.tokenizer, tokens.seq_len)
    return _over(dataset, documents), documents.document


def _over(dataset: Dataset, tokens: Any) -> Dataset:
    """`dataset`, hiding words of `tokens` where it hides some."""
    if not isinstance(dataset, MaskedDataset):
        return tokens  # type: ignore[no-any-return]
    masked = copy.copy(dataset)
    masked.tokens = tokens
    return masked


def same_unit(one: str, other: str) -> bool:
    """Whether a budget for one of them counts what runs with the other tell. Sequences of any length are examples."""

    def kind(name: str) -> str:
        return "example" if name.startswith("sequence of ") else name

    return kind(one) == kind(other)
