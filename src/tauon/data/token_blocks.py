"""Documents to shards of tokens: blocks are encoded, in this process or in others, and written in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tauon.data.blocks import Blocks, packed, unpacked
from tauon.data.progress import report
from tauon.data.shards import Shards, ShardWriter
from tauon.data.sources.base import Document
from tauon.data.split import Part
from tauon.data.text_files import count_words
from tauon.data.tokenizer import Tokenizer

__all__ = ["write_tokens"]

_CHARS = 1 << 22
"""Characters of a block."""


class _TokenWork:
    """Encode a block: of each document (tokens, bytes, words, lines, unknown tokens), and all ids in a row."""

    modules: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.key = tokenizer, f"tokens {tokenizer.sha256}"

    def __getstate__(self) -> dict[str, Any]:  # the library's own pickles forget that special tokens in a text are plain text
        return {"key": self.key, "json": self.tokenizer.to_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.key, self.tokenizer = state["key"], Tokenizer.from_json(state["json"])

    def __call__(self, documents: list[Document]) -> bytes:
        encoded = self.tokenizer.encode_many([document.text for document in documents])
        unknown = getattr(self.tokenizer, "unknown", None)
        counts = np.empty((len(documents), 5), np.int64)
        for row, document, ids in zip(counts, documents, encoded, strict=True):
            text = document.text
            n_bytes = len(text) if text.isascii() else len(text.encode())
            row[:] = len(ids), n_bytes, count_words(text), text.count("\n"), 0 if unknown is None else (ids == unknown).sum()
        kind = np.uint16 if all(not len(ids) or int(ids.max()) < 1 << 16 for ids in encoded) else np.uint32
        flat = np.concatenate(encoded, dtype=kind, casting="same_kind")
        del encoded  # of one document of 100 MB, 100 MB
        return packed({"documents": len(documents), "dtype": np.dtype(kind).name}, counts.data, flat.data)


def write_tokens(
    folder: Path, documents: Iterator[tuple[Part, Document]], tokenizer: Tokenizer, provenance: Mapping[Part, dict[str, Any]], blocks: Blocks,
    total: int,
) -> dict[str, int]:  # fmt: skip
    """Encode documents and write the shards of each part to `folder`. Returns the number of unknown tokens by part."""
    parts: deque[Part] = deque()
    writers: dict[Part, ShardWriter] = {}
    unknown: dict[str, int] = {}
    counts_unknown = hasattr(tokenizer, "unknown")

    def texts() -> Iterator[Document]:
        for part, document in documents:
            parts.append(part)
            yield document

    done = 0
    for block, made in blocks.run("tokens", texts(), _TokenWork(tokenizer), _CHARS):
        facts, body = unpacked(made)
        counts = np.frombuffer(body, np.int64, 5 * facts["documents"]).reshape(-1, 5)
        ids = np.frombuffer(body, facts["dtype"], offset=counts.nbytes)
        ends = np.cumsum(counts[:, 0]).tolist()
        for document, (n, n_bytes, n_words, n_lines, n_unknown), end in zip(block, counts.tolist(), ends, strict=True):
            part = parts.popleft()
            if part not in writers:
                writers[part] = ShardWriter(folder / part, vocab=tokenizer.vocab_size, bos=tokenizer.bos)
            writers[part].add(
                document.name, ids[end - n : end], n_bytes=n_bytes, n_words=n_words, n_lines=n_lines, source=document.source,
                record=document.record, offset=document.offset,
            )  # fmt: skip
            if counts_unknown:
                unknown[part] = unknown.get(part, 0) + n_unknown
        done += len(block)
        report("tokenise", done, max(total, done))
    for part, writer in writers.items():
        writer.finish(tokenizer_sha256=tokenizer.sha256, **provenance[part])
        Shards(folder / part).verify()  # the written files are read back once; later only sizes are checked
    return unknown
