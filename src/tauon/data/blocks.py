"""Work on a stream of documents in blocks: each block alone, in this process or in others, its result a file that appears complete.

Blocks are cut by characters and numbered, so that the same documents give the same blocks; results come back in their order. So the bytes that are made
of them depend neither on the number of processes nor on how often the work was interrupted: a block whose file is there is not worked on again.
Knows nothing of what the work is (`clean/documents.py`, `token_blocks.py`), nor of where it is done (`block_workers.py`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tauon.artifacts import atomic_write
from tauon.data.block_workers import BlockWork, Workers
from tauon.data.sources.base import Document
from tauon.errors import RunError

__all__ = ["Blocks", "packed", "unpacked"]

_MOST = 1 << 16
"""Documents of a block."""
_MAGIC, _DIGEST = b"tauon-block/1\n", 32
_BODY = len(_MAGIC) + 2 * _DIGEST
_LENGTH = struct.Struct("<Q")


class Blocks:
    """Runs work on blocks, and keeps their results in a folder until all is done.

    >>> import tempfile
    >>> from tauon.data.block_workers import local_workers
    >>> class Count:
    ...     key, modules = "count", ()
    ...     def __call__(self, documents):
    ...         return packed({"chars": sum(len(d.text) for d in documents)})
    >>> documents = [Document("one", "a"), Document("three", "b"), Document("two", "c")]
    >>> with tempfile.TemporaryDirectory() as folder, local_workers(1) as workers:
    ...     found = list(Blocks(Path(folder), workers).run("count", documents, Count(), chars=8))
    >>> [(len(block), unpacked(made)[0]) for block, made in found]
    [(2, {'chars': 8}), (1, {'chars': 3})]
    """

    def __init__(self, folder: Path, workers: Workers) -> None:
        """`folder` must belong to these documents and settings; it exists. `workers`: where the work is done."""
        self.folder, self.workers = folder, workers

    def run(self, name: str, documents: Iterable[Document], work: BlockWork, chars: int) -> Iterator[tuple[list[Document], bytes]]:
        """Yield (the documents of a block, what `work` makes of them), block by block. A block has at least `chars` characters, but for the last."""
        waiting: deque[tuple[Path, bytes, list[Document], bytes | Future[bytes]]] = deque()
        kind = hashlib.blake2b(f"{version('tauon')}\0{work.key}".encode(), digest_size=_DIGEST).digest()
        with self.workers.start(work) as submit:
            for number, (block, alone) in enumerate(_cut(documents, chars)):
                path, key = _place(self.folder / name, number), _digest(kind, block)
                done = _finished(path, key)
                waiting.append((path, key, block, done if done is not None else submit(block, alone)))
                while len(waiting) > self.workers.ahead:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    @staticmethod
    def read(path: Path, number: int) -> bytes:
        """Return the result of a block that `run` has stored: `path` is folder / name."""
        return _place(path, number).read_bytes()[_BODY:]

    @staticmethod
    def _next(waiting: deque[tuple[Path, bytes, list[Document], bytes | Future[bytes]]]) -> tuple[list[Document], bytes]:
        path, key, block, result = waiting.popleft()
        if isinstance(result, bytes):
            return block, result
        made = result.result()
        try:
            atomic_write(path, _MAGIC + key + hashlib.blake2b(made, digest_size=_DIGEST).digest() + made, mode=0o600)
        except RunError as err:
            raise (err.__cause__ if isinstance(err.__cause__, OSError) else err) from None
        return block, made


def _place(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number:07d}.block")


def packed(facts: Mapping[str, Any], *body: bytes | memoryview) -> bytes:
    """Return facts (JSON values) and bytes as one result."""
    head = json.dumps(facts, ensure_ascii=True).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *body])


def unpacked(made: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return what `packed` has packed; the bytes are not copied."""
    (length,) = _LENGTH.unpack_from(made)
    end = _LENGTH.size + length
    return json.loads(made[_LENGTH.size : end]), memoryview(made)[end:]


def _cut(documents: Iterable[Document], chars: int) -> Iterator[tuple[list[Document], bool]]:
    """Yield (block, whether it is the only one)."""
    block: list[Document] = []
    size, several = 0, False
    for document in documents:
        if size >= chars or len(block) == _MOST:
            yield block, False
            block, size, several = [], 0, True
        block.append(document)
        size += len(document.text)
    if block:
        yield block, not several


def _digest(kind: bytes, documents: Sequence[Document]) -> bytes:
    """Return a hash of everything that decides the result of a block: what was left by a run on other bytes is not used."""
    digest = hashlib.blake2b(kind, digest_size=_DIGEST)
    for one in documents:
        text = one.text.encode("utf-8", "surrogatepass")
        digest.update(f"{one.name}\0{one.record}\0{one.source}\0{one.offset}\0{len(text)}\0".encode("utf-8", "surrogatepass"))
        digest.update(text)
    return digest.digest()


def _finished(path: Path, key: bytes) -> bytes | None:
    """Return the result in a file; None if there is none, or it is of other documents or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    made = data[_BODY:]
    whole = data[:_BODY] == _MAGIC + key + hashlib.blake2b(made, digest_size=_DIGEST).digest()
    return made if whole else None
