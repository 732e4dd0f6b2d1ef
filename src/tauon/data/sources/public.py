"""Public data sets by name: defined in `registry.py`, downloaded and verified by `download.py`."""

from __future__ import annotations

import difflib
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tauon.config import register
from tauon.data.cache import cache_root
from tauon.data.download import fetch, members_digest
from tauon.data.files import canonical, decode, refuse_bomb
from tauon.data.sources.base import (
    Arrays,
    Conversation,
    Document,
    Kind,
    LabelledTexts,
    Pair,
    Series,
    Signals,
    SourceConfig,
    Table,
    class_targets,
)
from tauon.data.sources.chat_rows import conversation, pair
from tauon.data.sources.cifar import cifar_arrays
from tauon.data.sources.idx import idx_arrays
from tauon.data.sources.labelled import published
from tauon.data.sources.npz import npz_part
from tauon.data.sources.registry import PUBLIC, PublicFile, PublicSet
from tauon.data.sources.separated import separated
from tauon.data.sources.series import SeriesConfig, csv_columns, series_of
from tauon.data.sources.text import cut
from tauon.data.sources.wav import Choice, labelled, named_parts
from tauon.data.text_files import json_rows
from tauon.errors import DataError

__all__ = ["PublicConfig"]


@register("public")
class PublicConfig(SourceConfig):
    """A public data set by name: from the folder TAUON_DATA, the cache, or the network, in this order; always verified by its sha256."""

    name: str
    """tinyshakespeare, wikitext-2 (text); mnist, cifar10, cifar10-subset, pneumoniamnist (images); german-credit (a table), etth1 (a
    series), fsdd (recordings), ag-news, sst2 (texts with labels), alpaca-5k (conversations), dpo-demo (preferences)."""
    split: Literal["auto", "train", "validation", "test", "all"] = "auto"
    """Which published part. `auto`: the training part, with the set's own validation and test parts as held-out data unless the recipe names
    others. `all`: for recordings, every one."""
    only: Choice = Field(default_factory=dict)
    """For recordings: keep those whose part of the name is one of these: `{speaker: [theo]}`."""
    without: Choice = Field(default_factory=dict)
    """For recordings: leave these out."""

    def problems(self) -> Iterator[tuple[str, str]]:
        name, split = self.raw_value("name"), self.raw_value("split")
        if name not in PUBLIC:
            close = difflib.get_close_matches(name, PUBLIC, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield "name", f"no public set is called {name!r}{hint} Available: {', '.join(PUBLIC)}"
        elif split != "auto" and split not in PUBLIC[name].parts:
            yield "split", f"{name} has no part {split!r}; its parts: {', '.join(PUBLIC[name].parts)}"
        elif PUBLIC[name].output_kind != "signals":
            yield from (
                (key, f"is only for recordings, and {name} has none; remove it") for key in ("only", "without") if self.raw_value(key)
            )

    def output_kind(self) -> Kind:
        known = PUBLIC.get(self.raw_value("name"))
        return known.output_kind if known else "text"

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto" or name not in self._set().parts:
            return None
        return type(self)(name=self.raw_value("name"), split=name, only=self.only, without=self.without)

    def documents(self) -> Iterator[Document]:
        known = self._set()
        for file in self._files():
            content, where = self._content(file)
            yield from cut(decode(content, where), file.mirror.removesuffix(".gz"), known.document_start)

    def tabular(self) -> bool:
        known = PUBLIC.get(self.raw_value("name"))
        return known is not None and bool(known.columns)

    def table(self) -> Table | None:
        known = self._set()
        if not known.columns:
            return None
        columns: dict[str, list[Any]] = {c: [] for c in known.columns}
        places: list[str] = []
        for file in self._files():
            content, where = self._content(file)
            for number, cells in separated(decode(content, where), where, "blanks"):
                places.append(f"{where}, line {number}")
                for name, cell in zip(columns, cells, strict=True):
                    columns[name].append(cell)
        targets, _ = class_targets(np.array(columns.pop(known.label)), f"{self.name}: column {known.label!r}")
        return Table(dict(columns), targets, known.label_names, (), places, known.label)

    def signals(self) -> Signals:
        known, part = self._set(), self._part()
        file = self._files()[0]
        folder = cache_root() / "public" / self.name
        content, where = fetch(file.mirror, file.urls, file.sha256, file.bytes, folder / file.mirror.split("/")[-1], members_digest)
        with zipfile.ZipFile(io.BytesIO(content)) as z:
            refuse_bomb(where, sum(i.file_size for i in z.infolist()), len(content))
            files: dict[str, bytes | Path] = {n: z.read(n) for n in sorted(z.namelist()) if n.lower().endswith(".wav")}
        labels = sorted({p["label"] for p in named_parts(list(files), known.pattern, where).values()})
        spelled = dict(zip(labels, known.label_names, strict=True))
        asked = {k: tuple(v) for k, v in self.only.items()}
        mine = known.only.get(part, {})
        only = {k: tuple(v for v in asked.get(k, mine.get(k, ())) if v in mine.get(k, asked.get(k, ()))) for k in {*asked, *mine}}
        return labelled(files, where, known.pattern, only, self.without, label_names=spelled)

    def labelled_texts(self) -> LabelledTexts:
        known = self._set()
        if not known.form:
            return super().labelled_texts()
        content, where = self._content(self._files()[0])
        return published(decode(content, where), where, known.form, known.label_names)

    def conversations(self) -> list[Conversation]:
        if self._set().output_kind != "chat":
            return super().conversations()
        content, where = self._content(self._files()[0])
        return [conversation(row, at) for at, row in json_rows(decode(content, where), where)]

    def pairs(self) -> list[Pair]:
        if self._set().output_kind != "pairs":
            return super().pairs()
        content, where = self._content(self._files()[0])
        return [pair(row, at) for at, row in json_rows(decode(content, where), where)]

    def series(self) -> Series:
        known = self._set()
        if not known.date:
            return super().series()
        content, where = self._content(self._files()[0])
        return series_of(csv_columns(decode(content, where), where), SeriesConfig(path=where, date=known.date), where)

    def arrays(self) -> Arrays:
        known = self._set()
        if known.columns:
            raise DataError(f"{self.name} has text columns; data.table encodes them as numbers")
        files = [self._content(f) for f in self._files()]
        if known.layout == "idx":
            (images, images_at), (labels, labels_at) = files
            return idx_arrays(images, labels, images_at, labels_at, known.label_names)
        ((content, where),) = files
        if known.layout == "cifar":
            return cifar_arrays(content, where, self._part(), known.label_names)
        return npz_part(content, where, self._part(), known.label_names)

    def describe(self) -> dict[str, Any]:
        known, files = self._set(), self._files()
        return {
            "kind": self.kind_, "name": self.name, "part": self._part(), "title": known.title, "licence": known.licence, "home": known.home,
            "origin": files[0].urls[0] if files and files[0].urls else known.home,
            "bytes": sum(f.bytes for f in files), "files": [{"name": f.mirror, "sha256": f.sha256} for f in files],
        } | self.provenance()  # fmt: skip

    def fingerprint(self) -> str:
        """Return the published hashes: no file is read here, since every file is checked against them when it is read."""
        limit, known = self.raw_value("limit"), self._set()
        facts = ["public", [f.sha256 for f in self._files()], known.document_start, known.label_names, limit]
        if known.layout in ("npz", "cifar"):
            facts.append(self._part())  # one file holds all parts
        return hashlib.sha256(canonical(facts).encode()).hexdigest()

    def _set(self) -> PublicSet:
        if self.name not in PUBLIC:
            raise DataError(f"no public set is called {self.name!r}. Available: {', '.join(PUBLIC)}")
        return PUBLIC[self.name]

    def _part(self) -> Literal["train", "validation", "test", "all"]:
        return "train" if self.split == "auto" else self.split

    def _files(self) -> tuple[PublicFile, ...]:
        return self._set().parts[self._part()]

    def _content(self, file: PublicFile) -> tuple[bytes, str]:
        folder, name = cache_root() / "public" / self.name, file.mirror.split("/")[-1]
        kept = folder / (name if file.packed else name.removesuffix(".gz"))
        return fetch(file.mirror, file.urls, file.sha256, file.bytes, kept, packed=file.packed, md5=file.md5)
