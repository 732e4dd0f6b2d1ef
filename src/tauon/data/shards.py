"""Token shards: a folder of memory-mapped `.npy` files with a manifest.

    tokens-00000.npy ...   the stream [BOS] document [BOS] document ... [BOS], uint16 or uint32, cut into files of bounded size
    documents.npy          int64 (D, 4): place of the document's BOS in the stream; bytes, words and line ends of its text
    names.json             D names
    shards.json            format, tokenizer hash, counts, source fingerprint, size and sha256 of each file; written last

Nothing here is a pickle: `np.load` runs with allow_pickle=False. Independent of sequences and batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.files import read_bytes, sha256_file, write_plain_json
from tauon.errors import ChecksumError, DataError

__all__ = ["ShardWriter", "Shards"]

FORMAT = "tauon-shards/1"
_MANIFEST = "shards.json"


class ShardWriter:
    """Writes a folder of shards, one document at a time, with at most one shard in memory."""

    def __init__(self, folder: Path, *, vocab: int, bos: int, shard_tokens: int = 1 << 26) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self.vocab, self.bos = folder, vocab, bos
        self._dtype: type[np.uint16] | type[np.uint32] = np.uint16 if vocab <= 1 << 16 else np.uint32
        self._size = shard_tokens
        self._buffer = np.empty(min(shard_tokens, 1 << 16), self._dtype)
        self._filled = 0
        self._shards: list[str] = []
        self._length = 0
        self._documents: list[tuple[int, int, int, int]] = []
        self._names: list[str] = []

    def add(self, name: str, ids: NDArray[Any], *, n_bytes: int, n_words: int, n_lines: int) -> None:
        """Append [BOS] + `ids`. The three counts are of the original text."""
        if len(ids) and int(ids.max()) >= self.vocab:
            raise DataError(f"{name}: token id {int(ids.max())} is outside the vocabulary of {self.vocab}")
        self._documents.append((self._length, n_bytes, n_words, n_lines))
        self._names.append(name)
        self._write(np.array([self.bos]))
        self._write(ids)

    def finish(self, **facts: Any) -> None:
        """Close the stream with a BOS and write the manifest, including `facts`."""
        self._write(np.array([self.bos]))
        self._flush()
        np.save(self.folder / "documents.npy", np.array(self._documents, np.int64).reshape(-1, 4), allow_pickle=False)
        write_plain_json(self.folder / "names.json", self._names)
        names = [*self._shards, "documents.npy", "names.json"]
        manifest = {
            "format": FORMAT, "dtype": np.dtype(self._dtype).name, "vocab": self.vocab, "bos": self.bos, "stream_tokens": self._length,
            "documents": len(self._names), "shards": self._shards, **facts,
            "files": {n: {"bytes": (self.folder / n).stat().st_size, "sha256": sha256_file(self.folder / n)} for n in names},
        }  # fmt: skip
        write_plain_json(self.folder / _MANIFEST, manifest)

    def _write(self, ids: NDArray[Any]) -> None:
        self._length += len(ids)
        while len(ids):
            room = self._size - self._filled
            part, ids = ids[:room], ids[room:]
            need = self._filled + len(part)
            if need > len(self._buffer):
                grown = np.empty(min(self._size, max(need, 2 * len(self._buffer))), self._dtype)
                grown[: self._filled] = self._buffer[: self._filled]
                self._buffer = grown
            self._buffer[self._filled : need] = part
            self._filled = need
            if self._filled == self._size:
                self._flush()

    def _flush(self) -> None:
        if self._filled:
            name = f"tokens-{len(self._shards):05d}.npy"
            np.save(self.folder / name, self._buffer[: self._filled], allow_pickle=False)
            self._shards.append(name)
            self._filled = 0


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
        self.parts = [self._open(folder / name) for name in self.manifest["shards"]]
        self._edges = np.cumsum([0, *(len(p) for p in self.parts)])
        self._documents = np.load(folder / "documents.npy", allow_pickle=False)
        self.starts: NDArray[np.int64] = np.ascontiguousarray(self._documents[:, 0])
        """Position of each document's BOS, ascending."""
        if self._edges[-1] != self.length:
            raise ChecksumError(
                f"{folder}: the shards have {self._edges[-1]:,} tokens, but the manifest says {self.length:,}. Delete the folder, and it is prepared again"
            )

    def _open(self, path: Path) -> NDArray[Any]:
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as err:
            raise ChecksumError(f"{path}: damaged .npy file ({err}). Delete {self.folder}, and it is prepared again") from None
        if part.ndim != 1 or part.dtype.name != self.manifest["dtype"]:
            raise ChecksumError(f"{path}: {part.dtype} of shape {part.shape}, expected one dimension of {self.manifest['dtype']}")
        return np.asarray(part)  # a plain view: np.memmap's own __getitem__ is slow

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

    def document_at(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the document number of each position of the stream; a document starts with its BOS."""
        return np.searchsorted(self.starts, position, side="right") - 1

    @property
    def names(self) -> list[str]:
        """Name of each document."""
        return list(_read_json(self.folder / "names.json"))

    def documents(self) -> Iterator[NDArray[Any]]:
        """Yield the tokens of each document, without BOS."""
        for start, stop in zip(self.starts.tolist(), [*self.starts[1:].tolist(), self.length - 1], strict=True):
            yield self.read(start + 1, stop)

    @property
    def counts(self) -> dict[str, int]:
        """Return totals over the documents; tokens without BOS."""
        n_bytes, n_words, n_lines = self._documents[:, 1:].sum(axis=0).tolist()
        n = len(self.starts)
        return {"documents": n, "tokens": self.length - n - 1, "bytes": n_bytes, "words": n_words, "lines": n_lines}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ChecksumError(f"{path}: damaged JSON ({err}). Delete {path.parent}, and it is prepared again") from None
