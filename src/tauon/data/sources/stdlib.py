"""The source code of the Python standard library of this interpreter: real text that every machine has."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauon.config import register
from tauon.data.files import read_bytes, sha256_bytes
from tauon.data.sources.base import Document, SourceConfig
from tauon.errors import DataError

__all__ = ["PythonStdlibConfig"]

_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "turtledemo", "lib2to3", "pydoc_data", "__pycache__"}
)


@register("python-stdlib")
class PythonStdlibConfig(SourceConfig):
    """Every `.py` file of the standard library, a document each, in order of name.

    Left out: installed packages, tests, demos and generated text (folders site-packages, dist-packages, test, tests, idlelib,
    idle_test, turtledemo, lib2to3, pydoc_data, __pycache__), files that are not UTF-8, blank files, and second copies of the
    same content. Another version of Python gives another text: the report names the version.
    """

    def files(self) -> list[tuple[Path, str]]:
        root = Path(sysconfig.get_path("stdlib"))
        kept: list[tuple[str, Path]] = []
        for folder, below, names in os.walk(root):
            below[:] = [b for b in below if b not in _LEFT_OUT]  # pruned here: site-packages may hold a hundred times more
            kept += [((Path(folder) / n).relative_to(root).as_posix(), Path(folder) / n) for n in names if n.endswith(".py")]
        kept.sort()
        if not kept:
            raise DataError(
                f"{root}: found no source files of the standard library (a stripped or zipped Python?). Use data.source: text instead"
            )
        return [(p, name) for name, p in kept]

    def documents(self) -> Iterator[Document]:
        seen: set[str] = set()
        for path, name in self.files():
            data = read_bytes(path)
            digest = sha256_bytes(data)
            if digest in seen or not data.strip():
                continue
            seen.add(digest)
            try:
                yield Document(data.decode("utf-8"), name)
            except UnicodeDecodeError:
                continue

    def describe(self) -> dict[str, Any]:
        return {"licence": "PSF-2.0"} | super().describe() | {"python": sys.version.split()[0], "implementation": sys.implementation.name}
