"""Token shards: a folder of memory-mapped `.npy` files with a manifest, which knows where every token came from.

`FORMAT_PAGE` below describes the files; it is written into each folder as README.md, and is docs/shards.md. Nothing here is a pickle:
`np.load` runs with allow_pickle=False. Independent of sequences and batches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.files import read_bytes, sha256_file, write_plain_json
from tauon.data.npy_file import NpyFile
from tauon.errors import ChecksumError, DataError

__all__ = ["FORMAT_PAGE", "Origin", "ShardWriter", "Shards"]

FORMAT = "tauon-shards/2"
_MANIFEST = "shards.json"
FORMAT_PAGE = """\
# Token shards (tauon-shards/2)

A folder of tokenised text. Every file is a NumPy array of one dimension (`numpy.load(path, mmap_mode="r")`) or JSON; none is a pickle.

| file | type | holds |
| --- | --- | --- |
| `tokens-00000.npy`, ... | uint16, or uint32 | the stream `[BOS] document [BOS] document ... [BOS]`, cut into files of at most 67,108,864 tokens |
| `starts.npy` | int64 (D) | place of each document's BOS in the stream, ascending |
| `documents.npy` | records (D) | see below |
| `names.npy`, `name_ends.npy` | uint8, int64 | names as UTF-8, one after the other, and where each ends |
| `shards.json` | JSON | format, tokenizer's sha256, counts, sources, size and sha256 of each file; written last |

A record of `documents.npy` holds whole numbers of the smallest type that fits:

| field | meaning |
| --- | --- |
| `bytes`, `words`, `lines` | of the document's text |
| `source` | number of the source in `sources` of `shards.json`, from 0 |
| `record` | number of the record in that source, from 0, in the order in which it is read |
| `offset` | character of the record's text at which the document begins (0, unless a record was cut) |
| `name`, `number` | the record's name: entry `name` of `names.npy`, followed by `number - 1` in decimal if `number` is above 0 |

**Where does token N come from?** Its document is `searchsorted(starts, N, side="right") - 1`; the document's record says source, record and
name. The bytes of the document's tokens before N, decoded, are the characters between `offset` and the token.

Documents of one source are neighbours: `ranges` in `shards.json` lists `[source, first position in the stream]`. The token after the last
document of the stream is a BOS, so that every token but the first is predicted from one before it.
"""
_FIELDS = ("bytes", "words", "lines", "source", "record", "offset", "name", "number")
_SPILL = 1 << 15
"""Documents in memory while writing."""
_TRAILING = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,17})$")
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where a document came from."""

    document: int
    """Its number in the stream."""
    source: int
    """Number of its source in the recipe: 0, or a place in the list of a mixture."""
    record: int
    """Number of its record in the source, from 0."""
    offset: int
    """Character of the record's text at which the document begins."""
    name: str
    """File and line of the record."""


class ShardWriter:
    """Writes a folder of shards, one document at a time, with a bounded number of tokens and documents in memory."""

    def __init__(self, folder: Path, *, vocab: int, bos: int, shard_tokens: int = 1 << 26) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self.vocab, self.bos = folder, vocab, bos
        self._dtype: type[np.uint16] | type[np.uint32] = np.uint16 if vocab <= 1 << 16 else np.uint32
        self._size = shard_tokens
        self._bos = np.array([bos], self._dtype)
        self._shard: NpyFile | None = None
        self._waiting: list[NDArray[Any]] = []
        self._waiting_tokens = 0
        self._shards: list[str] = []
        self._length = 0
        self._rows: list[tuple[int, ...]] = []
        self._most = np.zeros(1 + len(_FIELDS), np.int64)
        self._totals = np.zeros(1 + len(_FIELDS), np.int64)
        self._documents = 0
        self._spilled = NpyFile(folder / "documents.tmp", np.int64)
        self._names, self._name_ends = NpyFile(folder / "names.npy", np.uint8), NpyFile(folder / "name_ends.npy", np.int64)
        self._prefix: str | None = None
        self._ranges: list[tuple[int, int]] = []

    def add(
        self, name: str, ids: NDArray[Any], *, n_bytes: int, n_words: int, n_lines: int, source: int = 0, record: int | None = None,
        offset: int = 0,
    ) -> None:  # fmt: skip
        """Append [BOS] + `ids`. The three counts are of the original text; the last three arguments are as in `Origin`, and `record` is by
        default the number of the document. Documents of one source must follow each other.
        """
        if len(ids) and int(ids.max()) >= self.vocab:
            raise DataError(f"{name}: token id {int(ids.max())} is outside the vocabulary of {self.vocab}")
        if not self._ranges or self._ranges[-1][0] != source:
            if self._ranges and source < self._ranges[-1][0]:
                raise DataError(f"{name}: a document of source {source} after one of source {self._ranges[-1][0]}; write sources in order")
            self._ranges.append((source, self._length))
        place, number = self._named(name)
        at = self._documents if record is None else record
        self._rows.append((self._length, n_bytes, n_words, n_lines, source, at, offset, place, number))
        self._documents += 1
        if len(self._rows) == _SPILL:
            self._spill()
        self._write(self._bos)
        self._write(ids)

    def finish(self, **facts: Any) -> None:
        """Close the stream with a BOS and write the manifest, including `facts`."""
        self._write(self._bos)
        self._flush()
        self._end_shard()
        self._spill()
        self._names.close()
        self._name_ends.close()
        self._write_documents()
        names = [*self._shards, "starts.npy", "documents.npy", "names.npy", "name_ends.npy"]
        manifest = {
            "format": FORMAT, "dtype": np.dtype(self._dtype).name, "vocab": self.vocab, "bos": self.bos, "stream_tokens": self._length,
            "documents": self._documents, "counts": dict(zip(_FIELDS[:3], self._totals[1:4].tolist(), strict=True)),
            "ranges": self._ranges, "shards": self._shards, **facts,
            "files": {n: {"bytes": (self.folder / n).stat().st_size, "sha256": sha256_file(self.folder / n)} for n in names},
        }  # fmt: skip
        (self.folder / "README.md").write_text(FORMAT_PAGE, encoding="utf-8")
        write_plain_json(self.folder / _MANIFEST, manifest)

    def _named(self, name: str) -> tuple[int, int]:
        """Return (entry of names.npy, number + 1 or 0). Lines of one file share an entry: its name is stored once."""
        found = _TRAILING.search(name)
        prefix, number = (name, 0) if found is None else (name[: found.start()], int(found[0]) + 1)
        if prefix != self._prefix:
            self._names.append(np.frombuffer(prefix.encode("utf-8", "surrogateescape"), np.uint8))
            self._name_ends.append(np.array([self._names.length]))
            self._prefix = prefix
        return self._name_ends.length - 1, number

    def _spill(self) -> None:
        if self._rows:
            rows = np.array(self._rows, np.int64)
            self._most, self._totals = np.maximum(self._most, rows.max(0)), self._totals + rows.sum(0)
            self._spilled.append(rows.reshape(-1))
            self._rows.clear()

    def _write_documents(self) -> None:
        record = np.dtype([(name, _smallest(most)) for name, most in zip(_FIELDS, self._most[1:].tolist(), strict=True)])
        width, path = 1 + len(_FIELDS), self._spilled.path
        self._spilled.close()
        with open(path, "rb") as file, NpyFile(self.folder / "starts.npy", np.int64) as starts, NpyFile(
            self.folder / "documents.npy", record
        ) as documents:  # fmt: skip
            file.seek(self._spilled.begin)
            while data := file.read(_SPILL * width * 8):
                rows = np.frombuffer(data, np.int64).reshape(-1, width)
                starts.append(rows[:, 0])
                packed = np.empty(len(rows), record)
                for i, name in enumerate(_FIELDS, 1):
                    packed[name] = rows[:, i]
                documents.append(packed)
        path.unlink()

    def _write(self, ids: NDArray[Any]) -> None:
        self._length += len(ids)
        self._waiting.append(ids)
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting_tokens:
            return
        ids = np.concatenate(self._waiting).astype(self._dtype)
        self._waiting, self._waiting_tokens = [], 0
        while len(ids):
            if self._shard is None:
                self._shards.append(f"tokens-{len(self._shards):05d}.npy")
                self._shard = NpyFile(self.folder / self._shards[-1], self._dtype)
            room = self._size - self._shard.length
            self._shard.append(ids[:room])
            ids = ids[room:]
            if self._shard.length == self._size:
                self._end_shard()

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def _smallest(most: int) -> type[np.unsignedinteger[Any]]:
    return next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if most <= np.iinfo(t).max)


class Shards:
    """A folder of shards, open for reading. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        """Checks format, sizes and shapes; `verify` checks every byte."""
        self.folder = folder
        self.manifest: Mapping[str, Any] = _read_json(folder / _MANIFEST)
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            got = self.manifest.get("format") if isinstance(self.manifest, dict) else type(self.manifest).__name__
            raise DataError(
                f"{folder / _MANIFEST}: format {got!r}, this version reads {FORMAT!r}. Delete the folder, and it is prepared again"
            )
        for name, facts in self.manifest["files"].items():
            path = folder / name
            got = path.stat().st_size if path.is_file() else None
            if got != facts["bytes"]:
                problem = "is missing" if got is None else f"has {got:,} bytes, expected {facts['bytes']:,}"
                raise ChecksumError(f"{path}: {problem}. Delete {folder}, and it is prepared again")
        self.vocab, self.bos, self.length = int(self.manifest["vocab"]), int(self.manifest["bos"]), int(self.manifest["stream_tokens"])
        self.parts = [self._tokens(folder / name) for name in self.manifest["shards"]]
        self._edges = np.cumsum([0, *(len(p) for p in self.parts)])
        self.starts: NDArray[np.int64] = self._open(folder / "starts.npy")
        """Position of each document's BOS, ascending."""
        self._documents = self._open(folder / "documents.npy")
        self._views: dict[tuple[int, int], NDArray[Any]] = {}
        if self._edges[-1] != self.length:
            raise ChecksumError(
                f"{folder}: the shards have {self._edges[-1]:,} tokens, but the manifest says {self.length:,}. Delete the folder, and it is prepared again"
            )

    def _open(self, path: Path) -> NDArray[Any]:
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as err:
            raise ChecksumError(f"{path}: damaged .npy file ({err}). Delete {self.folder}, and it is prepared again") from None
        return np.asarray(part)  # a plain view: np.memmap's own __getitem__ is slow

    def _tokens(self, path: Path) -> NDArray[Any]:
        part = self._open(path)
        if part.ndim != 1 or part.dtype.name != self.manifest["dtype"]:
            raise ChecksumError(f"{path}: {part.dtype} of shape {part.shape}, expected one dimension of {self.manifest['dtype']}")
        return part

    def verify(self) -> None:
        """Verify the sha256 of every file, and every token against the vocabulary. Raises `ChecksumError`, `DataError`."""
        for name, facts in self.manifest["files"].items():
            got = sha256_file(self.folder / name)
            if got != facts["sha256"]:
                raise ChecksumError(
                    f"{self.folder / name}: sha256 is {got}, expected {facts['sha256']}: the bytes have changed since they were written. "
                    f"Delete {self.folder}, and it is prepared again"
                )
        for part, name in zip(self.parts, self.manifest["shards"], strict=True):
            if len(part) and int(part.max()) >= self.vocab:
                at = int(np.argmax(part >= self.vocab))
                raise DataError(f"{self.folder / name}: token {at} is {int(part[at])}, outside the vocabulary of {self.vocab}")

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return tokens [start, stop) of the stream, across shards."""
        if start >= stop:
            return np.empty(0, self.manifest["dtype"])
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = int(np.searchsorted(self._edges, stop, side="left")) - 1
        if first == last:
            base = self._edges[first]
            return self.parts[first][start - base : stop - base]
        pieces = [self.parts[i][max(start - self._edges[i], 0) : stop - self._edges[i]] for i in range(first, last + 1)]
        return np.concatenate(pieces)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return `length` tokens from each position: (B, length). What lies behind the end of the stream is BOS."""
        shard = np.searchsorted(self._edges, starts, side="right") - 1
        inside = (shard < len(self.parts)) & (starts + length <= self._edges[np.minimum(shard + 1, len(self.parts))])
        if inside.all() and (first := int(shard[0])) == int(shard[-1]) and (shard == first).all():
            gathered: NDArray[Any] = self._view(first, length)[starts - self._edges[first]]
            return gathered
        out = np.full((len(starts), length), self.bos, self.manifest["dtype"])
        for k in np.unique(shard[inside]).tolist():
            mine = inside & (shard == k)
            out[mine] = self._view(k, length)[starts[mine] - self._edges[k]]
        for row in np.flatnonzero(~inside).tolist():  # across two shards, or over the end
            begin = int(starts[row])
            read = self.read(begin, min(begin + length, self.length))
            out[row, : len(read)] = read
        return out

    def _view(self, shard: int, length: int) -> NDArray[Any]:
        """Return every window of a shard, as a view: (tokens - length + 1, length)."""
        view = self._views.get((shard, length))
        if view is None:
            view = self._views[shard, length] = np.lib.stride_tricks.sliding_window_view(self.parts[shard], length)
        return view

    def source_name(self, source: int) -> str:
        """Return the name of a source, as in the recipe's mixture."""
        return str(self.sources[source].get("name") or source)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Facts about each source: name, kind, licence, origin, as far as known."""
        return list(self.manifest.get("sources", []))

    def document_at(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the document number of each position of the stream; a document starts with its BOS."""
        return np.searchsorted(self.starts, position, side="right") - 1

    def end_of(self, document: int) -> int:
        """Return the position after a document's last token."""
        return int(self.starts[document + 1]) if document + 1 < len(self.starts) else self.length - 1

    def origin(self, document: int) -> Origin:
        """Return where a document came from."""
        row = self._documents[document]
        return Origin(
            document, int(row["source"]), int(row["record"]), int(row["offset"]), self._name(int(row["name"]), int(row["number"]))
        )

    @cached_property
    def _name_ends(self) -> NDArray[np.int64]:
        return self._open(self.folder / "name_ends.npy")

    @cached_property
    def _name_bytes(self) -> NDArray[np.uint8]:
        return self._open(self.folder / "names.npy")

    def _name(self, entry: int, number: int) -> str:
        begin = int(self._name_ends[entry - 1]) if entry else 0
        prefix = self._name_bytes[begin : int(self._name_ends[entry])].tobytes().decode("utf-8", "surrogateescape")
        return prefix if number == 0 else f"{prefix}{number - 1}"

    @property
    def names(self) -> Iterator[str]:
        """Name of each document, in order."""
        return (self._name(int(row["name"]), int(row["number"])) for row in self._documents)

    def provenance_bytes(self) -> int:
        """Return how many bytes of the folder say where documents came from: all but the tokens, the starts and the text counts."""
        kept = sum(self._documents.dtype[name].itemsize for name in _FIELDS[3:]) * len(self._documents)
        return kept + sum(int(self.manifest["files"][name]["bytes"]) for name in ("names.npy", "name_ends.npy"))

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """Return (source, first position, position after the last) of each source that has documents here. The BOS at the end of a range is
        the target after its last token.
        """
        firsts = [(int(source), int(start)) for source, start in self.manifest["ranges"]]
        ends = [*(start for _, start in firsts[1:]), self.length - 1]
        return [(source, start, end) for (source, start), end in zip(firsts, ends, strict=True)]

    def documents(self) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each document, without BOS."""
        for start, stop in zip(self.starts.tolist(), [*self.starts[1:].tolist(), self.length - 1], strict=True):
            yield self.read(start + 1, stop)

    @property
    def counts(self) -> dict[str, int]:
        """Return totals over the documents; tokens without BOS."""
        n = len(self.starts)
        return {"documents": n, "tokens": self.length - n - 1} | {k: int(v) for k, v in self.manifest["counts"].items()}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ChecksumError(f"{path}: damaged JSON ({err}). Delete {path.parent}, and it is prepared again") from None
