"""The base class of kinds of data: how the data of a source becomes examples for training, validation and test.

A new kind, here or in another package, is one class: derive from `DataKind`, decorate with `@register("name")`, set the `input_kind` of
its tasks and the `output_kind` of its sources, write `read` and `fit`. Splitting, facts for the report, the fingerprint and the recipe
checks are inherited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tauon.config import Pluggable
from tauon.data.clean.base import FilterConfig, expanded
from tauon.data.clean.rows import clean_sources, kind_of
from tauon.data.clean.run import fingerprint_of
from tauon.data.config import DataConfig
from tauon.data.dedup.examples import Compared, repeats
from tauon.data.files import canonical
from tauon.data.sources.base import SourceConfig
from tauon.data.split import PARTS, Part, split_rows
from tauon.data.splits import DataSplits
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError, Problem, RecipeError
from tauon.types import Dataset

__all__ = ["ChosenRows", "DataKind", "Fitted", "Parts", "Request", "own_data"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What to prepare: recipe section, sources, seed."""

    config: DataConfig
    sources: Mapping[Part, SourceConfig]
    """Source of each part that has its own; train always has one."""
    seed: int
    scale_targets: bool = False
    """Whether the task wants regression targets scaled to order 1."""

    @property
    def own_parts(self) -> list[Part]:
        """Held-out parts that have a source of their own."""
        return [part for part in self.sources if part != "train"]

    @property
    def to_split(self) -> list[Part]:
        """Held-out parts that are taken from the training source."""
        return [part for part in PARTS if part not in self.sources]

    def cleaning(self, kind: str) -> tuple[FilterConfig, ...]:
        """Return the filters of `data.clean`, `default` replaced by those for a kind of data. `RecipeError`: one is for other data."""
        wrong = [(place, one) for place, one in enumerate(self.config.clean) if kind not in one.cleans]
        if wrong:
            raise RecipeError([Problem(f"data.clean.{place}", unfit(one, (kind,))) for place, one in wrong])
        return expanded(self.config.clean, kind)


@dataclass(frozen=True)
class ChosenRows(Generic[T]):
    """The examples of one part: some rows of a source's data. Parts of one source share the data; nothing is copied."""

    data: T
    index: NDArray[np.int64]


Parts = dict[Part, ChosenRows[T]]
"""Every part that exists, in the order of `PARTS`."""


@dataclass
class Fitted:
    """Result of `DataKind.fit`: the data sets, and what is recorded about them."""

    datasets: dict[Part, Dataset]
    content: str
    """sha256 over the raw content of the examples and the part that each belongs to."""
    decides: list[Any]
    """Everything else that decides the examples: settings, fitted values, the seed. Part of the fingerprint. JSON values only."""
    preprocess: dict[str, Any]
    """`DataSplits.preprocess`: everything needed to turn a new raw example into the model's input."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts for the report, in addition to those that every kind has. JSON values only."""
    tokenizer: Tokenizer | None = None


class DataKind(Pluggable, Generic[T], family="data_kind"):
    """A kind of data. T is what its sources return, as a whole: parts taken from one source share one T. Has no state."""

    input_kind: ClassVar[str]
    """The `Task.input_kind` of tasks that train on it."""
    output_kind: ClassVar[str]
    """The `SourceConfig.output_kind` of its sources."""
    words: ClassVar[str]
    """Name for messages: "a time series"."""
    title: ClassVar[str] = ""
    """Name for messages if it differs from `input_kind`."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Keys of the `data` section that only some kinds read, including this one. Each must be able to change the examples."""

    cleans: ClassVar[tuple[str, ...]] = ()
    """What `data.clean` takes its data for (`FilterConfig.cleans`); none: it cannot be cleaned."""

    @classmethod
    def takes(cls, source: SourceConfig) -> bool:
        """Return whether this is the kind for that source, if several have the same `input_kind`. Must not open a file."""
        return True

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        """Yield (key below `data`, message) for each setting that cannot work with this kind of data. Must not open a file."""
        return iter(())

    def prepare(self, request: Request) -> DataSplits:
        """Read, split, fit, record. A kind that does not keep its data in memory overrides this instead of the single steps."""
        whole = {part: self.read(source, part, request) for part, source in request.sources.items()}
        whole, cleaning, cleaned_by = self.clean(whole, request)
        parts, split_facts = self.split(whole, request)
        parts, repeated, decides = self.decontaminate(parts, request)
        fitted = self.fit(parts, request)
        facts = self.facts(fitted, split_facts, request)
        facts |= cleaning | ({"notes": [*cleaning["notes"], *facts.get("notes", [])]} if cleaning else {})
        for name, found in repeated.items():
            facts[name] = [*facts.get(name, []), *found] if isinstance(found, list) else facts.get(name, {}) | found
        fingerprint = hashlib.sha256(canonical([fitted.content, *fitted.decides, *cleaned_by, *decides]).encode()).hexdigest()
        datasets, per_example = fitted.datasets, request.sources["train"].per_example()
        for part, dataset in datasets.items():
            groups = self.groups(parts[part].data)
            if groups is not None and len(dataset) == len(parts[part].index):  # rows of packed conversations belong to no one group
                dataset.groups = groups[parts[part].index]  # type: ignore[attr-defined]
        preprocess = fitted.preprocess | ({"source": per_example} if per_example else {})
        train = datasets["train"]
        return DataSplits(
            train, datasets.get("validation"), datasets.get("test"), train.spec, facts, fingerprint, fitted.tokenizer, preprocess
        )

    def read(self, source: SourceConfig, part: Part, request: Request) -> T:
        """Return all data of the source of a part, with `source.limit` applied. `DataError` names the file and place of data that is unusable."""
        raise NotImplementedError(f"{type(self).__name__} implements neither `read` nor `prepare`")

    def clean(self, whole: Mapping[Part, T], request: Request) -> tuple[dict[Part, T], dict[str, Any], list[Any]]:
        """Return (the data of each source without what `data.clean` rejects, facts, what decides the result); nothing without `data.clean`."""
        config = request.config
        if not self.cleans or not config.clean:
            return dict(whole), {}, []
        tables = {part: self.examples(data) for part, data in whole.items()}
        filters = request.cleaning(kind_of(tables["train"]))
        names = {part: source.kind_ for part, source in request.sources.items()}
        cleaned, facts = clean_sources(
            tables, filters, limit=config.clean_limit, held_out=config.clean_held_out, what=self.records, names=names
        )
        instead = {part: self.with_examples(whole[part], cleaned[part]) for part in whole}
        return instead, facts, [fingerprint_of(filters, config.clean_held_out)]

    records: ClassVar[str] = "examples"
    """Name of its examples in messages on cleaning."""

    def examples(self, data: T) -> Any:
        """Return the `Table`, `Arrays`, `LabelledTexts`, `Signals` or `Series` to clean."""
        return data

    def with_examples(self, data: T, examples: Any) -> T:
        """Return the data with other examples: those that cleaning has left."""
        return examples  # type: ignore[no-any-return]

    def split(self, whole: Mapping[Part, T], request: Request) -> tuple[Parts[T], dict[str, Any]]:
        """Return (every part, facts). Rows of the training source are split in proportion to `strata`; sources of their own are used whole."""
        main = whole["train"]
        times = self.times(main, request)
        rows, facts = split_rows(self.strata(main), request.config.split, request.to_split, self.groups(main), times)
        parts: Parts[T] = {}
        for part in PARTS:
            if part in rows:
                parts[part] = ChosenRows(main, rows[part])
            elif part in whole:
                parts[part] = ChosenRows(whole[part], np.arange(self.count(whole[part]), dtype=np.int64))
        return parts, facts | {"own_parts": request.own_parts}

    def compared(self, data: T, index: NDArray[np.int64]) -> Compared | None:
        """Return what of these examples is compared with those of other parts: texts, images or rows of numbers. None: nothing. A kind that
        returns anything has `decontaminate` among its `reads`.
        """
        return None

    def decontaminate(self, parts: Parts[T], request: Request) -> tuple[Parts[T], dict[str, Any], list[Any]]:
        """Return (the parts, training without what repeats held-out examples if `data.decontaminate.action` is drop; facts; what it decides)."""
        if "decontaminate" not in self.reads:
            return parts, {}, []
        config, train = request.config.decontaminate, parts["train"]
        compared = {part: c for part, rows in parts.items() if (c := self.compared(rows.data, rows.index)) is not None}
        found, facts = repeats(compared, config) if "train" in compared else (np.empty(0, np.int64), {})
        drop = config.action == "drop"
        if not len(found):
            return parts, {"decontamination": {"action": config.action, **facts}} if facts else {}, []
        listed = {"action": "drop" if drop else "report", **facts}
        if not drop:
            near = all(facts[part]["exact"]["train"] == 0 for part in parts if part in facts)
            only_near = "ngram" not in facts and near
            message = (
                f"{len(found):,} of {len(train.index):,} training examples {'are nearly equal to' if only_near else 'repeat'} held-out ones (listed in "
                f"data.json){'' if only_near else ', so that figures on these are too good'}. data.decontaminate.action: drop leaves them out"
            )
            return parts, {"decontamination": listed, "notes" if only_near else "warnings": [message]}, []
        left = np.delete(train.index, found)
        strata = self.strata(train.data)
        classes = np.issubdtype(strata.dtype, np.integer)
        if not len(left) or (classes and len(np.setdiff1d(strata[train.index], strata[left]))):
            raise DataError(
                f"{len(found):,} training examples repeat held-out ones, and without them {'a class has' if len(left) else 'training has'} none left. "
                "Use other held-out data, or set data.decontaminate.action: report"
            )
        line = f"{len(found):,} training examples that repeat held-out ones"
        return parts | {"train": replace(train, index=left)}, {"decontamination": listed, "left_out": {"train": [line]}}, [found.tolist()]

    def strata(self, data: T) -> NDArray[Any]:
        """Return one value per example: if they are class numbers, each part gets a proportional share; if zeros, the split is random."""
        raise NotImplementedError(f"{type(self).__name__} implements neither `strata` nor `split`")

    def count(self, data: T) -> int:
        """Return the number of examples of a source, for the split."""
        return len(self.strata(data))

    def groups(self, data: T) -> NDArray[np.int64] | None:
        """Return the group of each example, if all examples of one person must be in one part. None: every example is its own group."""
        named = getattr(data, "groups", ())
        if not len(named):
            return None
        return np.unique(np.asarray(named, str), return_inverse=True)[1].astype(np.int64)

    def times(self, data: T, request: Request) -> NDArray[Any] | None:
        """Return the moment of each example, if the last ones are held out. None: the split does not depend on time."""
        return None

    def fit(self, parts: Parts[T], request: Request) -> Fitted:
        """Fit preprocessing on the training part alone, and make the data sets."""
        raise NotImplementedError(f"{type(self).__name__} implements neither `fit` nor `prepare`")

    def facts(self, fitted: Fitted, split_facts: dict[str, Any], request: Request) -> dict[str, Any]:
        """Return facts for the report: those that every kind has, updated with `Fitted.facts`. JSON values only."""
        common = {
            "kind": self.kind_, "sources": {p: s.describe() for p, s in request.sources.items()}, "split": split_facts,
            "parts": {p: d.facts for p, d in fitted.datasets.items()}, "content": fitted.content,
        }  # fmt: skip
        more = dict(fitted.facts)
        return common | {"split": split_facts | more.pop("split", {})} | more


def unfit(one: FilterConfig, kinds: Sequence[str]) -> str:
    """Return the message for a filter that is for none of these kinds of data."""
    return f"{one.kind_} cleans {' or '.join(one.cleans)}, but the data are {' or '.join(kinds)}; remove it"


def own_data(parts: Parts[T], request: Request) -> dict[Part, T]:
    """Return the data of each source, by the first part that uses it."""
    return {part: parts[part].data for part in request.sources}


def changed(parts: Parts[T], change: Callable[[T, Part], T]) -> Parts[T]:
    """Return the same rows of `change(data, part)`, which is called once per source, with the first part that uses it."""
    first = {id(rows.data): part for part, rows in reversed(parts.items())}
    done = {of: change(parts[part].data, part) for of, part in first.items()}
    return {part: replace(rows, data=done[id(rows.data)]) for part, rows in parts.items()}
