"""Images as histograms of the directions of their edges in 7 x 7 cells (Dalal & Triggs 2005): says more of what is shown than pixels do, and costs little."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.images import cells, grey

__all__ = ["gradients"]

_SIDE, _CELLS, _DIRECTIONS = 32, 7, 8


def gradients(images_NCHW: NDArray[Any]) -> NDArray[np.float32]:
    """Return unit vectors of 7 x 7 x 8 numbers, and of a grey thumbnail of 7 x 7, from images with values from 0 to 255. Large ones are shrunk to 32 pixels.

    >>> gradients(np.zeros((2, 3, 40, 30), np.uint8)).shape
    (2, 441)
    """
    x = grey(images_NCHW)
    x = cells(x, min(_SIDE, x.shape[1]), min(_SIDE, x.shape[2]))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strength = np.hypot(across, down)
    angle = np.arctan2(down, across) % np.pi / np.pi * _DIRECTIONS
    parts = []
    for direction in range(_DIRECTIONS):
        apart = np.abs((angle - direction + _DIRECTIONS / 2) % _DIRECTIONS - _DIRECTIONS / 2)
        parts.append(cells(strength * np.clip(1 - apart, 0, None), _CELLS, _CELLS))
    edges = np.sqrt(np.stack(parts, 1).reshape(len(x), -1))
    edges /= np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)
    small = cells(x, _CELLS, _CELLS).reshape(len(x), -1)
    small -= small.mean(1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)
    out: NDArray[np.float32] = np.concatenate([edges, 0.5 * small], 1).astype(np.float32)
    return out
