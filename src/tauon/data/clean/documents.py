"""Cleaning of documents, block by block: what is kept is in the files of the blocks, and read from there as often as it is needed. Cleaning is done
once, however often the text is passed over.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tauon.data.blocks import Blocks, packed, unpacked
from tauon.data.clean.base import FilterConfig, Rejected
from tauon.data.clean.changes import write_changes
from tauon.data.clean.run import Cleaning, FilterCounts, RejectedFile, TextCleaner, fingerprint_of, refuse_too_few, rejection
from tauon.data.files import canonical
from tauon.data.progress import report
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.numbered import numbered
from tauon.data.sources.rejects import reading
from tauon.data.split import Part

__all__ = ["CleanedDocuments", "cleaned"]

_HEAD = struct.Struct("<QQqqq")
"""Bytes of name and text; source, record and offset of the document."""
_CHARS = 1 << 19
"""Characters of a block."""


class CleanedDocuments(SourceConfig):
    """A source of documents that were cleaned before: not for recipes."""

    path: str
    """The files of blocks that `cleaned` has written, up to the number of the block."""
    blocks: int
    """How many there are."""
    sources: tuple[str, ...] = ()
    """Names of the sources of the documents."""
    kind_: ClassVar[str] = "cleaned"

    def member_names(self) -> list[str]:
        return list(self.sources)

    def documents(self) -> Iterator[Document]:
        for number in range(self.blocks):
            yield from _documents(unpacked(Blocks.read(Path(self.path), number))[1])


def _documents(body: memoryview) -> Iterator[Document]:
    at = 0
    while at < len(body):
        *sizes, source, record, offset = _HEAD.unpack_from(body, at)
        at += _HEAD.size
        ends = (at + sizes[0], at + sum(sizes))
        name, text = str(body[at : ends[0]], "utf-8", "surrogatepass"), str(body[ends[0] : ends[1]], "utf-8", "surrogatepass")
        at = ends[1]
        yield Document(text, name, record, source, offset)


class _CleanWork:
    """Clean a block: the kept documents, counts, and what is written down of the others."""

    def __init__(self, filters: Sequence[FilterConfig], applied: bool, part: Part, names: Sequence[str]) -> None:
        self.filters, self.applied, self.part, self.names = tuple(filters), applied, part, tuple(names)
        self.key = canonical(["clean", fingerprint_of(filters, "apply" if applied else "count"), part, self.names])
        self.modules = tuple(dict.fromkeys(one.module() for one in filters))

    def __call__(self, documents: list[Document]) -> bytes:
        cleaner = TextCleaner(self.filters, self.applied)
        kept: list[bytes] = []
        rejected: list[dict[str, Any]] = []
        changes: list[int] = []
        for document in documents:
            found = cleaner(document.text)
            if isinstance(found, Rejected):
                assert cleaner.by is not None
                rejected.append(rejection(self.part, self.names[document.source], document.name, cleaner.by, found, document.text))
            elif self.applied:
                for by in cleaner.changed_by:
                    changes += document.source, document.record, document.offset, by
                name, text = document.name.encode("utf-8", "surrogatepass"), found.encode("utf-8", "surrogatepass")
                kept += _HEAD.pack(len(name), len(text), document.source, document.record, document.offset), name, text
        counts = cleaner.cleaning
        facts = {
            "records": counts.records, "changed": counts.changed, "rejected": rejected, "changes": changes,
            "filters": [[one.seen, one.changed, one.rejected, one.rules] for one in counts.counts],
        }  # fmt: skip
        return packed(facts, b"".join(kept))


def cleaned(
    sources: Mapping[Part, SourceConfig], filters: Sequence[FilterConfig], folder: Path, blocks: Blocks, *, limit: float, held_out: str
) -> tuple[dict[Part, SourceConfig], dict[str, Any]]:
    """Clean the documents of each source. Writes `folder/rejected` and `folder/changes`, for keeps, and files of `blocks`, which may be removed
    when all is read.

    Args:
        sources: the source of each part; `limit` of a source counts documents before cleaning.
        filters: text filters, in order. None of them: the sources are returned as they are.
        folder: an existing folder.
        blocks: where blocks are worked on, and their results kept.
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
    for part, source in sources.items():
        applied = part == "train" or held_out == "apply"
        work = _CleanWork(filters, applied, part, source.member_names())
        changes = array("q")
        with reading(part, again=not applied):
            counted, number, example = _clean(source, work, blocks, RejectedFile(folder / "rejected", part), changes)
        made[part] = counted
        refuse_too_few(counted, limit, part, "documents", example)
        if applied:
            instead[part] = CleanedDocuments(path=str(blocks.folder / f"clean-{part}"), blocks=number, sources=tuple(work.names))
            write_changes(folder, part, changes)
    return instead, {
        "clean": {part: one.to_json() for part, one in made.items()},
        "notes": [one.line(p, "documents") for p, one in made.items()],
    }


def _clean(source: SourceConfig, work: _CleanWork, blocks: Blocks, rejects: RejectedFile, changes: array[int]) -> tuple[Cleaning, int, str]:
    """Return (counts, number of blocks, one document that is not kept with its reason, in words). `changes`: what was changed is added."""
    TextCleaner(work.filters)  # counts their settings as used, which another process cannot
    total = Cleaning([FilterCounts(one.kind_) for one in work.filters], work.applied)
    number, example = 0, ""
    try:
        for _, made in blocks.run(f"clean-{work.part}", numbered(source), work, _CHARS):
            number += 1
            facts = unpacked(made)[0]
            counts = [
                FilterCounts(one.kind_, seen, changed, rejected, Counter(rules))
                for one, (seen, changed, rejected, rules) in zip(work.filters, facts["filters"], strict=True)
            ]
            total.add(Cleaning(counts, work.applied, facts["records"], len(facts["rejected"]), facts["changed"]))
            rejects.add(facts["rejected"])
            changes.extend(facts["changes"])
            for first in facts["rejected"][:1]:
                example = example or f"{first['record']}: {first['reason']}"
            report(f"clean {work.part}", total.records)
    finally:
        rejects.close()
    return total, number, example
