"""What a data source is: something that yields documents (text), one table of features and targets (arrays), or one series.

A new source, here or in another package, is one class: derive from `SourceConfig`, decorate with `@register("name")`, set
`provides`, write `documents`, `arrays` or `series`; of a new kind of data, the method that its `DataKind.read` calls. Splitting, limits,
tokenising, normalising and caching are not its business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, Registered, dump
from tauon.data.files import canonical, sha256_file
from tauon.data.labels import class_numbers
from tauon.data.numbers import NumberForm
from tauon.data.pixel_range import PixelRange
from tauon.errors import DataError

__all__ = ["Arrays", "Conversation", "Document", "Kind", "LabelledTexts", "Message", "Pair", "Series", "Signals", "SourceConfig", "Table"]

Kind = str
"""What a source gives: text, arrays, series, signals, labelled-text, chat, pairs, or what an installed kind of data is given."""


@dataclass(frozen=True)
class Document:
    """One text that belongs together. Attention never leaves it, and the split never divides it (but by position)."""

    text: str
    name: str


@dataclass(frozen=True)
class LabelledTexts:
    """N texts, each with a class."""

    texts: Sequence[str]
    targets: NDArray[np.int64]
    """Class of each, (N)."""
    label_names: tuple[str, ...]
    places: Sequence[str]
    """Where each is (file and line), for messages."""
    labels: Sequence[Any] = ()
    """The labels as they were found, where `targets` were made of them."""
    label: str = ""
    """The column of labels, for messages."""

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int) -> LabelledTexts:
        """The first n."""
        return replace(self, texts=self.texts[:n], targets=self.targets[:n], places=self.places[:n], labels=self.labels[:n])


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says."""

    role: str
    """system, user, input (what an instruction is about), assistant, or another that the chat template knows."""
    content: str
    learn: bool = True
    """Of the assistant's: whether the loss covers it (OpenAI's `weight`)."""


@dataclass(frozen=True)
class Conversation:
    """Messages in turn."""

    messages: tuple[Message, ...]
    place: str
    """Where it is (file and number), for messages."""
    ignored: tuple[str, ...] = ()
    """Keys of the row that were not read."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation, of which one was preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    place: str
    ignored: tuple[str, ...] = ()
    """Keys of the row that were not read."""


@dataclass(frozen=True)
class Arrays:
    """N examples. Targets decide the task: int64 (N) are classes, floats (N) or (N, C) are values, in float64."""

    features: NDArray[Any]
    """(N, F) of a table, (N, channels, height, width) of images; uint8, float32, or float64 where the source has it."""
    targets: NDArray[Any]
    feature_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    """Names of the classes in index order, or of the target columns."""
    left_out: tuple[str, ...] = ()
    """What was found and not taken, with the reason."""
    warnings: tuple[str, ...] = ()
    """What a person should be told of it."""
    pixel_range: PixelRange | Literal["bits", "values"] | None = None
    """Of pictures deeper than 8 bits, whose features are their values as they are: how they become numbers from 0 to 255; measured over the
    training part by the bits in use (whole numbers) or by the values."""
    pixels: bool = False
    """Whether features are pictures from 0 (black) to 255 (white), though no bytes."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def classes(self) -> bool:
        """Whether the targets are class numbers."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))

    def rows(self, index: NDArray[np.int64] | slice) -> Arrays:
        return replace(self, features=self.features[index], targets=self.targets[index])


@dataclass(frozen=True)
class Table:
    """N rows of a table as they were found: numbers, words, nothing. What is a number and what a category is decided later, by
    the training rows alone (`data/columns.py`).
    """

    columns: dict[str, Sequence[Any] | NDArray[np.float64]]
    """Values of each column, by name; None: missing. Once they are read as numbers (`table_numbers.py`), an array, with NaN."""
    targets: NDArray[Any]
    """As those of `Arrays`."""
    label_names: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    """Columns that were declared to be categories."""
    places: Sequence[str] = ()
    """Where each row is (file and line), for messages."""
    label: str = ""
    """The column to predict, for messages."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value."""
    labels: Sequence[Any] = ()
    """The labels as they were found, where `targets` were made of them; then all parts are decided on together (`labels.py`)."""
    target: Literal["auto", "class", "value"] = "auto"
    """What the labels were said to be."""
    numbers: NumberForm | None = None
    """How numbers are written, where that was said."""
    left_out: tuple[str, ...] = ()
    """What was found and not taken, with the reason."""
    notes: tuple[str, ...] = ()
    """What a person should be told of how it was read."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> bool:
        """Whether the targets are class numbers."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))


@dataclass(frozen=True)
class Signals:
    """N waveforms of one sampling rate, each as long as it is."""

    waves: Sequence[NDArray[np.float32]]
    """Samples in [-1, 1], one dimension each."""
    rate: int
    """Samples a second."""
    names: Sequence[str]
    """Where each comes from, for messages."""
    targets: NDArray[np.int64] | None = None
    """Class of each, or none where there are transcripts."""
    label_names: tuple[str, ...] = ()
    transcripts: Sequence[str] = ()
    """What is said in each."""
    left_out: tuple[str, ...] = ()
    """What was found and not taken, with the reason."""

    def __len__(self) -> int:
        return len(self.waves)

    def first(self, n: int) -> Signals:
        """The first n."""
        targets = None if self.targets is None else self.targets[:n]
        return replace(self, waves=self.waves[:n], names=self.names[:n], targets=targets, transcripts=self.transcripts[:n])


@dataclass(frozen=True)
class Series:
    """One multivariate series: N moments in order, C columns."""

    times: NDArray[np.datetime64]
    """(N), datetime64[s] (or of a finer unit, where a fraction of a second is needed), strictly ascending, without gaps."""
    values: NDArray[np.float64]
    """(N, C), finite; the columns to predict first."""
    names: tuple[str, ...]
    """Of the columns."""
    targets: int
    """How many of them, from the first, are predicted; the others are only read."""
    step: str
    """Time between two moments, in words: 1 h, 15 min, 1 month."""
    season: int
    """Steps after which it is likely to repeat: of hours 24, of days 7."""
    filled: int = 0
    """Moments and values that were missing and were filled with what came before."""
    zoned: bool = False
    """Whether the dates had a zone, and were brought to UTC."""
    left_out: tuple[str, ...] = ()
    """Columns that were found and not taken, with the reason."""
    notes: tuple[str, ...] = ()
    """What a person should be told of how it was read."""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.times)


class SourceConfig(Registered, family="source"):
    """Where the data comes from."""

    limit: Count | None = Field(default=None, ge=1)
    """Take only the first this many documents or rows."""

    provides: ClassVar[Kind] = "text"
    later: ClassVar[tuple[str, ...]] = ()
    """Settings that came in a later version: at their default they are left out of the fingerprint, so that data prepared before is found."""

    def output_kind(self) -> Kind:
        """What comes out, where the settings decide it; must not open a file."""
        return self.provides

    def documents(self) -> Iterable[Document]:
        """Each document, in an order that never changes. May be called more than once."""
        raise DataError(f"source {self.kind_!r} has no text; it gives {self.output_kind()}")

    def arrays(self) -> Arrays:
        """The whole table."""
        raise DataError(f"source {self.kind_!r} has no features and targets; it gives {self.output_kind()}")

    def tabular(self) -> bool:
        """Whether there is a `table`; must not open a file."""
        return False

    def table(self) -> Table | None:
        """The rows as they are, where columns may be numbers or categories; None: there are only `arrays`."""
        return None

    def series(self) -> Series:
        """The whole series."""
        raise DataError(f"source {self.kind_!r} has no series; it gives {self.output_kind()}")

    def signals(self) -> Signals:
        """All waveforms."""
        raise DataError(f"source {self.kind_!r} has no waveforms; it gives {self.output_kind()}")

    def labelled_texts(self) -> LabelledTexts:
        """All texts with their classes."""
        raise DataError(f"source {self.kind_!r} has no texts with labels; it gives {self.output_kind()}")

    def conversations(self) -> list[Conversation]:
        """All conversations."""
        raise DataError(f"source {self.kind_!r} has no conversations; it gives {self.output_kind()}")

    def pairs(self) -> list[Pair]:
        """All preferences."""
        raise DataError(f"source {self.kind_!r} has no preferences; it gives {self.output_kind()}")

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        """The source's own held-out part of that name, where it was published with one."""
        return None

    def per_example(self) -> dict[str, Any]:
        """What its settings do to each example, where a prediction must do it to a raw one, too: `preprocess["source"]`. JSON values only."""
        return {}

    def files(self) -> list[tuple[Path, str]]:
        """(path, name) of the files it reads; none where it reads none."""
        return []

    def reads(self) -> list[Path]:
        """Files whose change is a change of the data, held-out parts of its own included."""
        return [path for path, _ in self.files()]

    def describe(self) -> dict[str, Any]:
        """Where the data came from, for the report. JSON values only."""
        listed = self.files()
        facts: dict[str, Any] = {"kind": self.kind_}
        if listed:
            facts |= {"files": len(listed), "bytes": sum(p.stat().st_size for p, _ in listed), "paths": [str(p) for p, _ in listed[:20]]}
        return facts

    def fingerprint(self) -> str:
        """sha256 over the settings and the content: equal where and only where the data is the same.

        Paths are left out, so that a moved folder is not prepared again.
        """
        unsaid = {k for k in self.later if self.raw_value(k) == type(self).model_fields[k].get_default(call_default_factory=True)}
        digest = hashlib.sha256(canonical({k: v for k, v in dump(self).items() if k not in _PLACES | unsaid}).encode())
        listed = self.files()
        for path, name in listed:
            digest.update(f"\0{name}\0{sha256_file(path)}".encode())
        if not listed:
            self.hash_content(digest)
        return digest.hexdigest()

    def hash_content(self, digest: Any) -> None:
        """Put all that it gives into `digest` (of hashlib). Called where there are no `files`; a source of a new kind of data writes its own."""
        output_kind = self.output_kind()
        if output_kind == "text":
            for document in self.documents():
                digest.update(f"\0{document.name}\0{len(document.text)}\0".encode() + document.text.encode("utf-8", "surrogatepass"))
        elif output_kind == "series":
            series = self.series()
            for array in (series.times.astype(np.int64), series.values):
                digest.update(f"\0{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
            digest.update("\0".join(series.names).encode())
        elif output_kind == "signals":
            waves = self.signals()
            for wave, name in zip(waves.waves, waves.names, strict=True):
                digest.update(f"\0{name}\0{waves.rate}".encode() + np.ascontiguousarray(wave).tobytes())
            digest.update(repr([waves.targets, waves.label_names, list(waves.transcripts)]).encode())
        elif output_kind == "arrays":
            table = self.arrays()
            for array in (table.features, table.targets):
                digest.update(f"\0{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
            digest.update("\0".join((*table.feature_names, "", *table.label_names)).encode())
        elif output_kind == "labelled-text":
            texts = self.labelled_texts()
            digest.update(repr([list(texts.texts), texts.targets.tolist(), texts.label_names]).encode())
        elif output_kind in ("chat", "pairs"):
            digest.update(repr(self.conversations() if output_kind == "chat" else self.pairs()).encode())
        else:
            raise NotImplementedError(f"{type(self).__name__} gives {output_kind} and names no files: write `files`, or `hash_content`")


_PLACES = frozenset({"path", "images", "labels"})


def class_targets(values: NDArray[Any], where: str, names: tuple[str, ...] = ()) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers 0..C-1 and their names. With `names` given, the values must already be such numbers."""
    if values.ndim == 1 and not names and values.dtype.kind in "USb":
        return class_numbers([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()], where)
    if values.ndim != 1:
        raise DataError(f"{where}: class labels have shape {values.shape}, expected one number per example")
    if values.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if odd.size:
            raise DataError(
                f"{where}: label {values[odd[0]]} of row {odd[0]} is not a whole number, as classes are. For regression say target: value"
            )
        values = values.astype(np.int64)
    if names:
        if values.dtype.kind not in "iub":
            raise DataError(f"{where}: labels are {values.dtype}, expected numbers 0 to {len(names) - 1}, since their names are given")
        bad = np.flatnonzero((values < 0) | (values >= len(names)))
        if bad.size:
            raise DataError(
                f"{where}: label {values[bad[0]]} of row {bad[0]} is out of range; {len(names)} names are given, so 0 to {len(names) - 1}"
            )
        return values.astype(np.int64), names
    distinct, index = np.unique(values, return_inverse=True)
    return index.astype(np.int64).reshape(-1), tuple(str(v) for v in distinct.tolist())


def limited(documents: Iterable[Document], limit: int | None) -> Iterator[Document]:
    """The first `limit` documents."""
    for i, document in enumerate(documents):
        if limit is not None and i >= limit:
            return
        yield document
