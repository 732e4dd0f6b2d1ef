"""Public data sets by name: looked up in `registry.py`, fetched and verified by `download.py`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from typing import Any, Literal

from tauon.config import register
from tauon.data.cache import cache_root
from tauon.data.download import fetch
from tauon.data.files import canonical, decode
from tauon.data.sources.base import Arrays, Document, Kind, SourceConfig
from tauon.data.sources.cifar import cifar_arrays
from tauon.data.sources.idx import idx_arrays
from tauon.data.sources.npz import npz_part
from tauon.data.sources.registry import PUBLIC, PublicFile, PublicSet
from tauon.data.sources.text import cut
from tauon.errors import DataError

__all__ = ["PublicConfig"]


@register("public")
class PublicConfig(SourceConfig):
    """A named public set: from the folder in TAUON_DATA, else the cache, else the network; always verified by its sha256."""

    name: str
    """tinyshakespeare, wikitext-2 (text); mnist, cifar10, cifar10-subset, pneumoniamnist (images)."""
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

    def arrays(self) -> Arrays:
        known, files = self._set(), [self._content(f) for f in self._files()]
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
            "bytes": sum(f.bytes for f in files), "files": [{"name": f.mirror, "sha256": f.sha256} for f in files],
        }  # fmt: skip

    def fingerprint(self) -> str:
        """From the published hashes: nothing is read, since whatever is read later is checked against them."""
        limit, known = self.peek("limit"), self._set()
        facts = ["public", [f.sha256 for f in self._files()], known.document_start, known.label_names, limit]
        if known.layout in ("npz", "cifar"):
            facts.append(self._part())  # one file holds all parts
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
        folder, name = cache_root() / "public" / self.name, file.mirror.split("/")[-1]
        kept = folder / (name if file.packed else name.removesuffix(".gz"))
        return fetch(file.mirror, file.urls, file.sha256, file.bytes, kept, packed=file.packed, md5=file.md5)
