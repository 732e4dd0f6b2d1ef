"""Where prepared data and downloads lie, and how two processes that want the same thing at once do not hurt each other.

A thing is built in a folder with a temporary name and renamed when whole; whoever comes second finds it there, or, where
locks do not work (some network file systems), loses the race of renames and uses the winner's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from tauon.errors import DataError

__all__ = ["cache_in", "cache_root", "make_folder", "obtain"]

_chosen: ContextVar[str | None] = ContextVar("tauon_data_cache", default=None)


def cache_root() -> Path:
    """The folder of the `cache_in` block around, else the environment variable TAUON_CACHE, else ~/.cache/tauon."""
    return Path(_chosen.get() or os.environ.get("TAUON_CACHE") or "~/.cache/tauon").expanduser()


@contextlib.contextmanager
def cache_in(folder: str | None) -> Iterator[None]:
    """Within the block the cache is `folder`, for sources too, which know no recipe; None changes nothing."""
    token = _chosen.set(folder or _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


def make_folder(path: Path) -> Path:
    """Make a folder that only this user may enter (mode 0700), with its parents."""
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise DataError(
            f"{path}: the cache folder cannot be made ({err.strerror or err}). Set data.cache or TAUON_CACHE to a folder of yours"
        ) from None
    if not path.is_dir():
        raise DataError(f"{path}: is a file, expected the cache folder. Set data.cache or TAUON_CACHE to another place")
    return path


def obtain(folder: Path, done: str, build: Callable[[Path], None]) -> bool:
    """Make sure that `folder` is there and whole; True if it already was.

    `build(temporary)` fills a temporary folder beside it, whose last file is `done`; then it is renamed. An error in
    `build` leaves nothing behind.
    """
    if (folder / done).is_file():
        return True
    make_folder(folder.parent)
    with _locked(folder.parent / f".{folder.name}.lock") as alone:
        if (folder / done).is_file():
            return True
        if alone:  # whatever has our temporary name was left by a process that died
            for left in folder.parent.glob(f".{folder.name}.tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))  # mkdtemp's mode is 0700
        try:
            build(temporary)
            try:
                os.rename(temporary, folder)
            except OSError:
                if not (folder / done).is_file():
                    raise
        except OSError as err:
            if isinstance(err, (FileNotFoundError, FileExistsError)):
                raise
            raise DataError(
                f"{folder}: cannot be written ({err.strerror or err}). Free some space, or set data.cache to another disk"
            ) from err
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock, waiting for it; False where the file system has none. The system drops it if we die."""
    try:
        import fcntl
    except ImportError:  # not a Unix: the renames alone protect
        yield False
        return
    with open(path, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True  # closing the file drops the lock; the file stays, since removing it would race with those who wait
