"""Files of operating systems and archivers that are never data: `._a.wav`, `__MACOSX/`, `Thumbs.db`, hidden files."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath

__all__ = ["is_system_file"]

_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"})
_FOLDERS = frozenset({"__macosx", "@eadir"})


def is_system_file(path: PurePath | str) -> bool:
    """Return whether a path, relative to the data folder, is such a file or is below such a folder.

    >>> [is_system_file(p) for p in ("a/1.png", "__MACOSX/a/._1.png", "a/Thumbs.db", ".git/x", "a/._1.wav")]
    [False, True, True, True, True]
    """
    parts = PurePosixPath(path).parts if isinstance(path, str) else path.parts
    return any(p.startswith(".") or p.lower() in _NAMES or p.lower() in _FOLDERS for p in parts if p not in (".", ".."))
