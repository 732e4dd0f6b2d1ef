"""What running text is trained on: documents of the training source without duplicates (`data.dedup`), and training documents without held-out text
(`data.decontaminate`). What is left out goes to `rejected/` of the prepared data, one JSON object a line, with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tauon.config import dump
from tauon.data.cache import cache_root, locked, make_folder
from tauon.data.config import DataConfig
from tauon.data.dedup.against import evaluation_files, evaluation_texts
from tauon.data.dedup.contamination import COMMON, Contaminated, HeldOut
from tauon.data.dedup.find import find_duplicates
from tauon.data.files import canonical, sha256_file
from tauon.data.progress import report
from tauon.data.rejected import rejected_line, rejected_row
from tauon.data.sources.base import Document, SourceConfig
from tauon.data.sources.numbered import numbered
from tauon.data.split import Part
from tauon.errors import DataError

__all__ = ["decontaminate", "duplicates_in", "removal_settings"]

_SHOWN = 10
Pieces = Callable[[], Iterator[tuple[Part, Document]]]


def removal_settings(config: DataConfig) -> list[Any]:
    """Return everything that decides what is left out, besides the sources. JSON values only."""
    against = [sha256_file(path) for path in evaluation_files(config.decontaminate)]
    look = {k: v for k, v in dump(config.decontaminate).items() if k != "against"}
    return [None if config.dedup is None else {k: v for k, v in dump(config.dedup).items() if k != "memory"}, look, against]


def duplicates_in(config: DataConfig, source: SourceConfig, folder: Path) -> tuple[set[int], dict[str, Any]]:
    """Return (numbers of the documents of the training source that repeat an earlier one, facts for the report), by `data.dedup`.

    Args:
        config: the recipe's `data` section.
        source: the training source.
        folder: where the prepared data is written: removed documents are listed in its `rejected/dedup.jsonl`.
    """
    if config.dedup is None:
        return set(), {}
    settings = {k: v for k, v in dump(config.dedup).items() if k != "memory"}
    name = hashlib.sha256(canonical([_VERSION, source.fingerprint(), source.limit, settings]).encode()).hexdigest()[:32]
    state = make_folder(cache_root() / "dedup" / name)
    with locked(state.parent / f".{name}.lock"):
        found = find_duplicates(lambda: (d.text for d in numbered(source)), config.dedup, state)
    removed = dict(zip(found.removed.tolist(), zip(found.of.tolist(), found.similarity.tolist(), strict=True), strict=True))
    wanted = {of for of, _ in removed.values()}
    names: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    chars = 0
    with _rejected(folder, "dedup", bool(removed)) as write:
        for number, document in enumerate(numbered(source) if removed else ()):
            if number in wanted:
                names[number] = document.name
            if number in removed:
                of, similarity = removed[number]
                chars += len(document.text)
                reason = f"{config.dedup.kind} duplicate, similarity {similarity:.3f}"
                row = _row(source, document, "dedup", config.dedup.kind, reason, names[of])
                write(row | {"similarity": round(similarity, 6)})
                if len(rows) < _SHOWN:
                    rows.append({k: row[k] for k in ("record", "of", "reason")})
    facts = {
        "settings": settings, "documents": found.documents, "removed": len(removed), "removed_chars": chars,
        "cluster_sizes": {str(size): count for size, count in found.cluster_sizes.items()}, "examples": rows,
    }  # fmt: skip
    return set(removed), {"dedup": facts}


_VERSION = 1


def decontaminate(
    config: DataConfig, pieces: Pieces, sources: Mapping[Part, SourceConfig], by: str, folder: Path
) -> tuple[Pieces, dict[str, Any]]:
    """Return (the pieces without training documents that repeat held-out text, facts for the report), by `data.decontaminate`.

    Args:
        config: the recipe's `data` section.
        pieces: yields (part, document) of every part, in the same order in each call.
        sources: of each part with its own source.
        by: how the split was made: a text that was cut by position is only reported on, unless `action` is drop.
        folder: where the prepared data is written: removed documents are listed in its `rejected/decontaminate.jsonl`.
    """
    asked = config.decontaminate
    action = asked.action if asked.action != "auto" else "drop" if by == "document" else "report"
    if action == "none":
        return pieces, {}
    names: list[str] = []

    def held() -> Iterator[str]:
        for part, document in pieces():
            if part != "train":
                names.append(f"{part}: {document.name}")
                yield document.text
                report("index held-out text", len(names))
        for name, text in evaluation_texts(asked):
            names.append(name)
            yield text

    index = HeldOut(held(), asked.ngram)
    if not index.texts:
        return pieces, {}
    training = (document.text for part, document in pieces() if part == "train")
    found = {c.text: c for c in index.find(training, asked.share)}
    facts: dict[str, Any] = {
        "action": action, "ngram": asked.ngram, "share": asked.share, "common": COMMON, "held_out_texts": index.texts, "found": len(found),
    }  # fmt: skip
    if not found:
        return pieces, {"decontamination": facts}
    facts["examples"] = _listed(found, names, pieces, sources["train"], folder if action == "drop" else None)
    if action == "report":
        share = f"{asked.share:.0%} of the {asked.ngram}-word sequences of one"
        message = (
            f"{len(found):,} training texts repeat held-out text ({share}, or of their own): {facts['examples'][0]['record']!r}, for example. Figures on it "
            "will be too good. data.decontaminate.action: drop leaves them out"
        )
        return pieces, {"decontamination": facts, "warnings": [message]}
    left = f"{len(found):,} training documents that repeat held-out text, by {asked.ngram}-word sequences: rejected/decontaminate.jsonl"
    return _without(pieces, found, facts), {"decontamination": facts | {"removed": sorted(found)}, "left_out": {"train": [left]}}


def _without(pieces: Pieces, found: Mapping[int, Contaminated], facts: Mapping[str, Any]) -> Pieces:
    """Return the pieces without some training documents. `DataError` if none is left."""

    def kept() -> Iterator[tuple[Part, Document]]:
        number = -1
        for part, document in pieces():
            number += part == "train"
            if part != "train" or number not in found:
                yield part, document

    if not any(part == "train" for part, _ in kept()):
        raise DataError(
            f"all {len(found):,} training documents repeat held-out text, so none is left to train on ({facts['examples'][0]['reason']}). "
            "Use other held-out data, or set data.decontaminate.action: report"
        )
    return kept


def _listed(
    found: Mapping[int, Contaminated], names: Sequence[str], pieces: Pieces, source: SourceConfig, folder: Path | None
) -> list[dict[str, Any]]:
    """Return the first examples; write all to `rejected/` if `folder` is given."""
    rows: list[dict[str, Any]] = []
    with _rejected(folder, "decontaminate", folder is not None) as write:
        training = (document for part, document in pieces() if part == "train")
        for number, document in enumerate(training):
            if number in found:
                c = found[number]
                reason = f"{c.share:.0%} of its word sequences are held out; it has {c.contains:.0%} of those of {names[c.of]}"
                row = _row(source, document, "decontaminate", "held_out", reason, names[c.of])
                write(row | {"share": round(c.share, 6), "contains": round(c.contains, 6)})
                if len(rows) < _SHOWN:
                    rows.append({k: row[k] for k in ("record", "of", "reason")})
    return rows


class _rejected:
    """Writes `rejected/NAME.jsonl`: `with _rejected(folder, "dedup", True) as write: write(row)`. Nothing is written if not `any_`."""

    def __init__(self, folder: Path | None, name: str, any_: bool) -> None:
        self._path = None if folder is None or not any_ else folder / "rejected" / f"{name}.jsonl"

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        if self._path is None:
            self._file = None
            return lambda row: None
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = file = self._path.open("w", encoding="utf-8")
        return lambda row: print(rejected_line(dict(row)), end="", file=file)

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def _row(source: SourceConfig, document: Document, step: str, rule: str, reason: str, of: str) -> dict[str, Any]:
    name = source.member_names()[document.source]
    return rejected_row("train", source=name, record=document.name, step=step, rule=rule, reason=reason, of=of, text=document.text)
