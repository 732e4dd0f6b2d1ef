"""Reference models of an audit train on random halves of all examples, those that were held out included; and an example as it is,
without augmentation: what an attacker would ask a model about.

A half is a pure function of (seed, number). Numbers come in pairs, 2k and 2k + 1: the second is what the first leaves out, so that of an
even number of reference models exactly half were trained on each example (as in Carlini et al. 2022, arXiv:2112.03570). What was fitted
on the training part (statistics, vocabulary) stays: whoever attacks a model has it from the checkpoint.
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
    """Which half; 2k + 1 is what 2k leaves out."""
    seed: Count = Field(0, ge=0)
    """Decides all halves of one audit."""


def half_of(n: int, config: HalfConfig) -> NDArray[np.bool_]:
    """Which of n examples reference model `config.number` trains on; n / 2 of them, rounded one way or the other."""
    order = permute(np.arange(n, dtype=np.int64), n, key(config.seed, "half", config.number // 2))
    first: NDArray[np.bool_] = order < n // 2
    return first if config.number % 2 == 0 else ~first


def pool_of(splits: DataSplits) -> tuple[Dataset, Dataset, str]:
    """(training part, held-out part, its name): the examples of an audit. Test where there is one, as in evaluation, else validation."""
    held, name = (splits.test, "test") if splits.test is not None else (splits.validation, "validation")
    if held is None:
        message = "nothing is held out, so there is nothing to tell the training examples from. Hold some out: data.split.test=10%."
        raise RecipeError([Problem("data.split", message)])
    return splits.train, held, name


def shadow_split(splits: DataSplits, config: HalfConfig) -> DataSplits:
    """The splits of reference model `config.number`: half of training and held-out examples to train on, the others to test."""
    train, held, _ = pool_of(splits)
    if getattr(train, "order", None) is not None:
        raise RecipeError(
            [Problem("data.sampling", "balanced draws classes by all rows, and half of them are left out here. Take shuffle.")]
        )
    if isinstance(train, (TokenDataset, MaskedDataset)):
        parts = [without_augmentation(train), without_augmentation(held)]  # windows that shift would reach into those that are left out
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
    """The same examples as they are: not augmented, not mixed, every weight one, windows of text side by side from the start on."""
    own = getattr(type(dataset), "without_augmentation", None)  # of the class: what wraps a data set passes on what it does not have
    if own is not None:
        plain: Dataset = own(dataset)
        return plain
    shown: Any = copy.copy(dataset)
    for name in ("order", "mixer"):
        if hasattr(shown, name):
            setattr(shown, name, None)
    return shown  # type: ignore[no-any-return]


class ChosenExamples:
    """Some examples of one or several data sets, numbered anew. Example i of epoch e is what its own data set says."""

    def __init__(self, parts: Sequence[Dataset], rows: NDArray[np.int64]) -> None:
        """`rows`: numbers in the parts one behind the other."""
        self.parts, self.rows = list(parts), np.asarray(rows, np.int64)
        self._edges = np.cumsum([0, *(len(p) for p in parts)])
        self.spec = parts[0].spec
        self.facts: dict[str, Any] = {k: v for k, v in parts[0].facts.items() if k in ("seq_len", "every")} | {"examples": len(rows)}
        self.mixer = getattr(parts[0], "mixer", None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        """What a data set of its kind offers besides (a tokenizer, the bytes of tokens): the first part's."""
        if name.startswith("_") or name in ("parts", "order", "shards", "tokens", "groups"):
            raise AttributeError(name)
        return getattr(self.parts[0], name)

    def answers(self, row: int) -> list[list[str]] | None:
        """Of conversations: what the loss of a row must cover."""
        part, at = self._place(np.array([row]))
        found: list[list[str]] | None = self.parts[int(part[0])].answers(int(at[0]))  # type: ignore[attr-defined]
        return found

    def _place(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part, example in it) of each number."""
        rows = self.rows[index]
        part = np.searchsorted(self._edges, rows, side="right") - 1
        return part, rows - self._edges[part]

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The examples `index`, each as its own data set gives it."""
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
    """Batches one behind the other; segments that only some have are zeros in the others (a row that is one document)."""
    import torch

    if len(parts) == 1:
        return parts[0]
    if any(p.segments is not None for p in parts):
        parts = [p if p.segments is not None else replace(p, segments=torch.zeros(p.weights.shape, dtype=torch.int32)) for p in parts]
    columns: dict[str, Any] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Batch)}
    whole: dict[str, Any] = {name: None if any(v is None for v in values) else torch.cat(values) for name, values in columns.items()}
    return Batch(**whole)
