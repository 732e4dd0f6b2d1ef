"""What has been written is let go: memory does not grow with the file."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np

from tauon.data import Rows
from tauon.predict.files import _in_tiles


class Cells(np.ndarray):
    """An array that can be watched."""


def test_no_piece_outlives_the_next_but_one() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def pieces() -> Iterator[Rows]:
        for i in range(20):
            cells = np.arange(i * 100, i * 100 + 100).view(Cells)
            alive.append(weakref.ref(cells))
            yield Rows({"x": cells}, lambda j, column, i=i: f"line {i * 100 + j}: {column}")  # type: ignore[misc]

    seen = 0
    gc.freeze()  # what other tests left is not looked at twenty times
    for rows in _in_tiles(pieces(), 64):
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 3
        assert rows.columns["x"][0] == seen
        assert rows.where(0, "x") == f"line {seen}: x"
        assert rows.where(len(rows) - 1, "x") == f"line {seen + len(rows) - 1}: x"
        seen += len(rows)
    assert seen == 2000
