"""The base class of data sources, and what sources return: documents (text), a table of features and targets (arrays), a series, and so on.

A new source, here or in another package, is one class: derive from `SourceConfig`, decorate with `@register("name")`, set
`provides`, write `documents`, `arrays` or `series`; for a new kind of data, the method that its `DataKind.read` calls. Splitting, limits,
tokenising, normalising and caching are done elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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
from tauon.data.sources.content_hash import hash_data
from tauon.errors import DataError

__all__ = ["Arrays", "Conversation", "Document", "Kind", "LabelledTexts", "Message", "Pair", "Series", "Signals", "SourceConfig", "Table"]

Kind = str
"""The kind of data that a source returns: text, arrays, series, signals, labelled-text, chat, pairs, or a kind that a plugin registers."""


@dataclass(frozen=True)
class Document:
    """One text. Attention never crosses its border, and the split never divides it (except a split by position)."""

    text: str
    name: str
    """File and line of its record, relative to the source: it does not change when a folder moves."""
    record: int = -1
    """Number of its record in the source, from 0, among those that could be read. -1: its place among the source's documents."""
    source: int = 0
    """Number of its source in a mixture."""
    offset: int = 0
    """Character of the record's text at which this text begins."""


@dataclass(frozen=True)
class LabelledTexts:
    """N texts, each with a class."""

    texts: Sequence[str]
    targets: NDArray[np.int64]
    """Class of each, (N)."""
    label_names: tuple[str, ...]
    places: Sequence[str]
    """File and line of each text, for messages."""
    labels: Sequence[Any] = ()
    """The labels as read, if `targets` were made from them."""
    label: str = ""
    """Name of the label column, for messages."""
    groups: Sequence[str] = ()
    """Group of each text, if texts belong together."""
    times: Sequence[Any] = ()
    """Moment of each text as written in the file, if later texts are held out."""
    notes: tuple[str, ...] = ()
    """Notes on how the texts were read, to show to the user."""

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int) -> LabelledTexts:
        """Return the first `n` texts."""
        cut = {name: getattr(self, name)[:n] for name in ("texts", "targets", "places", "labels", "groups", "times")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user, input (the text that an instruction refers to), assistant, or another role of the chat template."""
    content: str
    learn: bool = True
    """For the assistant's messages: whether the loss covers them (OpenAI's `weight`)."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...]
    place: str
    """File and row number, for messages."""
    ignored: tuple[str, ...] = ()
    """Keys of the row that were not read."""
    group: str = ""
    """Group of the conversation: a person, a session. Empty: none."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation, one of them preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    place: str
    ignored: tuple[str, ...] = ()
    """Keys of the row that were not read."""
    group: str = ""
    """Group of the preference: a person, a session. Empty: none."""


@dataclass(frozen=True)
class Arrays:
    """N examples. The targets decide the task: int64 (N) are classes, floats (N) or (N, C) are values, in float64."""

    features: NDArray[Any]
    """(N, F) of a table, (N, channels, height, width) of images; uint8, float32, or float64 where the source has it."""
    targets: NDArray[Any]
    feature_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    """Names of the classes in index order, or of the target columns."""
    left_out: tuple[str, ...] = ()
    """Columns or files that were left out, with the reason."""
    warnings: tuple[str, ...] = ()
    """Warnings to show to the user."""
    pixel_range: PixelRange | Literal["bits", "values"] | None = None
    """For images deeper than 8 bits, whose features keep the raw values: how they are scaled to 0 to 255. Measured over the training part,
    by the bits in use (whole numbers) or by the values."""
    pixels: bool = False
    """Whether features are images from 0 (black) to 255 (white) although they are not bytes."""
    groups: Sequence[str] = ()
    """Group of each example, if examples belong together."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def classes(self) -> bool:
        """Whether the targets are class numbers."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))

    def rows(self, index: NDArray[np.int64] | slice) -> Arrays:
        kept = np.asarray(self.groups, object)[index].tolist() if len(self.groups) else ()
        return replace(self, features=self.features[index], targets=self.targets[index], groups=kept)


@dataclass(frozen=True)
class Table:
    """N rows of a table as read: numbers, text, missing values. Which columns are numbers and which are categories is decided later, from
    the training rows alone (`data/columns.py`).
    """

    columns: dict[str, Sequence[Any] | NDArray[np.float64]]
    """Values of each column, by name; None: missing. After conversion to numbers (`table_numbers.py`), an array with NaN."""
    targets: NDArray[Any]
    """As in `Arrays`."""
    label_names: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    """Columns that the recipe declares as categories."""
    places: Sequence[str] = ()
    """File and line of each row, for messages."""
    label: str = ""
    """Name of the column to predict, for messages."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value."""
    labels: Sequence[Any] = ()
    """The labels as read, if `targets` were made from them; then the labels of all parts are encoded together (`labels.py`)."""
    target: Literal["auto", "class", "value"] = "auto"
    """The setting `target`: whether labels are classes or values."""
    numbers: NumberForm | None = None
    """How numbers are written, if the recipe says so."""
    left_out: tuple[str, ...] = ()
    """Columns or files that were left out, with the reason."""
    notes: tuple[str, ...] = ()
    """Notes on how the table was read, to show to the user."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> bool:
        """Whether the targets are class numbers."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))


@dataclass(frozen=True)
class Signals:
    """N waveforms of one sampling rate, of any lengths."""

    waves: Sequence[NDArray[np.float32]]
    """Samples in [-1, 1], one dimension each."""
    rate: int
    """Sampling rate in Hz."""
    names: Sequence[str]
    """File of each waveform, for messages."""
    targets: NDArray[np.int64] | None = None
    """Class of each waveform; None if there are transcripts."""
    label_names: tuple[str, ...] = ()
    transcripts: Sequence[str] = ()
    """Transcript of each waveform."""
    left_out: tuple[str, ...] = ()
    """Files that were left out, with the reason."""
    groups: Sequence[str] = ()
    """Group of each waveform (a speaker), if waveforms belong together."""

    def __len__(self) -> int:
        return len(self.waves)

    def first(self, n: int) -> Signals:
        """Return the first `n` waveforms."""
        targets = None if self.targets is None else self.targets[:n]
        return replace(
            self, waves=self.waves[:n], names=self.names[:n], targets=targets, transcripts=self.transcripts[:n], groups=self.groups[:n]
        )


@dataclass(frozen=True)
class Series:
    """One multivariate series: N time steps in order, C columns."""

    times: NDArray[np.datetime64]
    """(N), datetime64[s] (or of a finer unit, where a fraction of a second is needed), strictly ascending, without gaps."""
    values: NDArray[np.float64]
    """(N, C), finite; the columns to predict first."""
    names: tuple[str, ...]
    """Of the columns."""
    targets: int
    """Number of columns, counted from the first, that are predicted; the others are inputs only."""
    step: str
    """Time step in words: 1 h, 15 min, 1 month."""
    season: int
    """Number of steps after which the series probably repeats: 24 for hours, 7 for days."""
    filled: int = 0
    """Number of missing time steps and values that were filled with the previous value."""
    zoned: bool = False
    """Whether the dates had a time zone and were converted to UTC."""
    left_out: tuple[str, ...] = ()
    """Columns that were left out, with the reason."""
    notes: tuple[str, ...] = ()
    """Notes on how the series was read, to show to the user."""
    warnings: tuple[str, ...] = ()
    dated: bool = True
    """Whether the rows have dates; otherwise `times` counts them as seconds from 1970."""

    def __len__(self) -> int:
        return len(self.times)


class SourceConfig(Registered, family="source"):
    """Base class of data sources: where the data comes from."""

    limit: Count | None = Field(default=None, ge=1)
    """Use only the first this many documents or rows."""
    licence: str | None = None
    """Licence of the data, for the records: CC-BY-4.0, or a sentence. Public sets bring their own."""
    origin: str | None = None
    """Where the data was obtained, for the records: an address, a contract, a person."""

    provides: ClassVar[Kind] = "text"
    later: ClassVar[tuple[str, ...]] = ()
    """Settings added in a later version: at their default they are left out of the fingerprint, so that data prepared before is found."""

    def output_kind(self) -> Kind:
        """Return the kind of data, if the settings decide it. Must not open a file."""
        return self.provides

    def members(self) -> list[SourceConfig]:
        """Return the sources that this one consists of: itself, or those of a mixture."""
        return [self]

    def member_names(self) -> list[str]:
        """Return the name of each of `members`."""
        return [self.kind_]

    def documents(self) -> Iterable[Document]:
        """Yield each document, in an order that never changes. May be called more than once."""
        raise DataError(f"source {self.kind_!r} has no text, it provides {self.output_kind()}")

    def arrays(self) -> Arrays:
        """Return the whole table as numbers."""
        raise DataError(f"source {self.kind_!r} has no features and targets, it provides {self.output_kind()}")

    def tabular(self) -> bool:
        """Return whether the source has a `table`. Must not open a file."""
        return False

    def table(self) -> Table | None:
        """Return the raw rows if columns may be numbers or categories; None if the source only has `arrays`."""
        return None

    def series(self) -> Series:
        """Return the whole series."""
        raise DataError(f"source {self.kind_!r} has no series, it provides {self.output_kind()}")

    def signals(self) -> Signals:
        """Return all waveforms."""
        raise DataError(f"source {self.kind_!r} has no waveforms, it provides {self.output_kind()}")

    def labelled_texts(self) -> LabelledTexts:
        """Return all texts with their classes."""
        raise DataError(f"source {self.kind_!r} has no texts with labels, it provides {self.output_kind()}")

    def conversations(self) -> list[Conversation]:
        """Return all conversations."""
        raise DataError(f"source {self.kind_!r} has no conversations, it provides {self.output_kind()}")

    def pairs(self) -> list[Pair]:
        """Return all preferences."""
        raise DataError(f"source {self.kind_!r} has no preferences, it provides {self.output_kind()}")

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        """Return the source's own held-out part of that name, if it was published with one."""
        return None

    def per_example(self) -> dict[str, Any]:
        """Per-example settings that prediction must apply to a raw example too: `preprocess["source"]`. JSON values only."""
        return {}

    def files(self) -> list[tuple[Path, str]]:
        """(path, name) of the files that the source reads; empty if it reads no files."""
        return []

    def reads(self) -> list[Path]:
        """Files whose change means that the data changed, including the source's own held-out parts."""
        return [path for path, _ in self.files()]

    def describe(self) -> dict[str, Any]:
        """Where the data came from, for the report. JSON values only."""
        listed = self.files()
        facts: dict[str, Any] = {"kind": self.kind_} | self.provenance()
        if listed:
            facts |= {"files": len(listed), "bytes": sum(p.stat().st_size for p, _ in listed), "paths": [str(p) for p, _ in listed[:20]]}
        return facts

    def provenance(self) -> dict[str, str]:
        """Return licence and origin, where the recipe states them."""
        return {k: v for k, v in (("licence", self.licence), ("origin", self.origin)) if v is not None}

    def fingerprint(self) -> str:
        """Return the sha256 over settings and content: equal if and only if the data is the same.

        Paths are not part of it, so a moved folder is not prepared again.
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
        """Update `digest` (of hashlib) with all the data. Called if there are no `files`; a source of a new kind of data writes its own."""
        hash_data(self, digest)


_PLACES = frozenset({"path", "images", "labels", "licence", "origin"})
"""Settings that say where the data is and what may be done with it, not what it is."""


def class_targets(values: NDArray[Any], where: str, names: tuple[str, ...] = ()) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return class numbers 0..C-1 and their names. If `names` is given, the values must already be such numbers."""
    if values.ndim == 1 and not names and values.dtype.kind in "USb":
        return class_numbers([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()], where)
    if values.ndim != 1:
        raise DataError(f"{where}: class labels have shape {values.shape}, expected one number per example")
    if values.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if odd.size:
            raise DataError(
                f"{where}: label {values[odd[0]]} of row {odd[0]} is not a whole number, but classes must be. For regression set target: value"
            )
        values = values.astype(np.int64)
    if names:
        if values.dtype.kind not in "iub":
            raise DataError(
                f"{where}: labels have type {values.dtype}, expected class numbers 0 to {len(names) - 1}, since class names are given"
            )
        bad = np.flatnonzero((values < 0) | (values >= len(names)))
        if bad.size:
            raise DataError(
                f"{where}: label {values[bad[0]]} of row {bad[0]} is out of range: {len(names)} class names are given, expected 0 to {len(names) - 1}"
            )
        return values.astype(np.int64), names
    distinct, index = np.unique(values, return_inverse=True)
    return index.astype(np.int64).reshape(-1), tuple(str(v) for v in distinct.tolist())
