"""The safetensors format, written as a stream: eight bytes of header length, a JSON header, raw little-endian bytes.

`safetensors.torch.save_file` needs the tensors a second time as bytes; here chunks are hashed (SHA-256) and written
from a buffer that is laid out like the file. Reading uses the `safetensors` library.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.artifacts.files import write_all
from tauon.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Entry",
    "Layout",
    "LazyTensor",
    "SnapshotBuffer",
    "entry_of",
    "lay_out",
    "lay_out_entries",
    "open_tensors",
    "pieces",
    "write_tensors",
]

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_CHUNK = 4 << 20
"""Bytes between two checks by the interpreter: hashing and writing a chunk run without the interpreter lock."""


@dataclass(frozen=True)
class Layout:
    """Position of each tensor of a group in its file."""

    header: bytes
    """The first bytes of the file: length, JSON, padding."""
    offsets: dict[str, tuple[int, int]]
    """Name to (first byte, number of bytes) after the header, in file order; tied tensors only once."""
    aliases: dict[str, str]
    """Tied tensors: name to the name under which the same memory is stored."""
    size: int
    """Bytes after the header."""


def lay_out(tensors: Mapping[str, Tensor], what: str) -> Layout:
    """Plan the file of a group of tensors; `what` is the group's name in errors.

    Raises `CheckpointError` for what the format does not support: values that are not tensors, meta or sparse tensors, an unsupported
    dtype.
    """
    kept: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    entries: list[Entry] = []
    for name, tensor in tensors.items():
        entry = entry_of(name, tensor, what)
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
            if key in kept:
                aliases[name] = kept[key]
                continue
            kept[key] = name
        entries.append(entry)
    return lay_out_entries(entries, aliases)


Entry = tuple[str, str, tuple[int, ...], int]
"""(name, safetensors dtype, shape, bytes per element)."""


def entry_of(name: str, tensor: Tensor, what: str) -> Entry:
    """Return the header entry of a tensor; `CheckpointError` for one that the format does not support."""
    import torch

    place = f"group {what!r}, tensor {name!r}"
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{place}: got {type(tensor).__name__}, expected a tensor. Put plain values into `state`.")
    code = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if code is None or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise CheckpointError(
            f"{place}: a {tensor.layout} {tensor.dtype} tensor on {tensor.device.type} cannot be saved. "
            f"Use a dense tensor with allocated memory, of dtype {', '.join(_DTYPES)}."
        )
    if not isinstance(name, str) or name == "__metadata__":
        raise CheckpointError(f"{place}: a name must be a string, and not '__metadata__'. Rename it.")
    return name, code, tuple(tensor.shape), tensor.element_size()


def lay_out_entries(entries: Iterable[Entry], aliases: Mapping[str, str]) -> Layout:
    """Return the layout of a file with these tensors, independent of which process has them."""
    # Wide dtypes first, as the library does: then every tensor starts at a multiple of its element size.
    ordered = sorted(entries, key=lambda e: (-e[3], e[0]))
    # The metadata of tied tensors is what `safetensors.torch.save_model` writes.
    header: dict[str, object] = {"__metadata__": {"format": "pt", **aliases}}
    offsets, at = {}, 0
    for name, code, shape, width in ordered:
        size = math.prod(shape) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        offsets[name] = (at, size)
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    return Layout(len(text).to_bytes(8, "little") + text, offsets, dict(aliases), at)


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the tensor's elements as a flat uint8 tensor on its own device; a view if it is contiguous."""
    import torch

    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def pieces(layout: Layout, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the tensors' bytes in file order, directly from their memory."""
    for name in layout.offsets:
        yield as_bytes(tensors[name]).cpu().numpy().data


def write_tensors(path: Path, layout: Layout, data: Iterable[memoryview]) -> tuple[str, int]:
    """Write a new file and force it to disk; return its SHA-256 and its size in bytes."""
    if sys.byteorder != "little":  # pragma: no cover - torch runs on no such machine today
        raise CheckpointError("safetensors files are little-endian; this machine is not.")
    digest = hashlib.sha256(layout.header)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(fd, layout.header)
        for piece in data:
            for start in range(0, len(piece), _CHUNK):
                chunk = piece[start : start + _CHUNK]
                digest.update(chunk)
                write_all(fd, chunk)
        os.fsync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest(), len(layout.header) + layout.size


class SnapshotBuffer:
    """Memory for a copy of one group, laid out like its file, reused by every save so that pages are allocated only once."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None
        self._pinned = False

    def take(self, layout: Layout, tensors: Mapping[str, Tensor]) -> memoryview:
        """Copy the tensors to the CPU; the bytes stay valid until the next call."""
        pinned = any(t.device.type == "cuda" for t in tensors.values())
        if self._flat is None or self._flat.numel() < layout.size or self._pinned != pinned:
            self._flat = None  # free the old memory first
            self._flat, self._pinned = _allocate(layout.size, pinned), pinned
        for name, (start, size) in layout.offsets.items():
            self._flat[start : start + size].copy_(as_bytes(tensors[name]))
        return self._flat.numpy().data[: layout.size]


def _allocate(size: int, pinned: bool) -> Tensor:
    import torch

    if pinned:
        return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)  # the first copy then faults once per 2 MiB, not once per 4 KiB
    return torch.frombuffer(memory, dtype=torch.uint8)


class LazyTensor:
    """A tensor in a file. Indexing with slices reads that part alone; `read` returns all of it."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self.shape = tuple(file.get_slice(name).get_shape())

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        if all(s.indices(n) == (0, n, 1) for s, n in zip(where, self.shape, strict=False)):
            return self.read()  # a view of the mapped file; a slice would be copied
        part: Tensor = self._file.get_slice(self._name)[where]
        return part

    def read(self) -> Tensor:
        """Return the whole tensor."""
        whole: Tensor = self._file.get_tensor(self._name)
        return whole


def open_tensors(path: Path, aliases: Mapping[str, str]) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file by name, not yet read. `CheckpointError` if it cannot be opened."""
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="pt")
        found = {name: LazyTensor(file, name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError) as err:
        raise CheckpointError(f"{path}: cannot be read: {err}. Use an earlier checkpoint.") from err
    return found | {name: found[kept] for name, kept in aliases.items()}
