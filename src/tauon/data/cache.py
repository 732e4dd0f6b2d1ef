"""Locations of prepared data and downloads, and how two processes that want the same entry at once are kept apart.

An entry is built in a folder with a temporary name and renamed when complete. A second process finds it, or, if locks do not work (some
network file systems), loses the race of renames and uses the winner's.
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

__all__ = ["cache_in", "cache_root", "locked", "make_folder", "obtain"]

_chosen: ContextVar[str | None] = ContextVar("tauon_data_cache", default=None)


def cache_root() -> Path:
    """Return the folder of the enclosing `cache_in` block, else the environment variable TAUON_CACHE, else ~/.cache/tauon."""
    return Path(_chosen.get() or os.environ.get("TAUON_CACHE") or "~/.cache/tauon").expanduser()


@contextlib.contextmanager
def cache_in(folder: str | None) -> Iterator[None]:
    """Within the block the cache is `folder`, also for sources, which do not see the recipe; None changes nothing."""
    token = _chosen.set(folder or _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


def make_folder(path: Path) -> Path:
    """Create a folder that only this user may enter (mode 0700), with its parents."""
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as err:
        raise DataError(
            f"{path}: cannot create the cache folder ({err.strerror or err}). Set data.cache or TAUON_CACHE to a folder that you may write"
        ) from None
    if not path.is_dir():
        raise DataError(f"{path}: is a file, expected a folder for the cache. Set data.cache or TAUON_CACHE to another folder")
    return path


def obtain(folder: Path, done: str, build: Callable[[Path], None]) -> bool:
    """Make sure that `folder` exists and is complete; return True if it already was.

    `build(temporary)` fills a temporary folder beside it, whose last file is `done`; then it is renamed. If `build` fails, nothing is
    left behind.
    """
    if (folder / done).is_file():
        return True
    make_folder(folder.parent)
    with locked(folder.parent / f".{folder.name}.lock") as alone:
        if (folder / done).is_file():
            return True
        if alone:  # folders with our temporary prefix were left by processes that died
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
                f"{folder}: cannot be written ({err.strerror or err}). Free disk space, or set data.cache to another disk"
            ) from err
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock, waiting for it; yield False if the file system has no locks. The system releases it if the process dies."""
    try:
        import fcntl
    except ImportError:  # not Unix: only the renames protect
        yield False
        return
    with open(path, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True  # closing the file releases the lock; the file stays, because removing it would race with waiting processes
