"""A run's folder: paths of its records, a lock for one process at a time, and which stages are done. Writes only
`manifest.json` and `stages.json`; independent of the stages.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tauon.artifacts.files import cannot_write, read_json, remove_leftovers, write_json
from tauon.errors import RunError

__all__ = ["RUN_FORMAT", "RunFolder", "list_runs"]

RUN_FORMAT = 1
"""Version of the layout of a run's folder. Raised if an earlier version of Tauon could not read the new layout."""

_LOCK = ".lock"
_STAGES = "stages.json"
_SIGNS = ("manifest.json", "recipe.yaml", _STAGES, "events.jsonl")


class RunFolder:
    """One run's folder. `RunFolder.open` creates and locks it until `close`; `RunFolder.read` opens it read-only.

    >>> import tempfile
    >>> with RunFolder.open(Path(tempfile.mkdtemp()) / "first") as run:
    ...     run.update_manifest(seed=7)
    ...     run.mark_stage("prepare", fingerprint="abc", tokens=1000)
    ...     run.name, run.manifest(), run.stage("prepare")["tokens"]
    ('first', {'seed': 7}, 1000)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._lock_fd: int | None = None
        self._mutex = threading.RLock()
        self._follows = False

    # ------------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, folder: Path | str) -> RunFolder:
        """Create the folder if necessary and lock it. `RunError` if another process has the lock, or it cannot be written."""
        run = cls(folder)
        run._take()
        try:
            run._refuse_newer()
        except RunError:
            run.close()
            raise
        # A forked child (a data worker) would keep the lock alive after its parent was killed.
        os.register_at_fork(after_in_child=partial(_forget_lock, weakref.ref(run)))
        remove_leftovers(run.folder)
        return run

    @classmethod
    def read(cls, folder: Path | str) -> RunFolder:
        """Open an existing run read-only, even while another process writes it. `RunError` if there is none."""
        run = cls(folder)
        if not _is_run(run.folder):
            raise RunError(f"{folder}: not a run (it has none of {', '.join(_SIGNS)}). `tauon runs list` shows all runs.")
        run._refuse_newer()
        return run

    def _refuse_newer(self) -> None:
        """Raise `RunError` if a later version of Tauon wrote the folder in a format that this one cannot read."""
        manifest = self.manifest()
        written = manifest.get("format", 1)
        if isinstance(written, int) and written > RUN_FORMAT:
            by = manifest.get("tauon", "a later version")
            raise RunError(
                f"{self.folder} was written by Tauon {by} in format {written}, but this version reads formats up to {RUN_FORMAT}. "
                f"Open it with Tauon {by} or newer: pip install -U tauon"
            )

    @classmethod
    def follow(cls, folder: Path | str) -> RunFolder:
        """Open a run that another process of the same launch has locked and writes: this process writes nothing."""
        run = cls(folder)
        run._follows = True
        return run

    def close(self) -> None:
        """Release the folder. Closing twice is safe."""
        with self._mutex:
            if self._lock_fd is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._lock_fd, 0)
                os.close(self._lock_fd)
                self._lock_fd = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.folder)!r})"

    def _take(self) -> None:
        path = self.folder / _LOCK
        for _ in range(100):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise RunError(cannot_write(self.folder, err)) from err
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # another process renamed the folder in between
            except OSError as err:
                raise RunError(cannot_write(self.folder, err)) from err
            if self._lock(fd, path):
                break
            os.close(fd)  # renamed between opening and locking: the lock is that of the old folder
        else:
            raise RunError(f"{self.folder}: another process keeps renaming the folder. Give this run another name (name=...).")
        self._lock_fd = fd
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}).encode(), 0)
        except OSError as err:
            self.close()
            raise RunError(cannot_write(path, err)) from err

    def _lock(self, fd: int, path: Path) -> bool:
        """Lock the open lock file; False when it is no longer the one at `path`."""
        try:
            _flock(fd)
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False
        except BlockingIOError:
            _, holder = _holder(fd)
            os.close(fd)
            raise RunError(
                f"{self.folder}: another process is writing this run ({holder}). "
                "Wait until it ends, stop it, or give this run another name (name=...)."
            ) from None
        except OSError as err:  # a file system without locks
            os.close(fd)
            raise RunError(f"{path}: cannot be locked: {err.strerror or err}. Put the run on a file system that supports flock.") from err

    # ------------------------------------------------------------------------------------------ paths

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def recipe_path(self) -> Path:
        """The complete recipe, enough to run it again."""
        return self.folder / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """Code, data hashes, environment, seeds, lineage."""
        return self.folder / "manifest.json"

    @property
    def events_path(self) -> Path:
        """The event log."""
        return self.folder / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, `step-000500` and so on."""
        return self.folder / "checkpoints"

    @property
    def report_path(self) -> Path:
        """The report, one HTML page."""
        return self.folder / "report.html"

    # ------------------------------------------------------------------------------------------ manifest and stages

    def manifest(self) -> dict[str, Any]:
        """Return all entries of `update_manifest`; {} before the first."""
        return _read_mapping(self.manifest_path)

    def update_manifest(self, **entries: Any) -> None:
        """Merge `entries` into the manifest, atomically; an entry replaces the whole entry of that name."""
        self._merge(self.manifest_path, lambda old: old | entries)

    def stage(self, name: str) -> dict[str, Any] | None:
        """Return the entry of `mark_stage` for a finished stage: `fingerprint`, `time` (ISO 8601, UTC), facts; None if it is not finished."""
        found = _read_mapping(self.folder / _STAGES).get(name)
        return dict(found) if found is not None else None

    def mark_stage(self, name: str, fingerprint: str, **facts: Any) -> None:
        """Record that a stage is done. `fingerprint` covers everything that its result depends on."""
        self._merge(self.folder / _STAGES, lambda old: old | {name: {"fingerprint": fingerprint, "time": _now(), **facts}})

    def _merge(self, path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        if self._follows:
            return
        with self._mutex:
            self._must_hold()
            write_json(path, change(_read_mapping(path)))

    def _must_hold(self) -> None:
        if self._lock_fd is None:
            raise RunError(f"{self.folder}: the run is read-only or closed. Use RunFolder.open to write.")

    def set_aside(self) -> Path:
        """Rename the folder to `<name>.1` (or `.2`, ...) and continue with an empty one; return the new path of the old one.

        Nothing is deleted: `--fresh` uses this before it starts again.
        """
        with self._mutex:
            self._must_hold()
            number = 1
            while (aside := self.folder.with_name(f"{self.name}.{number}")).exists():
                number += 1
            try:
                os.rename(self.folder, aside)
            except OSError as err:
                raise RunError(f"{self.folder}: cannot be renamed to {aside.name}: {err.strerror or err}") from err
            old, self._lock_fd = self._lock_fd, None
            try:
                self._take()
            finally:
                if old is not None:
                    os.close(old)
        return aside


def list_runs(root: Path | str) -> list[RunFolder]:
    """Return every run directly below `root`, by name, read-only; [] if there is no such folder."""
    root = Path(root)
    if not root.is_dir():
        return []
    return [RunFolder(folder) for folder in sorted(root.iterdir()) if not folder.name.startswith(".") and _is_run(folder)]


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in _SIGNS)


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunError(f"{path}: contains {type(found).__name__}, expected names and values. Restore it, or remove it and run again.")
    return found


def _forget_lock(ref: weakref.ref[RunFolder]) -> None:
    run = ref()
    if run is not None and run._lock_fd is not None:
        with contextlib.suppress(OSError):
            os.close(run._lock_fd)  # closing a copy does not release the parent's lock
        run._lock_fd = None
        run._mutex = threading.RLock()


def _flock(fd: int) -> None:
    """Lock, or raise `BlockingIOError` at once; but wait up to two seconds for a holder that is already dead.

    A child that was forked right before its parent was killed has the lock until it runs for the first time.
    """
    for _ in range(40):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _holder(fd)[0]:
            break
        time.sleep(0.05)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(fd: int) -> tuple[bool, str]:
    """Return (whether the process in the lock file is known to be dead, its description)."""
    for _ in range(20):  # the holder locks first and writes its name afterwards
        try:
            who = json.loads(os.pread(fd, 4096, 0))
            words = f"process {who['pid']} on {who['host']}, since {who['since']}"
            if who["host"] == socket.gethostname():
                os.kill(int(who["pid"]), 0)
            return False, words
        except ProcessLookupError:
            return True, words
        except PermissionError:
            return False, words  # alive, of another user
        except (ValueError, KeyError, TypeError, OSError):
            time.sleep(0.01)
    return False, "process unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
