"""Public data sets by name: looked up in `registry.py`, fetched and verified by `download.py`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tauon.config import register
from tauon.data.cache import cache_root
from tauon.data.download import fetch
from tauon.data.files import canonical, decode
from tauon.data.sources.base import Arrays, Document, Kind, Series, SourceConfig, Table, class_targets
from tauon.data.sources.idx import idx_arrays
from tauon.data.sources.registry import PUBLIC, PublicFile, PublicSet
from tauon.data.sources.series import SeriesConfig, csv_columns, series_of
from tauon.data.sources.tables import separated
from tauon.data.sources.text import cut
from tauon.errors import DataError

__all__ = ["PublicConfig"]


@register("public")
class PublicConfig(SourceConfig):
    """A named public set: from the folder in TAUON_DATA, else the cache, else the network; always verified by its sha256."""

    name: str
    """tinyshakespeare, wikitext-2 (text), mnist (images), german-credit (a table), etth1 (a series)."""
    split: Literal["auto", "train", "validation", "test"] = "auto"
    """Which published part. `auto`: the training part, and the set's own validation and test parts where it has them and the
    recipe names no other."""

    def problems(self) -> Iterator[tuple[str, str]]:
        name, split = self.peek("name"), self.peek("split")
        if name not in PUBLIC:
            close = difflib.get_close_matches(name, PUBLIC, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield "name", f"no public set is called {name!r}{hint} There are: {', '.join(PUBLIC)}"
        elif split != "auto" and split not in PUBLIC[name].parts:
            yield "split", f"{name} was published without a part {split!r}; it has {', '.join(PUBLIC[name].parts)}"

    def gives(self) -> Kind:
        known = PUBLIC.get(self.peek("name"))
        return known.gives if known else "text"

    def part(self, name: Literal["validation", "test"]) -> SourceConfig | None:
        if self.split != "auto" or name not in self._set().parts:
            return None
        return type(self)(name=self.peek("name"), split=name)

    def documents(self) -> Iterator[Document]:
        known = self._set()
        for file in self._files():
            content, where = self._content(file)
            yield from cut(decode(content, where), file.mirror.removesuffix(".gz"), known.document_start)

    def tabular(self) -> bool:
        known = PUBLIC.get(self.peek("name"))
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
        return Table(columns, targets, known.label_names, (), places, known.label)

    def series(self) -> Series:
        known = self._set()
        if not known.date:
            return super().series()
        content, where = self._content(self._files()[0])
        return series_of(csv_columns(decode(content, where), where), SeriesConfig(path=where, date=known.date), where)

    def arrays(self) -> Arrays:
        if self._set().columns:
            raise DataError(f"{self.name} has columns of words; they become numbers with data.table")
        (images, images_at), (labels, labels_at) = [self._content(f) for f in self._files()]
        return idx_arrays(images, labels, images_at, labels_at, self._set().label_names)

    def describe(self) -> dict[str, Any]:
        known, files = self._set(), self._files()
        return {
            "kind": self.kind_, "name": self.name, "part": self._part(), "title": known.title, "licence": known.licence, "home": known.home,
            "bytes": sum(f.bytes for f in files), "files": [{"name": f.mirror, "sha256": f.sha256} for f in files],
        }  # fmt: skip

    def fingerprint(self) -> str:
        """From the published hashes: nothing is read, since whatever is read later is checked against them."""
        limit, known = self.peek("limit"), self._set()
        facts = ["public", [f.sha256 for f in self._files()], known.document_start, known.label_names, limit]
        return hashlib.sha256(canonical(facts).encode()).hexdigest()

    def _set(self) -> PublicSet:
        if self.name not in PUBLIC:
            raise DataError(f"no public set is called {self.name!r}. There are: {', '.join(PUBLIC)}")
        return PUBLIC[self.name]

    def _part(self) -> Literal["train", "validation", "test"]:
        return "train" if self.split == "auto" else self.split

    def _files(self) -> tuple[PublicFile, ...]:
        return self._set().parts[self._part()]

    def _content(self, file: PublicFile) -> tuple[bytes, str]:
        folder = cache_root() / "public" / self.name
        return fetch(file.mirror, file.urls, file.sha256, file.bytes, folder / file.mirror.split("/")[-1].removesuffix(".gz"))
