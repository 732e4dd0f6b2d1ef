"""Cleaning of documents, one in memory at a time: what is kept is written to a file of the folder that is being built, and read from there
as often as it is needed. Cleaning is done once, however often the text is passed over.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tauon.data.clean.base import FilterConfig, Rejected
from tauon.data.clean.changes import write_changes
from tauon.data.clean.run import Cleaning, RejectedFile, TextCleaner, refuse_too_few
from tauon.data.progress import report
from tauon.data.sources.base import Document, SourceConfig, numbered
from tauon.data.split import Part

__all__ = ["CleanedDocuments", "cleaned"]

_HEAD = struct.Struct("<QQqqq")
"""Bytes of name and text; source, record and offset of the document."""


class CleanedDocuments(SourceConfig):
    """A source of documents that were cleaned before: not for recipes."""

    path: str
    """The file that `cleaned` has written."""
    sources: tuple[str, ...] = ()
    """Names of the sources of the documents."""
    kind_: ClassVar[str] = "cleaned"

    def member_names(self) -> list[str]:
        return list(self.sources)

    def documents(self) -> Iterator[Document]:
        with open(self.path, "rb") as file:
            while head := file.read(_HEAD.size):
                *sizes, source, record, offset = _HEAD.unpack(head)
                name, text = (file.read(n).decode("utf-8", "surrogatepass") for n in sizes)
                yield Document(text, name, record, source, offset)


def cleaned(
    sources: Mapping[Part, SourceConfig], filters: Sequence[FilterConfig], folder: Path, *, limit: float, held_out: str
) -> tuple[dict[Part, SourceConfig], dict[str, Any]]:
    """Clean the documents of each source. Writes `folder/rejected` and `folder/changes`, for keeps, and `folder/cleaned`, which may be removed
    when all is read.

    Args:
        sources: the source of each part; `limit` of a source counts documents before cleaning.
        filters: text filters, in order. None of them: the sources are returned as they are.
        folder: an existing folder.
        limit: largest share of the training documents that may be rejected.
        held_out: "apply", or "count": validation and test sources of their own are left as they are.

    Returns:
        (the sources to read instead, facts for the report).

    Raises:
        DataError: more is rejected than `limit`, or everything.
    """
    if not filters:
        return dict(sources), {}
    instead, made = dict(sources), dict[Part, Cleaning]()
    (folder / "cleaned").mkdir()
    for part, source in sources.items():
        applied = part == "train" or held_out == "apply"
        path = folder / "cleaned" / f"{part}.bin"
        cleaner = TextCleaner(filters, applied)
        changes = array("q")
        example = _clean(source, cleaner, path, RejectedFile(folder / "rejected", part), part, changes)
        made[part] = cleaner.cleaning
        refuse_too_few(cleaner.cleaning, limit, part, "documents", example)
        if applied:
            instead[part] = CleanedDocuments(path=str(path), sources=tuple(source.member_names()))
            write_changes(folder, part, changes)
    return instead, {
        "clean": {part: one.to_json() for part, one in made.items()},
        "notes": [one.line(p, "documents") for p, one in made.items()],
    }


def _clean(source: SourceConfig, cleaner: TextCleaner, path: Path, rejects: RejectedFile, part: Part, changes: array[int]) -> str:
    """Write the documents that are kept; return one that is not, with its reason, in words. `changes`: what was changed is added."""
    example, names = "", source.member_names()
    try:
        with open(path, "wb") as file:
            for number, document in enumerate(numbered(source), 1):
                found = cleaner(document.text)
                if isinstance(found, Rejected):
                    assert cleaner.by is not None
                    rejects.add(names[document.source], document.name, cleaner.by, found, document.text)
                    example = example or f"{document.name}: {found.reason}"
                else:
                    name, text = document.name.encode("utf-8", "surrogatepass"), found.encode("utf-8", "surrogatepass")
                    for by in cleaner.changed_by:
                        changes.extend((document.source, document.record, document.offset, by))
                    file.write(_HEAD.pack(len(name), len(text), document.source, document.record, document.offset) + name + text)
                if number % 100 == 0:
                    report(f"clean {part}", number)
    finally:
        rejects.close()
    return example
