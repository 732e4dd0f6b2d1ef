"""Splits for the reference models of an audit, which train on random halves of all examples, including held-out ones; and examples
without augmentation, as an attacker would query a model.

A half is a pure function of (seed, number). Numbers come in pairs: half 2k + 1 is the complement of half 2k, so that with an even number
of reference models exactly half were trained on each example (as in Carlini et al. 2022, arXiv:2112.03570). Preprocessing fitted on the
training part (statistics, vocabulary) is reused: an attacker has it from the checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count
from tauon.data.arrays import ArrayDataset
from tauon.data.counter import key
from tauon.data.masking import MaskedDataset
from tauon.data.order import permute
from tauon.data.splits import DataSplits
from tauon.data.tokens import TokenDataset
from tauon.errors import Problem, RecipeError
from tauon.types import Batch, Dataset

__all__ = ["ChosenExamples", "HalfConfig", "half_of", "pool_of", "shadow_split", "without_augmentation"]


class HalfConfig(Config):
    """Train on a random half of the training and the held-out examples: reference models of an audit (`tauon audit`)."""

    number: Count = Field(ge=0, le=9999)
    """Number of the half; 2k + 1 is the complement of 2k."""
    seed: Count = Field(0, ge=0)
    """Seed of all halves of one audit."""


def half_of(n: int, config: HalfConfig) -> NDArray[np.bool_]:
    """Return which of n examples reference model `config.number` trains on: n / 2 of them, rounded up or down."""
    order = permute(np.arange(n, dtype=np.int64), n, key(config.seed, "half", config.number // 2))
    first: NDArray[np.bool_] = order < n // 2
    return first if config.number % 2 == 0 else ~first


def pool_of(splits: DataSplits) -> tuple[Dataset, Dataset, str]:
    """Return (training part, held-out part, its name): the examples of an audit. The test part if there is one, else validation."""
    held, name = (splits.test, "test") if splits.test is not None else (splits.validation, "validation")
    if held is None:
        message = "no data is held out, so there are no non-members to compare training examples with. Hold some out: data.split.test=10%."
        raise RecipeError([Problem("data.split", message)])
    return splits.train, held, name


def shadow_split(splits: DataSplits, config: HalfConfig) -> DataSplits:
    """Return the splits of reference model `config.number`: half of training and held-out examples to train on, the others to test."""
    train, held, _ = pool_of(splits)
    order = getattr(train, "order", None)
    if order is not None:
        message = f"{order.words}, but a reference model trains on half of the examples, each as often as the others. Remove it"
        raise RecipeError([Problem(order.setting, message + (", or set shuffle." if order.setting == "data.sampling" else "."))])
    if isinstance(train, (TokenDataset, MaskedDataset)):
        parts = [without_augmentation(train), without_augmentation(held)]  # shifted windows would reach into left-out ones
    elif isinstance(train, ArrayDataset) and isinstance(held, ArrayDataset):
        parts = [train, train.like(held)]
    else:
        parts = [train, held]
    for part in (train, held):
        tokens: Any = getattr(part, "tokens", part)
        if isinstance(tokens, TokenDataset):
            tokens.shards.verify()
    mine = half_of(len(train) + len(held), config)
    fingerprint = hashlib.sha256(f"{splits.fingerprint}/half/{config.seed}/{config.number}".encode()).hexdigest()
    chosen = ChosenExamples(parts, np.flatnonzero(mine))
    facts = splits.facts | {"half": {"number": config.number, "seed": config.seed, "examples": len(chosen)}}
    left = ChosenExamples([without_augmentation(train), without_augmentation(held)], np.flatnonzero(~mine))
    return replace(splits, train=chosen, test=left, facts=facts, fingerprint=fingerprint)


def without_augmentation(dataset: Dataset) -> Dataset:
    """Return the same examples without augmentation, mixing or weights; windows of text contiguous from the start."""
    own = getattr(type(dataset), "without_augmentation", None)  # looked up on the class: wrappers forward missing attributes
    if own is not None:
        plain: Dataset = own(dataset)
        return plain
    shown: Any = copy.copy(dataset)
    for name in ("order", "mixer"):
        if hasattr(shown, name):
            setattr(shown, name, None)
    return shown  # type: ignore[no-any-return]


class ChosenExamples:
    """A subset of the examples of one or several data sets, renumbered. Epochs are those of the original data sets."""

    def __init__(self, parts: Sequence[Dataset], rows: NDArray[np.int64]) -> None:
        """`rows`: numbers in the concatenated parts."""
        self.parts, self.rows = list(parts), np.asarray(rows, np.int64)
        self._edges = np.cumsum([0, *(len(p) for p in parts)])
        self.spec = parts[0].spec
        self.facts: dict[str, Any] = {k: v for k, v in parts[0].facts.items() if k in ("seq_len", "every")} | {"examples": len(rows)}
        self.mixer = getattr(parts[0], "mixer", None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        """Forward other attributes (a tokenizer, the bytes of tokens) to the first part."""
        if name.startswith("_") or name in ("parts", "order", "shards", "tokens", "groups"):
            raise AttributeError(name)
        return getattr(self.parts[0], name)

    def answers(self, row: int) -> list[list[str]] | None:
        """For conversations: the text that the loss of a row must cover."""
        part, at = self._place(np.array([row]))
        found: list[list[str]] | None = self.parts[int(part[0])].answers(int(at[0]))  # type: ignore[attr-defined]
        return found

    def _place(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (part, example in it) of each number."""
        rows = self.rows[index]
        part = np.searchsorted(self._edges, rows, side="right") - 1
        return part, rows - self._edges[part]

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the examples `index`, each from its own data set."""
        import torch

        index = np.asarray(index, np.int64)
        part, at = self._place(index)
        found = [self.parts[p].batch(at[part == p], epoch=epoch) for p in np.unique(part)]
        whole = joined(found)
        back = np.empty(len(index), np.int64)
        back[np.argsort(part, kind="stable")] = np.arange(len(index))
        order = torch.from_numpy(back)
        picked: dict[str, Any] = {f.name: None if (v := getattr(whole, f.name)) is None else v[order] for f in fields(Batch)}
        return Batch(**(picked | {"index": torch.from_numpy(index.copy())}))


def joined(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches; segments that only some have are zeros in the others (a row that is one document)."""
    import torch

    if len(parts) == 1:
        return parts[0]
    if any(p.segments is not None for p in parts):
        parts = [p if p.segments is not None else replace(p, segments=torch.zeros(p.weights.shape, dtype=torch.int32)) for p in parts]
    columns: dict[str, Any] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Batch)}
    whole: dict[str, Any] = {name: None if any(v is None for v in values) else torch.cat(values) for name, values in columns.items()}
    return Batch(**whole)
