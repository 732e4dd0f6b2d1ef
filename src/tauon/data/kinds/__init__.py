"""Kinds of data: what one example is, one file each. Every file in this folder is imported here, so a new file is registered automatically."""

from __future__ import annotations

import importlib
import pkgutil

__all__: list[str] = []

_ORDER = ("tokens", "arrays", "tables", "series", "signals", "labelled_text", "chat", "pairs")
"""Order in which messages list them; a file that is not named here comes last."""

_names = sorted(m.name for m in pkgutil.iter_modules(__path__))
for _name in sorted(_names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)):
    importlib.import_module(f"{__name__}.{_name}")
