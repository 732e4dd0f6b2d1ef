"""Checkpoints: one safetensors file per group of tensors, `state.json`, and `manifest.json`, which is written last.

A folder `step-000500` is renamed into place when every byte of it is on disk, so it is complete or absent; the checksums in
the manifest detect later damage. Independent of models and optimizers: a group is a mapping of names to tensors.
Writing in the background is `tauon.artifacts.writer`.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.artifacts.files import (
    cannot_write,
    folder_atomically,
    from_json,
    json_bytes,
    read_json,
    remove_leftovers,
    sha256_file,
    to_json,
    write_file,
)
from tauon.artifacts.tensor_file import Layout, LazyTensor, lay_out, open_tensors, pieces, write_tensors
from tauon.errors import CheckpointError, DataError, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "Checkpoint", "Groups", "latest_checkpoint", "load_checkpoint", "save_checkpoint", "steps_in"]

Groups = Mapping[str, "Mapping[str, Tensor]"]
"""Name of a group (`model`, `optim`, ...: a file name) to the tensors in it by name."""

FORMAT = "tauon-checkpoint-1"
_STEP = re.compile(r"step-(\d{6,})")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk. Tensors are read on request."""

    path: Path
    step: int
    state: dict[str, Any]
    """The `state` given to `save`, from JSON: tuples have become lists."""
    manifest: dict[str, Any]
    """`format`, `step`, `parent`, `files` (name to `sha256` and `bytes`), `aliases`, and `sha256` of all these."""
    hash: str = field(init=False)
    """The manifest's `sha256`: covers every byte of the checkpoint and, through `parent`, of its ancestors.
    Contains no time and no path, so that two equal computations have the same hash."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", self.manifest["sha256"])

    @property
    def parent(self) -> str | None:
        """Hash of the checkpoint from which training continued."""
        parent: str | None = self.manifest["parent"]
        return parent

    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return tuple(name.removesuffix(_SUFFIX) for name in self.manifest["files"] if name.endswith(_SUFFIX))

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Return the tensors of a group, on the CPU; tied names share one tensor again.

        Raises `CheckpointError` if there is no such group or its file cannot be read.
        """
        if group not in self.groups():
            raise CheckpointError(f"{self.path}: no group {group!r}. Available: {', '.join(self.groups())}.")
        import safetensors
        import safetensors.torch

        file = self.path / (group + _SUFFIX)
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as err:
            raise CheckpointError(f"{file}: cannot be read: {err}. Use an earlier checkpoint.") from err
        for name, kept in self.manifest["aliases"].get(group, {}).items():
            tensors[name] = tensors[kept]
        return tensors

    def lazy(self, group: str) -> dict[str, LazyTensor]:
        """Like `tensors`, but each is read, whole or in part, on request: for processes that need only parts."""
        if group not in self.groups():
            raise CheckpointError(f"{self.path}: no group {group!r}. Available: {', '.join(self.groups())}.")
        return open_tensors(self.path / (group + _SUFFIX), self.manifest["aliases"].get(group, {}))


# ---------------------------------------------------------------------------------------------- saving


def save_checkpoint(folder: Path | str, step: int, groups: Groups, state: Mapping[str, Any], *, parent: str | None = None) -> Checkpoint:
    """Write `folder/step-<step>` and return when it is on disk. An older checkpoint of the same step is replaced.

    Args:
        folder: of the checkpoints.
        step: steps done.
        groups: tensors by group (`model`, `optim`, ...) and name. Those on an accelerator are copied one at a time.
        state: JSON values; inf and nan survive.
        parent: hash of the checkpoint that training resumed from.

    Raises:
        CheckpointError: something that cannot be saved, or a full disk; nothing half-written stays.

    >>> import tempfile, torch
    >>> saved = save_checkpoint(tempfile.mkdtemp(), 7, {"model": {"w": torch.ones(2)}}, {"loss": 0.5})
    >>> saved.step, load_checkpoint(saved.path).tensors("model")["w"]
    (7, tensor([1., 1.]))
    """
    layouts = plan(groups)
    parts = ((name, layout, pieces(layout, groups[name])) for name, layout in layouts.items())
    return write_checkpoint(Path(folder), step, streaming(parts), layouts, state_bytes(state), parent)


def streaming(parts: Iterable[tuple[str, Layout, Iterable[memoryview]]]) -> Callable[[Path], dict[str, dict[str, Any]]]:
    """Write the parts (group, layout, bytes in file order) one after the other."""

    def write(folder: Path) -> dict[str, dict[str, Any]]:
        files = {}
        for name, layout, data in parts:
            digest, size = write_tensors(folder / (name + _SUFFIX), layout, data)
            files[name + _SUFFIX] = {"sha256": digest, "bytes": size}
        return files

    return write


def plan(groups: Groups) -> dict[str, Layout]:
    """Return a file layout for each group; `CheckpointError` for names that are not file names."""
    for name in groups:
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"group {name!r}: the name is used as a file name. Use letters, digits, '_', '-' and '.'.")
    return {name: lay_out(tensors, name) for name, tensors in groups.items()}


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """Return `state` as JSON text; `CheckpointError` with the place of a value that JSON does not support."""
    try:
        return json_bytes(dict(state))
    except TypeError as err:
        raise CheckpointError(f"state: {err}. Put tensors into a group.") from None


def write_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], dict[str, dict[str, Any]]],
    layouts: Mapping[str, Layout],
    state: bytes,
    parent: str | None,
) -> Checkpoint:
    """Create `folder/step-<step>`, the manifest last. `write` puts the tensor files into a folder and returns the manifest's entries."""
    if step < 0:
        raise CheckpointError(f"step {step}: expected 0 or more.")
    final = folder / f"step-{step:06d}"
    try:
        with folder_atomically(final, replace=True) as temporary:
            files = dict(write(temporary))
            write_file(temporary / "state.json", state)
            files["state.json"] = {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}
            aliases = {name: layout.aliases for name, layout in layouts.items() if layout.aliases}
            manifest: dict[str, Any] = {"format": FORMAT, "step": step, "parent": parent, "files": files, "aliases": aliases}
            manifest["sha256"] = _digest(manifest)
            write_file(temporary / "manifest.json", json_bytes(manifest))
    except (OSError, RunError) as err:
        cause = err if isinstance(err, OSError) else err.__cause__
        text = cannot_write(final, cause) if isinstance(cause, OSError) else str(err)
        raise CheckpointError(text) from err
    return Checkpoint(final, step, from_json(json.loads(state)), manifest)


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's content without `sha256` itself, in canonical form."""
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(to_json(content), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- loading


WEIGHTS = ("model", "ema")
"""Groups that a trained model is built from; the others are for resuming."""


def load_checkpoint(path: Path | str, *, verify: bool | Collection[str] = True) -> Checkpoint:
    """Open the checkpoint in folder `path`.

    Args:
        path: folder of the checkpoint.
        verify: read every byte and compare checksums: of all files, or of `state.json` and these groups (`WEIGHTS`: enough to use the model,
            and a third of the bytes with AdamW). Sizes of all files are compared in any case.

    Raises `CheckpointError` with the file, the expected and the actual content.
    """
    path = Path(path)
    manifest = _manifest(path)
    read = set(manifest["files"] if verify else ()) if isinstance(verify, bool) else {"state.json", *(group + _SUFFIX for group in verify)}
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{file}: has {size} bytes, expected {entry['bytes']}. {_HINT}")
            if name in read and (got := sha256_file(file)) != entry["sha256"]:
                raise CheckpointError(f"{file}: SHA-256 is {got}, expected {entry['sha256']}: its bytes have changed. {_HINT}")
        except FileNotFoundError:
            raise CheckpointError(f"{file}: missing, expected {entry['bytes']} bytes. {_HINT}") from None
        except (OSError, DataError) as err:
            raise CheckpointError(f"{file}: cannot be read: {err}. {_HINT}") from err
    try:
        state = read_json(path / "state.json")
    except DataError as err:
        raise CheckpointError(str(err)) from err
    return Checkpoint(path, manifest["step"], state, manifest)


_HINT = "Use an earlier checkpoint, or restore this one from a copy."


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        problem = "no manifest.json, so it was never finished" if path.is_dir() else "no such folder"
        raise CheckpointError(f"{path}: {problem}. {_HINT if path.is_dir() else 'Check the path.'}")
    try:
        manifest = read_json(file)
    except DataError as err:
        raise CheckpointError(f"{err} {_HINT}") from err
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(f"{file}: format is {got!r}, expected {FORMAT!r}. Read it with the version that wrote it.")
    if (got := _digest(manifest)) != manifest.get("sha256"):
        raise CheckpointError(f"{file}: SHA-256 of its content is {got}, expected {manifest.get('sha256')}: it has changed. {_HINT}")
    names = manifest["files"]
    if not all(_FILE.fullmatch(name) for name in names) or "state.json" not in names:  # a path outside the folder
        raise CheckpointError(f"{file}: lists files {', '.join(map(repr, names))}; expected plain names, including state.json. {_HINT}")
    return manifest


def steps_in(folder: Path | str) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint folder, by step, without checking whether they are complete."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = ((match, path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)) and path.is_dir())
    return sorted((int(match[1]), path) for match, path in found)


def latest_checkpoint(folder: Path | str, *, warn: Callable[[str], None] | None = None, verify: bool = True) -> Checkpoint | None:
    """Return the newest complete checkpoint in `folder`, or None.

    An incomplete one is skipped, with a message to `warn` (default: `warnings.warn`). Temporary folders of processes
    that have ended are removed first.
    """
    folder = Path(folder)
    on_event = warn or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=3))
    if folder.is_dir():
        remove_leftovers(folder)
    for _, path in reversed(steps_in(folder)):
        try:
            return load_checkpoint(path, verify=verify)
        except CheckpointError as err:
            on_event(f"checkpoint skipped: {err}")
    return None
