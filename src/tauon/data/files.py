"""Read user files, and write JSON for them.

`.gz` and `.zst` are recognised by their first bytes and decompressed while reading. Any problem with a file is a `DataError` that names
it. Independent of the content.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tauon.artifacts.files import atomic_write
from tauon.data.remote import is_remote, remote_files
from tauon.errors import DataError, MissingExtra, RunError

__all__ = ["decode", "expand", "raw_bytes", "read_bytes", "sha256_bytes", "sha256_file", "write_plain_json"]

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PIECE = 2**12
"""Bytes of zstd that are decompressed at a time: to 128 MiB at most, for blocks that repeat one byte."""
ALWAYS = 2**30
"""Bytes that any file may expand to."""
TIMES = 100
"""Factor by which a larger file may expand. Text compresses to a tenth; only malicious or empty files to a hundredth."""
VARIABLE = "TAUON_MAX_UNPACKED"
"""Environment variable with another limit, in bytes."""


def most_unpacked(packed: int) -> int:
    """Return the bytes that a file of `packed` bytes may expand to. DataError if TAUON_MAX_UNPACKED is not a number of bytes."""
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return max(ALWAYS, TIMES * packed)
    if not asked.isdecimal() or not int(asked):
        raise DataError(f"{VARIABLE} is {asked!r}, expected a number of bytes above 0, for example 10000000000")
    return int(asked)


def refuse_bomb(where: object, unpacked: int, packed: int) -> None:
    """Raise DataError if a file of `packed` bytes expands to more than its limit."""
    most = most_unpacked(packed)
    if unpacked > most:
        raise DataError(
            f"{where}: {packed:,} bytes that decompress to more than {most:,}: damaged, or a decompression bomb. If the file is correct, decompress "
            f"it first, or set the environment variable {VARIABLE} to a larger number of bytes"
        )


class _Bounded(io.RawIOBase):
    """A stream that raises an error if it yields more than a file of its size may."""

    def __init__(self, stream: BinaryIO, path: Path, packed: int) -> None:
        self.stream, self.path, self.packed, self.given = stream, path, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        self.given += len(data)
        refuse_bomb(self.path, self.given, self.packed)
        buffer[: len(data)] = data
        return len(data)


class _Unzstd(io.RawIOBase):
    """A stream of zstd, decompressed a piece at a time: several frames may follow each other, and a truncated one is an error."""

    def __init__(self, packed: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError as err:
            raise MissingExtra(f"{path}: reading .zst", "zstd") from err
        self.zstandard, self.fileobj, self.path = zstandard, packed, path
        self.frame: Any = None
        """The frame that is being read; None before one and after one."""
        self.unused, self.ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            piece = self.unused or self.fileobj.read(_PIECE)
            self.unused = b""
            if not piece:
                if self.frame is not None:
                    raise DataError(f"{self.path}: truncated zstd. Copy or download the file again")
                return 0
            self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
            try:
                self.ready = memoryview(self.frame.decompress(piece))
            except self.zstandard.ZstdError as err:
                raise DataError(f"{self.path}: damaged zstd ({err}). Copy or download the file again") from None
            if self.frame.eof:
                self.unused, self.frame = self.frame.unused_data, None
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file as a stream, decompressed if it is gzip or zstd. A truncated stream is a `DataError` when it ends."""
    try:
        with open(path, "rb") as raw:
            head = raw.read(4)
            raw.seek(0)
            if head[:2] == _GZIP:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield io.BufferedReader(_Bounded(unpacked, path, os.fstat(raw.fileno()).st_size), 2**17)  # type: ignore[arg-type]
            elif head == _ZSTD:
                yield io.BufferedReader(_Bounded(_Unzstd(raw, path), path, os.fstat(raw.fileno()).st_size), 2**17)  # type: ignore[arg-type]
            else:
                yield raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Relative paths start at {Path.cwd()}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a file") from None
    except PermissionError:
        raise DataError(f"{path}: permission denied. Check its mode and owner") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise DataError(f"{path}: damaged or truncated gzip ({err}). Copy or download the file again") from None
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from None


def read_bytes(path: Path) -> bytes:
    """Return the whole file, decompressed."""
    with open_bytes(path) as file:
        return file.read()


def raw_bytes(path: Path) -> bytes:
    """Return the whole file as stored, compressed or not."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from None


def decode(data: bytes, where: str, encoding: str = "utf-8") -> str:
    """Decode text strictly: an error has the byte offset of the first invalid byte."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as err:
        bad = data[err.start : err.start + 4].hex(" ")
        raise DataError(
            f"{where}: not {encoding} at byte {err.start:,} ({bad}: {err.reason}). "
            "Convert the file, or set its encoding (encoding: latin-1, for example)"
        ) from None
    except LookupError:
        raise DataError(f"{where}: unknown encoding {encoding!r}. Common ones are utf-8, latin-1 and utf-16") from None


def expand(paths: str | Sequence[str], pattern: str = "**/*") -> list[tuple[Path, str]]:
    """Return (file, name) of all files that `paths` match, sorted by name, each file once.

    A path is a file, a glob, or a folder, here or in an object store (s3://bucket/folder). Of a folder, every file below it that matches
    `pattern` is taken, except hidden ones. Names are relative to the folder given, so that they do not change when the folder moves.
    """
    found: dict[Path, str] = {}
    for text in [paths] if isinstance(paths, str) else paths:
        if is_remote(text):
            found |= remote_files(text, pattern)
            continue
        path = _at_home(text)
        if path.is_dir():
            inside = [p for p in path.glob(pattern) if p.is_file() and not any(s.startswith(".") for s in p.relative_to(path).parts)]
            if not inside:
                raise DataError(f"{path}: the folder has no file that matches {pattern!r}")
            found |= {p: p.relative_to(path).as_posix() for p in inside}
        elif path.exists() or not glob.has_magic(text):
            if not path.exists():
                near = _nearest_name(path)
                raise DataError(f"{path}: no such file or folder{near}. Relative paths start at {Path.cwd()}")
            found[path] = path.name
        else:
            inside = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
            if not inside:
                raise DataError(f"{text}: no file matches this pattern. Relative patterns start at {Path.cwd()}")
            found |= {p: p.as_posix() for p in inside}
    return sorted(found.items(), key=lambda item: (item[1], str(item[0])))


def _at_home(text: str) -> Path:
    """Return a path with `~` and `~name` expanded; a file that is called ~.csv stays."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def _nearest_name(path: Path) -> str:
    import difflib

    with contextlib.suppress(OSError):
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        if close:
            return f"; did you mean {str(path.parent / close[0])!r}?"
    return ""


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of the bytes on disk, not decompressed."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Relative paths start at {Path.cwd()}") from None
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from None


def canonical(value: Any) -> str:
    """Return canonical JSON, for hashing: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_plain_json(path: Path, value: Any) -> None:
    """Write standard JSON, atomically. `artifacts.write_json` also stores inf and nan and for this escapes strings such as "NaN", which a
    vocabulary may contain and which readers of plain JSON would get wrong.
    """
    try:
        atomic_write(path, json.dumps(value, indent=1, allow_nan=False))
    except RunError as err:
        raise DataError(str(err)) from None
