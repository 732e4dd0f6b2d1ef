"""Text from files: a file, a folder, a glob; plain, gzip or zstd; a document per file, or one wherever a pattern matches."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from tauon.config import register
from tauon.data.files import expand, read_bytes
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.rejects import reject
from tauon.data.text_files import read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["TextConfig", "cut"]


@register("text")
class TextConfig(SourceConfig):
    """Text files, read without any change: line ends and blanks are kept. A byte order mark is removed."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them. `~` is your home folder."""
    pattern: str = "**/*"
    """Pattern of files to read in a folder: `**/*.txt`, for example. Hidden files are left out."""
    encoding: str = "utf-8"
    """Text encoding, read strictly: an invalid byte is an error with its position. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""
    document_start: str | None = None
    r"""Regular expression (multi-line) that matches where a document begins. `^ = [^=]` cuts WikiText into articles,
    `\n\n+` cuts at blank lines. No text is lost: the documents joined are the file. None: each file is a document."""

    on_error: Literal["stop", "skip"] = "stop"
    """What happens to a file that cannot be read. stop: an error names it; skip: it is left out, counted and listed."""

    later: ClassVar[tuple[str, ...]] = ("on_error",)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))
        start = self.raw_value("document_start")
        if start is not None:
            try:
                re.compile(start, re.MULTILINE)
            except re.error as err:
                yield "document_start", f"{start!r} is not a regular expression: {err}"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path, self.pattern)

    def documents(self) -> Iterator[Document]:
        encoding, start = self.encoding, self.document_start
        for path, name in self.files():
            try:
                text = read_text(read_bytes(path), str(path), encoding)
            except DataError as err:
                if self.on_error == "stop":
                    raise
                reject(err, "file")
            else:
                yield from cut(text, name, start)


def cut(text: str, name: str, start: str | None) -> Iterator[Document]:
    """Yield the documents of one text, named `name#0`, `name#1`, ..."""
    if start is None:
        yield Document(text, name)
        return
    first = len(text) - len(text.lstrip())  # blanks before the first match belong to the first document
    edges = [0, *(m.start() for m in re.finditer(start, text, re.MULTILINE) if m.start() > first), len(text)]
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        if a < b:
            yield Document(text[a:b], f"{name}#{i}")
