"""Where a token of prepared text came from: source, record, place in the record, licence; and where a text stands in the data.

Reads a run's `data.json` and the memory-mapped shards in the cache, no raw file and no model. The place in a record is that in its text as
it was tokenised: after cleaning, if the recipe cleans.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.clean.changes import changed_by
from tauon.data.files import read_bytes
from tauon.data.rejected import rejected_with
from tauon.data.shards import Shards
from tauon.data.split import PARTS
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError

__all__ = ["Found", "Trail"]

_AROUND = 30
"""Tokens that are shown on each side."""
_PIECE = 1 << 20
"""Tokens that are searched at a time."""


@dataclass(frozen=True)
class Found:
    """One token of the stream, and where it came from."""

    part: str
    position: int
    """Place of the token in the part's stream, from 0; BOS tokens count."""
    token: int
    text: str
    """The token's own text; "" for the BOS before a document."""
    source: str
    """Name of the source in the recipe."""
    record: int
    """Number of the record in its source, from 0."""
    name: str
    """File and line of the record."""
    offset: int
    """Character of the record's text at which the token begins."""
    document: int
    """Number of the document in the part."""
    before: str
    """Text of the document before the token."""
    after: str
    licence: str | None = None
    origin: str | None = None
    split: str = ""
    """Why the document is in this part."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """What each step that may leave records out said of this one, by its name in the recipe: clean, dedup, decontaminate."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


class Trail:
    """The way back from the training data of a run to its records."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of a run whose data was prepared. Raises `DataError` if it has no text, or if the cache is gone."""
        path = folder / "data.json"
        if not path.is_file():
            raise DataError(f"{folder}: no prepared data is recorded here (data.json). Prepare it first: tauon prepare RECIPE")
        self.facts: dict[str, Any] = json.loads(read_bytes(path))
        if self.facts.get("kind") != "tokens":
            raise DataError(f"{path}: the data is {self.facts.get('kind')}, and only tokens of running text can be traced")
        self.folder = Path(self.facts["cache"]["folder"])
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: the prepared data is gone from the cache. Prepare it again: tauon prepare {folder}")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data."""
        return Tokenizer.load(self.folder / "tokenizer.json")

    def shards(self, part: str) -> Shards:
        """Return the tokens of a part: train, validation or test."""
        if not (self.folder / part).is_dir():
            known = [p for p in PARTS if (self.folder / p).is_dir()]
            raise DataError(f"there is no {part} part. Available: {', '.join(known)}")
        return Shards(self.folder / part)

    def token(self, position: int, part: str = "train", *, shards: Shards | None = None) -> Found:
        """Return where a token came from. `position`: its place in the stream of the part, from 0."""
        shards = self.shards(part) if shards is None else shards
        if not 0 <= position < len(shards):
            raise DataError(f"token {position:,} does not exist: the {part} part has tokens 0 to {len(shards) - 1:,}")
        document = int(shards.document_at(np.array([position]))[0])
        begin, end = int(shards.starts[document]), shards.end_of(document)
        origin, decode = shards.origin(document), self.tokenizer.decode
        token = int(shards.read(position, position + 1)[0])
        before = _characters(decode(shards.read(begin + 1, position))) if position > begin else 0
        facts = shards.sources[origin.source]
        return Found(
            part, position, token, decode([token]), str(facts.get("name", origin.source)), origin.record, origin.name, origin.offset + before,
            document, decode(shards.read(max(begin + 1, position - _AROUND), max(begin + 1, position))),
            decode(shards.read(position + 1, min(end, position + 1 + _AROUND))), facts.get("licence"), facts.get("origin"),
            self._split_of(origin.source), self._verdicts(part, origin.source, origin.record, origin.name),
        )  # fmt: skip

    def _split_of(self, source: int) -> str:
        split = self.facts["split"]
        by = next((s for s in split.get("by_source", []) if s["source"] == source), split)
        return str(by.get("by", ""))

    def _verdicts(self, part: str, source: int, record: int, name: str) -> dict[str, str]:
        """Return what each step that may leave a record out said of one that is in the data."""
        own = part in (self.facts.get("split", {}).get("own_parts") or ())
        said: dict[str, str] = {}
        cleaning = self.facts.get("clean", {}).get(part if own else "train")
        if cleaning is not None and not cleaning["applied"]:
            said["clean"] = "as it was read: a held-out set of its own is not cleaned"
        elif cleaning is not None:
            filters = [one["filter"] for one in cleaning["filters"]]
            by = [filters[i] for i in changed_by(self.folder, part if own else "train", source, record)]
            said["clean"] = f"kept by {', '.join(filters)}; " + (f"changed by {', '.join(by)}" if by else "unchanged")
        if "dedup" in self.facts and not own:
            settings = self.facts["dedup"]["settings"]
            like = f"alike at {settings['threshold']:.0%}" if settings["kind"] == "near" else "equal"
            said["dedup"] = f"kept: no earlier record that was kept is {like}"
        looked = self.facts.get("decontamination")
        if looked is not None and part == "train":
            said["decontaminate"] = _contamination(looked, name)
        return said

    def rejected(self, text: str, part: str = "train", most: int = 10) -> list[dict[str, Any]]:
        """Return the records of a part's source that were left out and whose recorded beginning has a text, as lines of `rejected/*.jsonl`."""
        return rejected_with(text, self.folder / "rejected", part, most)

    def find(self, text: str, part: str = "train", most: int = 10) -> list[Found]:
        """Return the places at which a text stands in a part, at most `most` of them, each by its first token."""
        if not text:
            raise DataError("the text to find is empty")
        shards, places = self.shards(part), []
        for position in self._places(text, shards):
            places.append(self.token(position, part, shards=shards))
            if len(places) == most:
                break
        return places

    def _places(self, text: str, shards: Shards) -> Iterator[int]:
        """Yield positions. The tokens inside the text are searched for first, then what is around them is compared as text: a word at the edge of
        the text may be cut into other tokens in the data.
        """
        core = _inside(text)
        needle = self.tokenizer.encode(core).astype(shards.manifest["dtype"]) if core else np.empty(0, np.uint16)
        if len(needle) < 2:
            yield from self._by_text(text, shards)
            return
        lead = text.index(core)
        reach = 2 * len(text.encode()) + 8
        for at in _matches(needle, shards):
            document = int(shards.document_at(np.array([at]))[0])
            begin, end = int(shards.starts[document]) + 1, shards.end_of(document)
            first = max(begin, at - lead * 4 - 4)
            found = self._first_token(text, shards.read(first, min(end, at + reach)), at - first)
            if found is not None:
                yield first + found

    def _first_token(self, text: str, ids: NDArray[Any], at: int) -> int | None:
        """Return which of `ids` the text begins in, if it stands around number `at`."""
        decode = self.tokenizer.decode
        for start in range(at, -1, -1):
            joined = decode(ids[start:])
            place = joined.find(text)
            if place >= 0 and place < max(1, len(decode(ids[start : start + 1]))):
                return start
            if len(decode(ids[start:at])) > len(text):
                break
        return None

    def _by_text(self, text: str, shards: Shards) -> Iterator[int]:
        """Search the decoded text, document by document: for texts of one or two words."""
        decode = self.tokenizer.decode
        for document, ids in enumerate(shards.documents()):
            begin = int(shards.starts[document]) + 1
            for a in range(0, max(1, len(ids)), _PIECE):
                piece = ids[a : a + _PIECE + 4 * len(text)]
                joined = decode(piece)
                place = joined.find(text)
                while place >= 0:
                    inside = _token_at(decode, piece, place)
                    if inside >= _PIECE:
                        break
                    yield begin + a + inside
                    place = joined.find(text, place + 1)


def _contamination(looked: Mapping[str, Any], name: str) -> str:
    if looked["action"] == "drop" or not looked["found"]:
        return "kept: does not repeat held-out text"
    reason = next((one["reason"] for one in looked.get("examples", []) if one["record"] == name), None)
    if reason is not None:
        return f"kept, reported: {reason}"
    listed = len(looked.get("examples", []))
    if listed == looked["found"]:
        return "kept: does not repeat held-out text"
    return f"kept: not known; {looked['found']:,} records repeat held-out text, of which {listed} are listed in data.json"


def _characters(text: str) -> int:
    return len(text.rstrip("\ufffd"))  # a token may end inside a character, which the next one completes


def _inside(text: str) -> str:
    """Return the part of a text whose tokens do not depend on what is around it: from its second word to its last but one."""
    first, last = text.find(" ", 1), text.rfind(" ")
    return text[first:last] if 0 < first < last else ""


def _token_at(decode: Any, ids: NDArray[Any], character: int) -> int:
    """Return the number of the token that holds a character of the decoded text."""
    low, high = 0, len(ids)
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _characters(decode(ids[:middle])) <= character else (low, middle)
    return low


def _matches(needle: NDArray[Any], shards: Shards) -> Iterator[int]:
    """Yield each position at which the ids stand in the stream."""
    wanted, width = needle.tobytes(), needle.itemsize
    for start in range(0, len(shards), _PIECE):
        ids = np.ascontiguousarray(shards.read(start, min(start + _PIECE + len(needle) - 1, len(shards))))
        piece = ids.tobytes()
        at = piece.find(wanted)
        while at >= 0:
            if at % width == 0:
                yield start + at // width
            at = piece.find(wanted, at + 1)
