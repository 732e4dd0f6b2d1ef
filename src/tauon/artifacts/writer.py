"""Save checkpoints while training continues: copy now, hash and write in a thread of low priority, prune afterwards.

`save` costs one copy of the tensors into reused memory. At most one write is in progress, so memory is bounded by one
copy; a save that comes too early waits. A failed write never affects the last complete checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tauon.artifacts.checkpoint import (
    Checkpoint,
    Groups,
    load_checkpoint,
    plan,
    save_checkpoint,
    state_bytes,
    steps_in,
    streaming,
    write_checkpoint,
)
from tauon.artifacts.files import read_json, remove_folder, write_json
from tauon.artifacts.tensor_file import SnapshotBuffer
from tauon.errors import CheckpointError, TauonError

__all__ = ["CheckpointWriter"]

_PROTECTED = "protected.json"


class CheckpointWriter:
    """Writes checkpoints into `folder`; a context manager that waits for the last write.

    Keeps the `keep_last` newest (None: all), every step that `keep_every` divides, the steps `keep_steps`, and each protected step; checkpoints of
    later steps than the one just saved belong to another attempt and are kept. `parent` is the hash of the checkpoint
    from which this run started; each checkpoint's parent is the one before it. `on_saved` is called with each checkpoint when
    it is on disk, in the writing thread.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep_last: int | None = 2,
        keep_every: int | None = None,
        keep_steps: Collection[int] = (),
        background: bool = True,
        parent: str | None = None,
        on_saved: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        for name, value in {"keep_last": keep_last, "keep_every": keep_every}.items():
            if value is not None and value < 1:
                raise CheckpointError(
                    f"{name} is {value}: expected 1 or more, or none to {'keep all' if name == 'keep_last' else 'turn it off'}."
                )
        self.folder = Path(folder)
        self.keep_last, self.keep_every, self.background = keep_last, keep_every, background
        self.keep_steps, self.parent = frozenset(keep_steps), parent
        self._on_saved = on_saved
        self._buffers: dict[str, SnapshotBuffer] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._mutex = threading.Lock()
        path = self.folder / _PROTECTED
        self._protected: set[int] = set(read_json(path)) if path.exists() else set()

    # ------------------------------------------------------------------------------------------ saving

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Copy everything and return; the tensors may change right away.

        Waits for the previous write, and raises its error (`CheckpointError`) if it failed: then nothing of this
        call is saved, and the next call starts again.
        """
        self.wait()
        if not self.background:
            self._finish(lambda: save_checkpoint(self.folder, step, groups, state, parent=self.parent))
            self._raise_error()
            return
        layouts, text = plan(groups), state_bytes(state)
        copies = []
        for name, layout in layouts.items():
            buffer = self._buffers.setdefault(name, SnapshotBuffer())
            copies.append((name, layout, [buffer.take(layout, groups[name])]))
        parent = self.parent

        def write() -> None:
            lower_priority()
            self._finish(lambda: write_checkpoint(self.folder, step, streaming(copies), layouts, text, parent))

        # Not a daemon: an interpreter that ends (by an exception, for example) first finishes the write.
        self._thread = threading.Thread(target=write, name=f"checkpoint-{step}", daemon=False)
        self._thread.start()

    def _finish(self, write: Callable[[], Checkpoint]) -> None:
        try:
            saved = write()
            self.parent = saved.hash
            if self._on_saved:
                self._on_saved(saved)
            self._prune(saved.step)
        except BaseException as err:  # stored for the caller's thread
            self._error = err

    def _raise_error(self) -> None:
        err, self._error = self._error, None
        if err is None:
            return
        if isinstance(err, CheckpointError):
            raise err
        if isinstance(err, TauonError) or not isinstance(err, Exception):
            raise err
        raise CheckpointError(f"{self.folder}: after saving: {type(err).__name__}: {err}. The checkpoint itself is on disk.") from err

    def wait(self) -> None:
        """Return when no write is in progress; raises an error of the background thread (`CheckpointError`), once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def close(self) -> None:
        """Wait for the last write, free the copy's memory."""
        try:
            self.wait()
        finally:
            self._buffers.clear()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        if err is None:
            self.close()
            return
        try:
            self.close()
        except TauonError as second:
            err.add_note(f"and the last checkpoint was not saved: {second}")

    # ------------------------------------------------------------------------------------------ pruning

    def protect(self, step: int) -> None:
        """Never prune this step (the best one so far, for example), in this process or a later one that writes here."""
        self._change_protected(self._protected | {step})

    def release(self, step: int) -> None:
        """Undo `protect`: from the next save on, the step is pruned like any other."""
        self._change_protected(self._protected - {step})

    def _change_protected(self, steps: set[int]) -> None:
        with self._mutex:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _PROTECTED, sorted(steps))
            self._protected = steps

    def _prune(self, newest: int) -> None:
        if self.keep_last is None:
            return
        with self._mutex:
            whole = [(step, path) for step, path in steps_in(self.folder) if step <= newest and _looks_whole(path)]
            for step, path in whole[: -self.keep_last]:
                kept = step in self.keep_steps or (self.keep_every is not None and step % self.keep_every == 0)
                if not kept and step not in self._protected:
                    remove_folder(path)


def _looks_whole(path: Path) -> bool:
    """An incomplete folder must not count as one of the newest: it would displace a complete one."""
    try:
        load_checkpoint(path, verify=False)
    except CheckpointError:
        return False
    return True


def lower_priority() -> None:
    """Give the training threads priority. On Linux each thread has its own nice value (setpriority(2), "C library/kernel differences")."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
