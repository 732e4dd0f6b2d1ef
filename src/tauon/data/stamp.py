"""Detect whether the files of a recipe's data have changed since preparation: by size and time, and by content if these differ.

Public sets are checked against their published sha256 whenever they are read; sources without files have nothing to check.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tauon.data.config import DataConfig
from tauon.data.dedup.against import evaluation_files
from tauon.data.files import canonical, sha256_file
from tauon.errors import DataError

__all__ = ["DataStamp"]


@dataclass(frozen=True)
class DataStamp:
    """State of the files of a data section at one time."""

    files: int
    bytes: int
    stat: str
    """sha256 over path, size and modification time of each file."""
    content: str
    """sha256 over content of each file, and its path relative to their common folder: a project that was moved as a whole is unchanged."""

    @classmethod
    def of(cls, config: DataConfig, before: DataStamp | None = None) -> DataStamp:
        """Return the stamp of the current files. If sizes and times equal those of `before`, its content hash is reused. `DataError`: a file is missing."""
        paths = sorted({path.absolute() for path in _files(config)})
        try:
            looks = [(str(p), s.st_size, s.st_mtime_ns) for p in paths for s in [p.stat()]]
        except OSError as err:
            raise DataError(f"{err.filename}: cannot be read: {err.strerror or err}") from err
        stat = hashlib.sha256(canonical(looks).encode()).hexdigest()
        if before is not None and before.stat == stat:
            return before
        top = os.path.commonpath([p.parent for p in paths]) if paths else ""
        content = hashlib.sha256(canonical([[os.path.relpath(p, top), sha256_file(p)] for p in paths]).encode()).hexdigest()
        return cls(len(paths), sum(size for _, size, _ in looks), stat, content)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DataStamp:
        return cls(**{k: record[k] for k in ("files", "bytes", "stat", "content")})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.files:,} file{'s' * (self.files != 1)} of {self.bytes:,} bytes"


def _files(config: DataConfig) -> Iterator[Path]:
    """Return every file that the section's sources, cleaning filters and tokenizer read."""
    sources = (config.raw_value("source"), config.raw_value("validation"), config.raw_value("test"))
    for source in sources if config.raw_value("rows") else ():
        if source is not None:
            yield from source.reads()
    yield from evaluation_files(config.raw_value("decontaminate"))
    for one in config.raw_value("clean"):
        yield from one.files()
    if config.raw_value("spec") is not None:
        yield Path(config.raw_value("spec"))
    try:
        yield from (path for path, _ in config.raw_value("tokenizer").files())
    except DataError:
        return  # the tokenizer of model.from: checked with the model
