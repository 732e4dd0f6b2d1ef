"""A sheet of training images as the model sees them, augmented and mixed, as PNG, to check by eye before training.

The PNG is written here (zlib and four chunks), so that no image library is needed. Format: W3C PNG, third edition.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from tauon.data.arrays import ArrayDataset
from tauon.data.loader import Loader
from tauon.types import Dataset

__all__ = ["picture_sheet", "png"]

_ROWS, _COLUMNS, _LARGEST = 4, 8, 96


def picture_sheet(dataset: Dataset, seed: int) -> bytes | None:
    """Return a PNG of the first 32 training examples in the order of the run; None if examples are not images of 1 or 3 channels."""
    shape = dataset.spec.input_shape
    if not isinstance(dataset, ArrayDataset) or shape is None or len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 4:
        return None
    with Loader(dataset, batch=_ROWS * _COLUMNS, seed=seed) as loader:
        pictures = dataset.as_bytes(loader.batch_at(0).inputs)
    stride = -(-max(shape[1:]) // _LARGEST)
    pictures = pictures[:, :, ::stride, ::stride]
    N, C, H, W = pictures.shape
    sheet = np.full((_ROWS * (H + 1) - 1, _COLUMNS * (W + 1) - 1, C), 128, np.uint8)
    for i in range(N):
        y, x = i // _COLUMNS * (H + 1), i % _COLUMNS * (W + 1)
        sheet[y : y + H, x : x + W] = np.moveaxis(pictures[i], 0, -1)
    return png(sheet)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 1 or 3) bytes as a PNG, grey or RGB, 8 bits per value."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # each row begins with its filter: none
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
