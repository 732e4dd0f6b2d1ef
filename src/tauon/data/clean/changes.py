"""Which filters changed a text that was kept: `changes/train.npy`, (N, 4) int64, one row for each text and filter that changed it, in the order in
which texts are read: source, record, offset, number of the filter.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from pathlib import Path

import numpy as np

__all__ = ["changed_by", "write_changes"]


def write_changes(folder: Path, part: str, changes: array[int]) -> None:
    """Write the rows of a source, one after the other; no file if there are none."""
    if changes:
        (folder / "changes").mkdir(exist_ok=True)
        np.save(folder / "changes" / f"{part}.npy", np.frombuffer(changes, np.int64).reshape(-1, 4), allow_pickle=False)


def changed_by(folder: Path, part: str, source: int, record: int) -> list[int]:
    """Return the numbers of the filters that changed a record of the source of a part, ascending.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     write_changes(Path(place), "train", array("q", [0, 3, 0, 1, 0, 7, 0, 0, 0, 7, 0, 2]))
    ...     changed_by(Path(place), "train", 0, 7), changed_by(Path(place), "train", 0, 4)
    ([0, 2], [])
    """
    path = folder / "changes" / f"{part}.npy"
    if not path.is_file():
        return []
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    found = set[int]()
    for row in range(bisect_left(rows, (source, record), key=lambda r: (int(r[0]), int(r[1]))), len(rows)):
        if (int(rows[row, 0]), int(rows[row, 1])) != (source, record):
            break
        found.add(int(rows[row, 3]))
    return sorted(found)
