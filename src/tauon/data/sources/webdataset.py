"""Text in WebDataset tars (github.com/webdataset/webdataset): members with one name up to the first dot are one sample.

Members are read in order from the stream, never unpacked to disk. No pickle: members of other extensions are passed over.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tauon.config import register
from tauon.data.files import expand, open_bytes
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.rejects import reject
from tauon.data.text_files import json_line, read_text
from tauon.errors import DataError

__all__ = ["WebDatasetConfig"]


@register("webdataset")
class WebDatasetConfig(SourceConfig):
    """Text in WebDataset tars, a document per sample. Tars may be packed (.tar.gz, .tar.zst)."""

    path: str | tuple[str, ...]
    """A tar, a folder of them or a glob, or several; also in an object store (s3://bucket/*.tar)."""
    text: str = "txt"
    """Extension of the member that holds the text: the part of its name behind the first dot. `json`: an object with the text in `column`."""
    column: str = "text"
    """With text: json, the key that holds the text."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens to a sample that cannot be read. stop: an error names it; skip: it is left out, counted and listed."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("column") != "text" and not self._is_json(self.raw_value("text")):
            yield "column", "has no effect unless text is the extension of a JSON member; set text: json, or remove it"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path, "**/*.tar*")

    def documents(self) -> Iterator[Document]:
        extension, column = self.text, self.column
        for path, name in self.files():
            found = 0
            try:
                for member, data in _members(path, extension):
                    found += 1
                    where = f"{path}, member {member}"
                    try:
                        text = read_text(data, where)
                        if self._is_json(extension):
                            row = json_line(text, where)
                            if not isinstance(row.get(column), str):
                                raise DataError(f"{where}: key {column!r} is {type(row.get(column)).__name__}, expected text")
                            text = row[column]
                    except DataError as err:
                        self._bad(err, "sample")
                    else:
                        yield Document(text, f"{name}, member {member}")
                if not found:
                    raise DataError(f"{path}: no member has the extension {extension!r}. Set data.source.text to that of the text")
            except DataError as err:
                self._bad(err, "the rest of the file")

    def _bad(self, error: DataError, reason: str) -> None:
        if self.on_error == "stop":
            raise error
        reject(error, reason)

    @staticmethod
    def _is_json(extension: str) -> bool:
        return extension.rpartition(".")[2] == "json"


def _members(path: Path, extension: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each member with an extension."""
    with open_bytes(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    if member.isreg() and name.partition(".")[2] == extension and not name.startswith("."):
                        opened: Any = tar.extractfile(member)
                        data = opened.read()
                        if len(data) != member.size:
                            raise DataError(f"{path}: truncated in member {member.name}. Copy or download the file again")
                        yield member.name, data
        except (tarfile.TarError, EOFError) as err:
            raise DataError(f"{path}: damaged or truncated tar ({err}). Copy or download the file again") from None
