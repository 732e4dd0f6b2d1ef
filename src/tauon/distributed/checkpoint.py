"""Sharded checkpoints: every process writes its pieces into one file in the run's format.

The header of a safetensors file has the offset of each tensor, and a piece of a tensor is a range of bytes (or one per row). So rank 0
creates the file, every process copies its pieces to a buffer and writes them in the background, and rank 0 hashes the file, adds state
and manifest, and renames it. The file is the same for every mesh: any mesh can load it, each process reads only its pieces, and no
process ever has the complete model. All processes must share a file system.

torch.distributed.checkpoint would add its own format, with a pickled index (docs/decisions). Independent of optimizers.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauon.artifacts import Checkpoint, CheckpointWriter, Groups, sha256_file
from tauon.artifacts.checkpoint import state_bytes, write_checkpoint
from tauon.artifacts.tensor_file import Layout, SnapshotBuffer, entry_of, lay_out_entries
from tauon.artifacts.writer import lower_priority
from tauon.distributed.pieces import first_holder, is_dtensor, local_part, local_slices
from tauon.distributed.timeouts import group_store, time_limit
from tauon.distributed.world import World
from tauon.errors import CheckpointError, TrainingError

__all__ = ["MeshCheckpointWriter"]

_POLL = 0.005
_WRITERS = itertools.count()
"""Counts writers, in the same order on every rank: keys in the store outlive them."""


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor that this process writes."""

    shape: tuple[int, ...]
    """Of the full tensor."""
    where: tuple[slice, ...]
    width: int
    """Bytes an element."""

    def runs(self) -> Iterable[tuple[int, int]]:
        """(first byte in the tensor, length) of each contiguous run, in the piece's own order."""
        lengths = [s.stop - s.start for s in self.where]
        if 0 in lengths:
            return
        whole = len(self.shape)  # dimensions from here on are complete: one run
        while whole and lengths[whole - 1] == self.shape[whole - 1]:
            whole -= 1
        inner = math.prod(self.shape[whole:])
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        if whole == 0:
            yield 0, inner * self.width
            return
        last = self.where[whole - 1]
        run = (last.stop - last.start) * inner * self.width
        outer = self.where[: whole - 1]
        counts = [s.stop - s.start for s in outer]
        for k in range(math.prod(counts)):
            at, rest = last.start * strides[whole - 1], k
            for s, n, stride in reversed(list(zip(outer, counts, strides, strict=False))):
                at += (s.start + rest % n) * stride
                rest //= n
            yield at * self.width, run


class MeshCheckpointWriter(CheckpointWriter):
    """`CheckpointWriter` for sharded models. Every method is collective: all ranks call it for the same step."""

    def __init__(self, folder: Path | str, world: World, **options: Any) -> None:
        super().__init__(folder, **options)
        self.world = world
        self._number, self._count = next(_WRITERS), 0
        self._known: tuple[Any, dict[str, Layout], dict[str, dict[str, _Piece]]] | None = None

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """As `CheckpointWriter.save`; tensors may be DTensors, or replicated on several ranks, of which one writes."""
        self.world.all_or_raise(self.wait)
        layouts, mine = self._plan(groups)
        text = state_bytes(state)
        copies: dict[str, dict[str, memoryview]] = {}
        for group, pieces in mine.items():
            sizes = {name: local_part(groups[group][name]) for name in pieces}
            at, offsets = 0, {}
            for name, t in sizes.items():
                offsets[name] = (at, t.numel() * t.element_size())
                at += -(-offsets[name][1] // 8) * 8
            buffer = self._buffers.setdefault(group, SnapshotBuffer())
            flat = buffer.take(Layout(b"", offsets, {}, at), sizes)
            copies[group] = {name: flat[start : start + size] for name, (start, size) in offsets.items()}
        self._count += 1
        key, parent = f"tauon/checkpoint/{self._number}/{self._count}", self.parent

        def write() -> None:
            lower_priority()
            if self.world.leads:
                self._finish(lambda: self._lead(key, step, layouts, mine, copies, text, parent))
            else:
                self._follow(key, layouts, mine, copies, step)

        self._thread = threading.Thread(target=write, name=f"checkpoint-{step}", daemon=False)
        self._thread.start()
        if not self.background:
            self.world.all_or_raise(self.wait)

    def close(self) -> None:
        try:
            self.world.all_or_raise(self.wait)
        finally:
            self._buffers.clear()

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        if err is None:
            self.close()
            return
        try:  # other ranks may have ended: nothing collective
            self.wait()
        except Exception as second:
            err.add_note(f"and the last checkpoint was not saved: {second}")

    # ------------------------------------------------------------------------------------------ who writes what

    def _plan(self, groups: Groups) -> tuple[dict[str, Layout], dict[str, dict[str, _Piece]]]:
        """(the files' layouts, this rank's pieces by group and name); exchanged again only if the pieces of some rank changed."""
        found: list[list[Any]] = []
        for group, tensors in groups.items():
            seen: dict[Any, str] = {}
            for name, t in tensors.items():
                part = local_part(t)
                _, code, _, width = entry_of(name, part, group)
                key = (part.data_ptr(), part.dtype, tuple(part.shape)) if part.numel() else name
                same = seen.setdefault(key, name)
                kind = "whole" if not is_dtensor(t) else "piece" if first_holder(t) else "copy"
                found.append([group, name, code, list(t.shape), width, kind, same if same != name else None])
        changed = self._known is None or self._known[0] != found
        if not any(self.world.gather(changed)):
            assert self._known is not None
            return self._known[1], self._known[2]
        everyone = self.world.gather(found)
        entries: dict[str, dict[str, Any]] = {}
        aliases: dict[str, dict[str, str]] = {}
        holders: dict[tuple[str, str], list[int]] = {}
        for rank, theirs in enumerate(everyone):
            for group, name, code, shape, width, kind, same in theirs:
                if same is not None:
                    aliases.setdefault(group, {})[name] = same
                    continue
                entries.setdefault(group, {})[name] = (name, code, tuple(shape), width)
                if kind == "whole":
                    holders.setdefault((group, name), []).append(rank)
        for group, names in aliases.items():
            for name in names:
                entries[group].pop(name, None)
        layouts = {group: lay_out_entries(found.values(), aliases.get(group, {})) for group, found in entries.items()}
        mine: dict[str, dict[str, _Piece]] = {group: {} for group in groups}
        order = {key: i for i, key in enumerate(sorted(holders))}
        for group, name, _, shape, width, kind, _ in found:
            if name in aliases.get(group, {}) or kind == "copy":
                continue
            if kind == "whole":  # ranks with the full tensor share the work, by name
                ranks = holders[group, name]
                if ranks[order[group, name] % len(ranks)] != self.world.rank:
                    continue
            mine[group][name] = _Piece(tuple(shape), local_slices(groups[group][name]), width)
        self._known = (found, layouts, mine)
        return layouts, mine

    # ------------------------------------------------------------------------------------------ in the background

    def _lead(
        self, key: str, step: int, layouts: dict[str, Layout], mine: dict[str, dict[str, _Piece]],
        copies: dict[str, dict[str, memoryview]], state: bytes, parent: str | None,
    ) -> Checkpoint:  # fmt: skip
        store = group_store()

        def write(folder: Path) -> dict[str, dict[str, Any]]:
            for group, layout in layouts.items():
                with open(folder / f"{group}.safetensors", "xb") as f:
                    f.write(layout.header)
                    f.truncate(len(layout.header) + layout.size)
            _publish(store, f"{key}/folder", str(folder))
            _write_pieces(folder, layouts, mine, copies)
            for rank in range(1, self.world.size):
                said = _wait(store, f"{key}/rank-{rank}", f"rank {rank} to write its part of step {step}")
                if said != "done":
                    raise CheckpointError(f"rank {rank}: {said}")
            files = {}
            for group, layout in layouts.items():
                name = f"{group}.safetensors"
                files[name] = {"sha256": sha256_file(folder / name), "bytes": len(layout.header) + layout.size}
            return files

        try:
            saved = write_checkpoint(self.folder, step, write, layouts, state, parent)
        except BaseException as err:
            with suppress(TrainingError):
                _publish(store, f"{key}/end", f"failed: {err}")
            raise
        _publish(store, f"{key}/end", saved.hash)
        return saved

    def _follow(
        self, key: str, layouts: dict[str, Layout], mine: dict[str, dict[str, _Piece]], copies: dict[str, dict[str, memoryview]], step: int
    ) -> None:
        store, rank = group_store(), self.world.rank
        try:
            folder = Path(_wait(store, f"{key}/folder", f"rank 0 to begin step {step}"))
            try:
                _write_pieces(folder, layouts, mine, copies)
            except OSError as err:
                text = (
                    f"cannot write its part into {folder}: {err.strerror or err}. All ranks need the run's folder on a shared file system."
                )
                _publish(store, f"{key}/rank-{rank}", text)
                raise CheckpointError(text) from err
            _publish(store, f"{key}/rank-{rank}", "done")
            end = _wait(store, f"{key}/end", f"rank 0 to finish step {step}")
            if end.startswith("failed"):
                raise CheckpointError(f"step {step} was not saved: rank 0 {end}")
            self.parent = end
        except BaseException as err:  # raised in the caller's thread
            self._error = err

    def protect(self, step: int) -> None:
        if self.world.leads:
            super().protect(step)

    def release(self, step: int) -> None:
        if self.world.leads:
            super().release(step)


def _write_pieces(
    folder: Path, layouts: dict[str, Layout], mine: dict[str, dict[str, _Piece]], copies: dict[str, dict[str, memoryview]]
) -> None:
    for group, pieces in mine.items():
        if not pieces:
            continue
        layout = layouts[group]
        fd = os.open(folder / f"{group}.safetensors", os.O_WRONLY)
        try:
            for name, piece in pieces.items():
                start, data, at = len(layout.header) + layout.offsets[name][0], copies[group][name], 0
                for offset, length in piece.runs():
                    _write_at(fd, data[at : at + length], start + offset)
                    at += length
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _publish(store: Any, key: str, value: str) -> None:
    try:
        store.set(key, value)
    except RuntimeError as err:
        raise _cut_off(f"notify the other ranks about {key.rpartition('/')[2]}", err) from err


def _wait(store: Any, key: str, what: str) -> str:
    """Wait for a key and return its value. Polls: a blocking wait would occupy the store's connection.

    Raises `TrainingError` after the timeout, or after twice that if the store stops answering: the disk is not the cause, and a restart
    may help.
    """
    seconds = time_limit()
    until = time.monotonic() + seconds
    try:
        while not store.check([key]):
            if time.monotonic() > until:
                raise TrainingError(
                    f"timed out after {seconds:g} s (launch.timeout) waiting for {what}. The last complete checkpoint is kept."
                )
            time.sleep(_POLL)
        value: bytes = store.get(key)
    except RuntimeError as err:
        raise _cut_off(f"wait for {what}", err) from err
    return value.decode()


def _cut_off(what: str, err: Exception) -> TrainingError:
    first = str(err).partition("\n")[0]
    return TrainingError(f"cannot {what}: the processes' store no longer answers ({first}). The last complete checkpoint is kept.")
