"""What a kind of data is: how what a source gives becomes examples for training, validation and test.

A new kind, here or in another package, is one class: derive from `DataKind`, decorate with `@register("name")`, say what a task `input_kind` and
a source `output_kind`, write `read` and `fit`. Splitting, the facts of the report, the fingerprint and the rules of the recipe come with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tauon.config import Pluggable
from tauon.data.config import DataConfig
from tauon.data.files import canonical
from tauon.data.sources.base import SourceConfig
from tauon.data.split import PARTS, Part, split_rows
from tauon.data.splits import DataSplits
from tauon.data.tokenizer import Tokenizer
from tauon.types import Dataset

__all__ = ["ChosenRows", "DataKind", "Fitted", "Parts", "Request", "own_data"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is to be prepared."""

    config: DataConfig
    sources: Mapping[Part, SourceConfig]
    """Of each part that has a source of its own; train always has."""
    seed: int
    scale_targets: bool = False
    """Whether the task wants numbers to predict on a scale of order 1."""

    @property
    def own_parts(self) -> list[Part]:
        """Held-out parts that have a source of their own."""
        return [part for part in self.sources if part != "train"]

    @property
    def to_split(self) -> list[Part]:
        """Held-out parts that are to be taken from the training source."""
        return [part for part in PARTS if part not in self.sources]


@dataclass(frozen=True)
class ChosenRows(Generic[T]):
    """The examples of one part: some rows of what a source gave. Parts of one source share it; nothing is copied."""

    data: T
    index: NDArray[np.int64]


Parts = dict[Part, ChosenRows[T]]
"""Every part that there is, in the order of `PARTS`."""


@dataclass
class Fitted:
    """What `DataKind.fit` gives: the data sets, and what is to be recorded of them."""

    datasets: dict[Part, Dataset]
    content: str
    """sha256 over what the examples are made of: their content, and which part each belongs to."""
    decides: list[Any]
    """What else decides the examples: settings, what was fitted, the seed. Goes into the fingerprint. JSON values only."""
    preprocess: dict[str, Any]
    """`DataSplits.preprocess`: all that turns a raw example that comes later into the model's input."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report, beside those that every kind has. JSON values only."""
    tokenizer: Tokenizer | None = None


class DataKind(Pluggable, Generic[T], family="data_kind"):
    """A kind of data. T is what a source of it gives, whole: all parts of it that need not be split share one. Has no state."""

    input_kind: ClassVar[str]
    """What a task that learns from it says it needs (`Task.input_kind`)."""
    output_kind: ClassVar[str]
    """What a source of it says it gives (`SourceConfig.output_kind`)."""
    words: ClassVar[str]
    """The same in words, for messages: "a time series"."""
    title: ClassVar[str] = ""
    """What messages call it where that is not `input_kind`."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Keys of the `data` section that only some kinds read, this one among them. Each must be able to change the examples."""

    @classmethod
    def takes(cls, source: SourceConfig) -> bool:
        """Whether it is the kind for that source, where several have the same `input_kind`; must not open a file."""
        return True

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        """(key below `data`, message) of each setting that cannot work with data of this kind; must not open a file."""
        return iter(())

    def prepare(self, request: Request) -> DataSplits:
        """Read, split, fit, record. A kind that does not hold its data in memory writes this anew, and none of the steps."""
        whole = {part: self.read(source, part, request) for part, source in request.sources.items()}
        parts, split_facts = self.split(whole, request)
        fitted = self.fit(parts, request)
        facts = self.facts(fitted, split_facts, request)
        fingerprint = hashlib.sha256(canonical([fitted.content, *fitted.decides]).encode()).hexdigest()
        datasets, per_example = fitted.datasets, request.sources["train"].per_example()
        preprocess = fitted.preprocess | ({"source": per_example} if per_example else {})
        train = datasets["train"]
        return DataSplits(
            train, datasets.get("validation"), datasets.get("test"), train.spec, facts, fingerprint, fitted.tokenizer, preprocess
        )

    def read(self, source: SourceConfig, part: Part, request: Request) -> T:
        """All that the source of a part gives, `source.limit` observed. `DataError`: by file and place, what cannot be learned from."""
        raise NotImplementedError(f"{type(self).__name__} writes neither `read` nor `prepare`")

    def split(self, whole: Mapping[Part, T], request: Request) -> tuple[Parts[T], dict[str, Any]]:
        """(every part, facts): rows of the training source are dealt in proportion to `strata`; sources of their own are taken whole."""
        main = whole["train"]
        rows, facts = split_rows(self.strata(main), request.config.split, request.to_split, self.groups(main))
        parts: Parts[T] = {}
        for part in PARTS:
            if part in rows:
                parts[part] = ChosenRows(main, rows[part])
            elif part in whole:
                parts[part] = ChosenRows(whole[part], np.arange(self.count(whole[part]), dtype=np.int64))
        return parts, facts | {"own_parts": request.own_parts}

    def strata(self, data: T) -> NDArray[Any]:
        """One value an example: of class numbers each part gets its share, of zeros it is dealt by chance alone."""
        raise NotImplementedError(f"{type(self).__name__} writes neither `strata` nor `split`")

    def count(self, data: T) -> int:
        """How many examples a source gave, which the split deals."""
        return len(self.strata(data))

    def groups(self, data: T) -> NDArray[np.int64] | None:
        """Whose each example is, where all examples of one person must be in one part. None: each is its own."""
        return None

    def fit(self, parts: Parts[T], request: Request) -> Fitted:
        """Learn from the training part alone what turns raw examples into a model's inputs, and make the data sets."""
        raise NotImplementedError(f"{type(self).__name__} writes neither `fit` nor `prepare`")

    def facts(self, fitted: Fitted, split_facts: dict[str, Any], request: Request) -> dict[str, Any]:
        """For the report: what every kind has, and `Fitted.facts` over it. JSON values only."""
        common = {
            "kind": self.kind_, "sources": {p: s.describe() for p, s in request.sources.items()}, "split": split_facts,
            "parts": {p: d.facts for p, d in fitted.datasets.items()}, "content": fitted.content,
        }  # fmt: skip
        more = dict(fitted.facts)
        return common | {"split": split_facts | more.pop("split", {})} | more


def own_data(parts: Parts[T], request: Request) -> dict[Part, T]:
    """What each source gave, by the part that it is of."""
    return {part: parts[part].data for part in request.sources}


def changed(parts: Parts[T], change: Callable[[T, Part], T]) -> Parts[T]:
    """The same rows of `change(data, part)`, which is called once for each source, with the first part that holds it."""
    first = {id(rows.data): part for part, rows in reversed(parts.items())}
    done = {of: change(parts[part].data, part) for of, part in first.items()}
    return {part: replace(rows, data=done[id(rows.data)]) for part, rows in parts.items()}
