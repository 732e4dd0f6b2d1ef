"""A one-dimensional `.npy` file that is written piece by piece, so that memory does not grow with it.

The header is written first for length 0 and again when the length is known: NumPy pads it for lengths of up to 21 digits. Does not read:
`np.load(path, mmap_mode="r", allow_pickle=False)` does.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["NpyFile"]


class NpyFile:
    """Appends to a new file; `close` completes it."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._header()
        self.begin = self._file.tell()

    def _header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: NDArray[Any]) -> None:
        """Append values of one dimension, converted to the file's type."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Write the final length."""
        if self._file.closed:
            return
        self._file.seek(0)
        self._header()
        assert self._file.tell() == self.begin, "the header of a longer array has another size"
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()  # not completed: its writer failed

    def __enter__(self) -> NpyFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
