"""Sketches of documents in files, chunk by chunk, so that work that was killed continues at the first missing chunk.

A chunk is two `.npy` files (keys, counts), one of bare little-endian numbers (hashes) and a JSON file that is written last; it has the same documents
and bytes however often the work was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import atomic_write
from tauon.data.dedup.minhash import Sketches
from tauon.data.progress import report
from tauon.errors import DataError

__all__ = ["SketchFiles"]

ROWS, HASHES = 1 << 16, 1 << 24
"""Documents and hashes of a chunk."""
CHARS, BATCH = 1 << 20, 1 << 12
"""Characters and documents of a batch."""


class SketchFiles:
    """Complete chunks of a folder, open for reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: dict[int, NDArray[np.uint32]] = {}
        self.rows: list[int] = []
        while (facts := _complete(folder, len(self.rows))) is not None:
            self.rows.append(facts)
        self.edges = np.cumsum([0, *self.rows])
        self.offsets = [_load(folder, "counts", i) for i in range(len(self.rows))]
        self.offsets = [np.concatenate([[0], np.cumsum(c, dtype=np.int64)]) for c in self.offsets]

    def __len__(self) -> int:
        return int(self.edges[-1])

    @staticmethod
    def write(folder: Path, texts: Iterable[str], sketch: Callable[[Sequence[str]], Sketches]) -> None:
        """Sketch all texts into chunks, except those of complete chunks."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        done: list[int] = []
        while (facts := _complete(folder, len(done))) is not None:
            done.append(facts)
        skip = sum(done)
        ended = (folder / _END).is_file()
        if ended:
            return
        batch: list[str] = []
        chunk = _Chunk(folder, len(done))
        chars = number = 0

        def flush() -> None:
            nonlocal chars
            if batch:
                chunk.add(sketch(batch))
                batch.clear()
                chars = 0

        for number, text in enumerate(texts, 1):
            if number <= skip:
                continue
            batch.append(text)
            chars += len(text)
            if chars >= CHARS or len(batch) >= BATCH or chunk.rows + len(batch) >= ROWS:
                flush()
                if chunk.rows >= ROWS or chunk.hashes >= HASHES:
                    chunk.save()
                    chunk = _Chunk(folder, chunk.number + 1)
                report("look for duplicates", number)
        if number < skip:
            raise DataError(f"{folder}: {number:,} documents now, {skip:,} before: the source changed. Delete the folder, and run again")
        flush()
        if chunk.rows:
            chunk.save()
        atomic_write(folder / _END, str(number).encode())

    def keys(self, band: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield (number of the first document, keys of the band) of each chunk."""
        for i, start in enumerate(self.edges[:-1].tolist()):
            yield start, np.asarray(_load(self.folder, "keys", i)[band])

    @property
    def bands(self) -> int:
        """Number of keys per document."""
        return int(_load(self.folder, "keys", 0).shape[0]) if self.rows else 0

    def gather(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return (hashes of each of the documents in a row, number of hashes of each)."""
        chunks = np.searchsorted(self.edges, documents, side="right") - 1
        starts, ends = np.empty(len(documents), np.int64), np.empty(len(documents), np.int64)
        for c in np.unique(chunks).tolist():
            mine = chunks == c
            local = documents[mine] - self.edges[c]
            starts[mine], ends[mine] = self.offsets[c][local], self.offsets[c][local + 1]
        wanted = zip(chunks.tolist(), starts.tolist(), ends.tolist(), strict=True)
        found = [self._hashes(c)[start:end] for c, start, end in wanted]
        return np.concatenate(found) if found else np.empty(0, np.uint32), ends - starts

    def _hashes(self, chunk: int) -> NDArray[np.uint32]:
        """Return the hashes of a chunk, mapped into memory when it is first asked for."""
        found = self._mapped.get(chunk)
        if found is None:
            found = self._mapped[chunk] = _load(self.folder, "hashes", chunk)
        return found


_END = "complete"
_NAMES = ("keys", "counts", "hashes")


def _load(folder: Path, name: str, chunk: int) -> NDArray[Any]:
    path = _file(folder, name, chunk)
    return np.asarray(np.memmap(path, "<u4", "r") if name == "hashes" else np.load(path, mmap_mode="r", allow_pickle=False))


def _file(folder: Path, name: str, chunk: int) -> Path:
    return folder / f"{name}-{chunk:05d}.{'u32' if name == 'hashes' else 'npy'}"


class _Chunk:
    """A chunk that is made: its hashes go to the file as they come, keys and counts when it is complete."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.rows = self.hashes = 0
        self._keys: list[NDArray[np.uint64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self._file = _file(folder, "hashes", number)
        self._file.unlink(missing_ok=True)

    def add(self, made: Sketches) -> None:
        """Add a batch of documents."""
        with self._file.open("ab") as file:
            file.write(made.hashes.astype("<u4", copy=False).data)
        self._keys.append(made.keys)
        self._counts.append(made.counts)
        self.rows += len(made.counts)
        self.hashes += len(made.hashes)

    def save(self) -> None:
        """Complete the chunk."""
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.concatenate(self._keys, axis=1),
            "counts": np.concatenate(self._counts).astype(np.uint32),
        }
        for name, array in arrays.items():
            np.save(_file(self.folder, name, self.number), array, allow_pickle=False)
        sizes = {name: _file(self.folder, name, self.number).stat().st_size for name in _NAMES}
        atomic_write(self.folder / f"chunk-{self.number:05d}.json", json.dumps({"rows": self.rows, "bytes": sizes}).encode())


def _complete(folder: Path, chunk: int) -> int | None:
    """Return the documents of a chunk; None if it is not complete."""
    path = folder / f"chunk-{chunk:05d}.json"
    if not path.is_file():
        return None
    facts = json.loads(path.read_bytes())
    for name in _NAMES:
        file = _file(folder, name, chunk)
        if not file.is_file() or file.stat().st_size != facts["bytes"][name]:
            return None
    return int(facts["rows"])
