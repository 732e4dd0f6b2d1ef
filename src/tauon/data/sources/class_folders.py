"""Folders with one subfolder per class, and with subfolders train, val and test: shared by images and texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tauon.data.sources.system_files import is_system_file
from tauon.errors import DataError

__all__ = ["PART_NAMES", "class_folders", "natural", "part_of", "visible"]

PART_NAMES = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Names of the subfolders of published parts."""


def natural(path: Path) -> tuple[list[Any], str]:
    """Sort key in which numbers in a name count as numbers."""
    return [(1, int(t), "") if t.isdigit() else (0, 0, t.lower()) for t in re.split(r"(\d+)", path.name) if t], path.name


def visible(folder: Path) -> list[Path]:
    """Return what is in a folder in natural order, without files of the operating system. Raises `DataError`."""
    try:
        return sorted((p for p in folder.iterdir() if not is_system_file(p.name)), key=natural)
    except OSError as err:
        raise DataError(f"{folder}: the folder cannot be read ({err.strerror or err})") from None


def class_folders(root: Path) -> list[Path]:
    """Return the subfolders of a folder in natural order."""
    return [p for p in visible(root) if p.is_dir()]


def part_of(base: Path, name: str) -> Path | None:
    """The subfolder of a part, in any usual spelling. Without a subfolder `train` there are no parts."""
    inside = {p.name.lower(): p for p in visible(base) if p.is_dir()} if base.is_dir() else {}
    if not any(spelt in inside for spelt in PART_NAMES["train"]):
        return None
    return next((inside[spelt] for spelt in PART_NAMES[name] if spelt in inside), None)
