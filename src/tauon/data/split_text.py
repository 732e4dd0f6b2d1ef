"""Which documents, or pieces of them, are held out. Pure functions of (settings, split seed, content).

Documents are assigned by a hash of their content, so that equal texts are always in the same part: held-out text cannot leak
into training through a second copy. Each source of a mixture is split by itself, so that each is held out in proportion; a text that
several sources have goes with the first of them. 50 bytes of memory per document, whatever its length.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tauon.data.split import PARTS, Part, SplitConfig, shares
from tauon.errors import DataError

__all__ = ["Pieces", "TextStat", "TextStats", "split_text"]

_MANY = 10
_DIGEST = 32


@dataclass(frozen=True)
class TextStat:
    """Properties of a document that the split needs."""

    digest: bytes
    """sha256 of its content."""
    chars: int
    source: int = 0
    """Number of its source, in a mixture."""


class TextStats(Sequence[TextStat]):
    """Properties of many documents, in columns: 42 bytes each.

    >>> stats = TextStats([TextStat(bytes(32), 5)])
    >>> len(stats), stats[0].chars
    (1, 5)
    """

    def __init__(self, stats: Iterable[TextStat] = ()) -> None:
        self._digests, self._chars, self._sources = bytearray(), array("q"), array("H")
        for stat in stats:
            self.append(stat)

    def append(self, stat: TextStat) -> None:
        """Append one document."""
        self._digests += stat.digest
        self._chars.append(stat.chars)
        self._sources.append(stat.source)

    def __len__(self) -> int:
        return len(self._chars)

    @overload
    def __getitem__(self, i: int) -> TextStat: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[TextStat]: ...
    def __getitem__(self, i: int | slice) -> TextStat | Sequence[TextStat]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        at = range(len(self))[i]
        return TextStat(bytes(self._digests[at * _DIGEST : (at + 1) * _DIGEST]), self._chars[at], self._sources[at])

    @property
    def chars(self) -> NDArray[np.int64]:
        """(D) characters of each document."""
        return np.array(self._chars, np.int64)

    @property
    def sources(self) -> NDArray[np.int64]:
        """(D) source of each document."""
        return np.array(self._sources, np.int64)

    def digests(self) -> Iterator[bytes]:
        """Yield the sha256 of each document."""
        return (bytes(self._digests[a : a + _DIGEST]) for a in range(0, len(self._digests), _DIGEST))

    def where(self, kept: NDArray[np.bool_]) -> TextStats:
        """Return the documents that `kept` chooses."""
        chosen = TextStats()
        chosen._digests = bytearray(np.frombuffer(self._digests, np.uint8).reshape(-1, _DIGEST)[kept].tobytes())
        chosen._chars, chosen._sources = (
            array("q", self.chars[kept].tobytes()),
            array("H", np.array(self._sources, np.uint16)[kept].tobytes()),
        )
        return chosen


Cuts = list[tuple[Part, int, int]]
"""[(part, first character, last character + 1), ...]."""


class Pieces(Mapping[int, Cuts]):
    """Document number to its pieces, computed when asked for."""

    def __init__(self, chars: NDArray[np.int64]) -> None:
        self.chars = chars
        self.whole = np.full(len(chars), -1, np.int8)
        """Number of the part that has the whole document; -1: cut by position."""
        self.bounds = np.full(len(chars), -1, np.int16)
        """For documents that are cut: which bounds."""
        self.offsets = np.zeros(len(chars), np.int64)
        """For documents that are cut: characters of their source before them."""
        self.cut_at: list[Cuts] = []

    def __len__(self) -> int:
        return len(self.chars)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.chars)))

    def __getitem__(self, i: int) -> Cuts:
        n, part = int(self.chars[i]), int(self.whole[i])
        if part >= 0:
            return [(PARTS[part], 0, n)]
        offset = int(self.offsets[i])
        cuts = [(p, max(a - offset, 0), min(b - offset, n)) for p, a, b in self.cut_at[int(self.bounds[i])]]
        return [(p, a, b) for p, a, b in cuts if a < b]

    def sizes(self) -> dict[Part, int]:
        """Return the characters of each part."""
        found = {part: int(self.chars[self.whole == number].sum()) for number, part in enumerate(PARTS)}
        for number, bounds in enumerate(self.cut_at):
            total = int(self.chars[self.bounds == number].sum())
            for part, a, b in bounds:
                found[part] += max(0, min(b, total) - a)
        return found


def split_text(stats: Sequence[TextStat], config: SplitConfig, wanted: Sequence[Part]) -> tuple[Pieces, dict[str, Any]]:
    """Return the part of each document, or piece of one; and facts about the split.

    `wanted` are the held-out parts without a separate source.
    """
    columns = stats if isinstance(stats, TextStats) else TextStats(stats)
    if config.by == "row":
        raise DataError("split.by=row is only for arrays, but the data is text. Use document or position")
    edges = list(shares(config, wanted))
    pieces, groups = Pieces(columns.chars), _by_content(columns, config.seed)
    owner = columns.sources[groups.first][groups.number]
    said = []
    for source in np.unique(owner).tolist():
        mine = owner == source
        distinct = len(np.unique(groups.number[mine]))
        by, why = config.by, "as set"
        if by == "auto":
            by = "document" if distinct >= _MANY else "position"
            why = f"{distinct} distinct documents" + ("" if distinct >= _MANY else f", fewer than {_MANY}")
        said.append({"source": source, "by": by, "why": why})
        (_by_document if by == "document" else _by_position)(pieces, mine, groups, edges)
    facts = {"by": said[0]["by"], "why": said[0]["why"], "seed": config.seed, "shares": [[p, round(b - a, 6)] for p, a, b in edges]}
    if len(said) > 1:
        facts["by_source"] = said
    sizes = pieces.sizes()
    for part in {p for p, _, _ in edges}:
        if not sizes[part]:
            raise DataError(
                f"the {part} part is empty: {len(stats)} documents ({len(groups.first)} distinct), {sum(sizes.values()):,} characters, "
                f"split by {said[0]['by']}. "
                + (
                    "Use split.by=position, or add documents"
                    if said[0]["by"] == "document"
                    else "Add text, or raise the share in data.split"
                )
            )
    return pieces, facts


@dataclass(frozen=True)
class _Contents:
    """The distinct contents, in order of a keyed hash."""

    number: NDArray[np.int64]
    """(D) number of each document's content."""
    first: NDArray[np.int64]
    """Of each content: the first document that has it."""


def _by_content(stats: TextStats, seed: int) -> _Contents:
    key = f"split {seed}".encode()
    hashes = np.frombuffer(
        b"".join(hashlib.blake2b(d, digest_size=16, key=key).digest() for d in stats.digests()), ">u8"
    ).reshape(-1, 2)  # fmt: skip
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal contents stay in order
    ordered = hashes[order]
    begins = np.append(True, (ordered[1:] != ordered[:-1]).any(1))[: len(order)]
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(begins) - 1
    return _Contents(number, order[begins])


def _by_position(pieces: Pieces, mine: NDArray[np.bool_], groups: _Contents, edges: Sequence[tuple[Part, float, float]]) -> None:
    chars = pieces.chars[mine]
    total = int(chars.sum())
    pieces.bounds[mine] = len(pieces.cut_at)
    pieces.offsets[mine] = np.cumsum(chars) - chars
    pieces.cut_at.append([(part, int(total * a) if a > 0 else 0, int(total * b) if b < 1 else total) for part, a, b in edges])


def _by_document(pieces: Pieces, mine: NDArray[np.bool_], groups: _Contents, edges: Sequence[tuple[Part, float, float]]) -> None:
    """Assign the distinct contents in order of a keyed hash; a content belongs to the part that contains its middle."""
    contents = len(groups.first)
    chars = np.bincount(groups.number[mine], pieces.chars[mine], contents).astype(np.int64)
    offset = np.cumsum(chars) - chars
    middle = (offset + chars / 2) / max(int(chars.sum()), 1)
    part = np.full(contents, PARTS.index(edges[-1][0]), np.int8)
    for name, a, b in reversed(edges):
        part[(a <= middle) & (middle < b)] = PARTS.index(name)
    pieces.whole[mine] = part[groups.number[mine]]
