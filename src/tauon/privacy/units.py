"""The unit of privacy: one example, one document, or all rows of a table that belong to one person (a patient, a customer).

Units are sampled, and at most `rows_per_unit` rows of a unit take part in a step; their mean gradient is clipped as one. The guarantee covers
all data of a unit, and there are fewer units than rows (user-level privacy; McMahan et al. 2018, arXiv:1710.06963).
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
    """Assignment of rows to units."""

    def __init__(self, unit_N: NDArray[np.int64], most: int) -> None:
        """`unit_N`: unit of each row, any integers; `most`: maximum rows of a unit in one step."""
        self.most = most
        _, numbered, sizes = np.unique(unit_N, return_inverse=True, return_counts=True)
        self._rows = np.argsort(numbered, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def cut(self) -> int:
        """Number of units with more than `most` rows."""
        return int((np.diff(self._starts) > self.most).sum())

    def rows(self, units_U: NDArray[np.int64], generator: Callable[[int], np.random.Generator]) -> NDArray[np.int64]:
        """(U, most) row indices, -1 where a unit has fewer rows. From a unit with more rows, `most` are sampled without replacement with the
        generator of that unit, so that the sample does not depend on other units.
        """
        rows_UM = np.full((len(units_U), self.most), -1, np.int64)
        for at, unit in enumerate(units_U.tolist()):
            rows = self._rows[self._starts[unit] : self._starts[unit + 1]]
            if len(rows) > self.most:
                rows = generator(unit).choice(rows, self.most, replace=False)
            rows_UM[at, : len(rows)] = rows
        return rows_UM


@dataclass(frozen=True)
class Protected:
    """A training split with its units."""

    dataset: Dataset
    """An example is the same in each epoch, except for its augmentation."""
    units: Units | None
    """None: every example is a unit."""
    name: str
    """Description of a unit, for the report."""

    def __len__(self) -> int:
        return len(self.dataset) if self.units is None else len(self.units)


def protect(dataset: Dataset, unit: str, most: int) -> Protected:
    """Return the training split `dataset` with its units. Raises `RecipeError` if the data has no units of this kind.

    Windows over a text do not shift between epochs: otherwise a token would be in several windows, and no guarantee would cover a window.
    """
    spec = dataset.spec
    if unit == "example":
        name = f"sequence of {spec.seq_len} tokens" if spec.vocab is not None else "example"
        return Protected(_without_shift(dataset), None, name)
    if unit == "document":
        by_document = _by_document(dataset)
        if by_document is None:
            raise RecipeError(
                [Problem("privacy.unit", "document needs plain text data (data.source of texts); this data has no documents. Set example.")]
            )
        dataset, units = by_document
        return Protected(dataset, Units(units, most), "document")
    groups: NDArray[np.int64] | None = getattr(dataset, "groups", None)
    if groups is None:
        message = (
            "group needs a column that identifies the person of each row. Set data.table.group (data.source.group for texts, images and "
            "recordings), or set privacy.unit=example."
        )
        raise RecipeError([Problem("privacy.unit", message)])
    column = str(dataset.facts.get("group", "data.source.group"))
    return Protected(dataset, Units(groups, most), f"{column} (all rows with one value of that column)")


def _without_shift(dataset: Dataset) -> Dataset:
    tokens = dataset.tokens if isinstance(dataset, MaskedDataset) else dataset
    if not isinstance(tokens, TokenDataset):
        return dataset
    return _over(dataset, tokens.without_augmentation())


def _by_document(dataset: Dataset) -> tuple[Dataset, NDArray[np.int64]] | None:
    tokens = dataset.tokens if isinstance(dataset, MaskedDataset) else dataset
    if not isinstance(tokens, TokenDataset):
        return None
    if tokens.order is not None:
        raise RecipeError([Problem(tokens.order.setting, f"{tokens.order.words}; no privacy guarantee covers this. Use one source.")])
    documents = DocumentDataset(tokens.shards, tokens.tokenizer, tokens.seq_len)
    return _over(dataset, documents), documents.document


def _over(dataset: Dataset, tokens: Any) -> Dataset:
    """`dataset` over `tokens`: masked, if `dataset` is a masked one."""
    if not isinstance(dataset, MaskedDataset):
        return tokens  # type: ignore[no-any-return]
    masked = copy.copy(dataset)
    masked.tokens = tokens
    return masked


def same_unit(one: str, other: str) -> bool:
    """Whether runs with these two units can share one budget. Sequences of any length are examples."""

    def kind(name: str) -> str:
        return "example" if name.startswith("sequence of ") else name

    return kind(one) == kind(other)
