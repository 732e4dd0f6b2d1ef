"""The binary version of CIFAR-10 (Krizhevsky 2009): records of one label byte and 3,072 bytes of red, green and blue planes, in a tar archive.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. The other version is a pickle, which is not read. Downloads nothing.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

import numpy as np

from tauon.data.sources.base import Arrays, class_targets
from tauon.errors import DataError

__all__ = ["cifar_arrays"]

_RECORD = 1 + 3 * 32 * 32
_ROWS = 10_000


def cifar_arrays(content: bytes, where: str, part: str, names: tuple[str, ...]) -> Arrays:
    """The 50,000 images of `train` or the 10,000 of `test`, (N, 3, 32, 32) bytes, from the bytes of cifar-10-binary.tar.gz."""
    wanted = ["test_batch.bin"] if part == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:  # read in memory: nothing is unpacked to disk, so a malicious member name has no effect
                name = member.name.rsplit("/", 1)[-1]
                if name in wanted and member.isfile() and member.size == _RECORD * _ROWS:
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise DataError(f"{where}: not a tar.gz file, or damaged ({err}). Download it again") from None
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{where}: has no member {missing[0]} of {_RECORD * _ROWS:,} bytes, so it is not the binary version of CIFAR-10. Download cifar-10-binary.tar.gz"
        )
    rows = np.concatenate([np.frombuffer(found[name], np.uint8).reshape(-1, _RECORD) for name in wanted])
    targets, label_names = class_targets(rows[:, 0], where, names)
    return Arrays(np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32), targets, (), label_names)
