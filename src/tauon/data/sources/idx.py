"""IDX files, the format of MNIST: two zero bytes, a type, the number of dimensions, the dimensions, the numbers.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database". Numbers are big-endian.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.files import expand, read_bytes
from tauon.data.sources.base import Arrays, Kind, SourceConfig, class_targets
from tauon.errors import DataError

__all__ = ["IdxConfig", "parse_idx"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(data: bytes, where: str) -> NDArray[Any]:
    """The array in an IDX file, in the machine's byte order."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or data[3] == 0:
        raise DataError(
            f"{where}: not an IDX file: it begins with {data[:4].hex(' ') or 'nothing'}, expected 00 00, a type "
            f"({', '.join(f'{t:02x}' for t in _TYPES)}) and the number of dimensions"
        )
    dtype, ndim = np.dtype(_TYPES[data[2]]), data[3]
    head = 4 + 4 * ndim
    if len(data) < head:
        raise DataError(
            f"{where}: the IDX header names {ndim} dimensions but ends after {len(data)} bytes. Copy or download the file again"
        )
    shape = struct.unpack(f">{ndim}I", data[4:head])
    expected = head + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise DataError(
            f"{where}: the IDX header announces {' x '.join(map(str, shape))} {dtype.name}, {expected:,} bytes in all, "
            f"but the file has {len(data):,}. Copy or download the file again"
        )
    return np.frombuffer(data, dtype, offset=head).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


@register("idx")
class IdxConfig(SourceConfig):
    """Images and labels in two IDX files (plain, gzip or zstd)."""

    images: str
    """File of the examples: (N, height, width), (N, channels, height, width) or (N, features)."""
    labels: str
    """File of the class numbers: (N)."""
    label_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ...; if set, a label outside is an error."""

    provides: ClassVar[Kind] = "arrays"

    def files(self) -> list[tuple[Path, str]]:
        return [(expand(self.images)[0][0], "images"), (expand(self.labels)[0][0], "labels")]

    def arrays(self) -> Arrays:
        (images, _), (labels, _) = self.files()
        return idx_arrays(read_bytes(images), read_bytes(labels), str(images), str(labels), self.label_names)


def idx_arrays(images: bytes, labels: bytes, images_at: str, labels_at: str, names: tuple[str, ...]) -> Arrays:
    features, values = parse_idx(images, images_at), parse_idx(labels, labels_at)
    if features.ndim not in (2, 3, 4):
        raise DataError(f"{images_at}: {features.ndim} dimensions, expected 2 (rows), 3 (grey images) or 4 (images with channels)")
    if len(features) != len(values):
        raise DataError(
            f"{images_at} has {len(features):,} examples, but {labels_at} has {len(values):,} labels. Give the two files of one data set"
        )
    if features.ndim == 3:
        features = features[:, None]
    targets, label_names = class_targets(values, labels_at, names)
    return Arrays(features, targets, (), label_names)
