"""Atomic writes of a file or a folder, JSON that preserves inf and nan, checksums.

Everything is written under a temporary name in the same folder, forced to disk, and renamed. A temporary name carries the
process that made it, so that leftovers of a killed process can be told from files that a live one is still writing.
Independent of runs and checkpoints. POSIX only (rename over an open file, fsync of a folder).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tauon.errors import DataError, RunError

__all__ = [
    "atomic_write",
    "erase",
    "folder_atomically",
    "from_json",
    "read_json",
    "remove_leftovers",
    "sha256_file",
    "temporary_path",
    "to_json",
    "write_json",
]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FOREIGN_AGE = 24 * 3600.0
"""Seconds after which a leftover of another machine is removed: its processes cannot be checked."""


# ---------------------------------------------------------------------------------------------- temporary names


def _start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5), field 22); 0 if that is unknown.

    A process number alone is reused, in a container after every restart.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(text[text.rindex(")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:64] or "_"


def temporary_path(path: Path, what: str) -> Path:
    """Return a free name in the folder of `path`: `.tmp.<pid>-<start>.<host>.<random>.<name>`; `what` is tmp or old."""
    pid = os.getpid()
    return path.with_name(f".{what}.{pid}-{_start_ticks(pid)}.{_host()}.{secrets.token_hex(4)}.{path.name}")


_LEFTOVER = re.compile(r"\.(?P<what>tmp|old)\.(?P<pid>\d+)-(?P<start>\d+)\.(?P<host>[A-Za-z0-9_-]+)\.[0-9a-f]{8}\.(?P<name>.+)")
"""Matches names from `temporary_path`."""


def _maker_is_dead(leftover: Path, pid: int, start: int, host: str) -> bool:
    if host != _host():
        try:
            return time.time() - leftover.stat().st_mtime > _FOREIGN_AGE
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # alive, of another user; or not a process number
    return start != _start_ticks(pid)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove half-written files of killed processes in `folder`, and undo an interrupted replacement.

    Returns what was done, one line each. Files of live processes are not touched; if the folder is not writable
    (a reader's view of another person's run), nothing happens.
    """
    done = []
    for path in sorted(folder.iterdir()):
        made = _LEFTOVER.fullmatch(path.name)
        if not made or not _maker_is_dead(path, int(made["pid"]), int(made["start"]), made["host"]):
            continue
        final, what = path.with_name(made["name"]), made["what"]
        try:
            if what == "old" and not final.exists():
                path.rename(final)
                done.append(f"{final}: restored, because a process was killed while replacing it")
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            done.append(f"{path}: removed, because a process that has ended left it half-written")
        except OSError:
            continue
    return done


# ---------------------------------------------------------------------------------------------- writing


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data` (`os.write` may write fewer). The only place where bytes of artifacts reach a disk."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk: otherwise a power failure may undo a rename."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Create a new file (it must not exist) with `data`, forced to disk. Not atomic: for use inside `folder_atomically`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def cannot_write(path: Path, err: OSError) -> str:
    """Return the error text for a failed write: what went wrong, what is left, how to fix it."""
    reason = err.strerror or str(err)
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path if path.is_dir() else path.parent).free
            reason += f" ({free / 2**20:.1f} MiB free there)"
        advice = "Free disk space or choose another folder"
    else:
        advice = "Check that the folder exists and is writable, or choose another one"
    return f"{path}: cannot be written: {reason}. No half-written file was left, and earlier files are unchanged. {advice}."


def atomic_write(path: Path | str, data: bytes | str, *, mode: int = 0o666) -> None:
    """Replace `path` by `data` (text is UTF-8) in one step: a reader sees the complete old file or the complete new one. `mode`: permissions,
    reduced by the process's umask.

    Raises `RunError` if it cannot be written (disk full, for example); then no temporary file is left, and the old file is unchanged.
    """
    path = Path(os.path.realpath(path))  # through a link, not over it
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = temporary_path(path, "tmp")
    try:
        try:
            write_file(temporary, raw, mode)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as err:
        raise RunError(cannot_write(path, err)) from err


def erase(path: Path | str) -> None:
    """Remove a file with a secret: first its name, then its bytes. After a kill in between, the next `remove_leftovers` removes the rest.

    Old blocks that a file system or a disk keeps (copy on write, wear levelling, backups) cannot be removed. Raises `RunError`.
    """
    path = Path(path)
    aside = temporary_path(path, "tmp")
    try:
        os.replace(path, aside)
        sync_folder(path.parent)
        size = aside.stat().st_size
        fd = os.open(aside, os.O_WRONLY)
        try:
            write_all(fd, secrets.token_bytes(size))
            os.fsync(fd)
        finally:
            os.close(fd)
            aside.unlink()
    except FileNotFoundError:
        return
    except OSError as err:
        raise RunError(cannot_write(path, err)) from err


@contextlib.contextmanager
def folder_atomically(final: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `final`; at the end force its files to disk and rename it to `final`.

    An exception in the block removes the temporary folder and is raised; a full disk becomes a `RunError`. An existing
    `final` is a `RunError` unless `replace`; an interrupted replacement is undone by `remove_leftovers`.
    """
    final = Path(final)
    temporary = temporary_path(final, "tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if not replace and final.exists():
            raise RunError(f"{final}: exists already. Choose another name, or remove it.")
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _sync_file(Path(folder, name))
                sync_folder(Path(folder))
            _rename_folder(temporary, final, replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(final.parent)
    except OSError as err:
        if err.errno in _NO_ROOM:
            raise RunError(cannot_write(final, err)) from err
        raise


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename_folder(temporary: Path, final: Path, replace: bool) -> None:
    if not (replace and final.exists()):
        os.rename(temporary, final)
        return
    old = temporary_path(
        final, "old"
    )  # a folder cannot be renamed over a non-empty one: two renames, and remove_leftovers handles both names
    os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no process ever sees half of it under its own name: rename first."""
    doomed = temporary_path(folder, "tmp")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


# ---------------------------------------------------------------------------------------------- JSON


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ESCAPED = re.compile(r"\\*(?:NaN|-?Infinity)")


def to_json(value: Any, where: str = "") -> Any:
    """Return plain JSON data for `value`. inf and nan become the strings "Infinity", "-Infinity", "NaN", which every JSON reader accepts.

    A string that equals one of them gets a backslash in front, so that `from_json` returns exactly the original
    (tuples come back as lists, paths as strings, numpy and torch scalars as numbers). Anything else is a `TypeError`
    with its place.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return "\\" + value if _ESCAPED.fullmatch(value) else str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where or 'value'}: key {key!r} is {type(key).__name__}; JSON keys must be strings")
        return {str(k): to_json(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return to_json(value.item(), where)
    raise TypeError(f"{where or 'value'}: {type(value).__name__} cannot be stored as JSON; use numbers, strings, lists or mappings")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, str):
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        return value[1:] if value.startswith("\\") and _ESCAPED.fullmatch(value) else value
    if isinstance(value, dict):
        return {k: from_json(v) for k, v in value.items()}
    return [from_json(v) for v in value] if isinstance(value, list) else value


def json_bytes(value: Any, *, indent: int | None = 2) -> bytes:
    """Return `value` as UTF-8 JSON text that ends with a line break."""
    plain = to_json(value)
    try:
        return (json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, for example from a file name that is not UTF-8
        return (json.dumps(plain, indent=indent, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON, atomically; see `to_json` for supported values and `atomic_write` for errors."""
    atomic_write(path, json_bytes(value))


def read_json(path: Path | str) -> Any:
    """Return what `write_json` wrote. `DataError` if the file is missing or not JSON."""
    try:
        return from_json(json.loads(Path(path).read_bytes()))
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not valid JSON ({err}). It was truncated or edited: restore it, or remove it and run again.") from None


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
