"""The secret key of noise and sampling: 256 bits from the operating system, stored in the run's folder only while it trains.

It is in its own file, readable by its owner only, and never in a checkpoint: anyone who has it can remove the noise. A resume needs it to
repeat the same draws. It is deleted when training is done, or when the run is settled or set aside.

A key is for one training. Two trainings with the same key (other learning rate, data, or number of steps) would have the same noise, and the
difference of their results would be exact. So the file says what the key is for (`training`), how the steps were computed (`how`: other
layouts and versions round differently), and the folder of the run (`place`), so that a copy of the folder is detected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tauon.artifacts import atomic_write, erase
from tauon.errors import RunError

__all__ = ["NAME", "Key", "bind_key", "discard_key", "key_hash", "read_key", "run_key", "seeded_key"]

NAME = "privacy.key"
BYTES = 32
FORMAT = "tauon-key-1"


@dataclass(frozen=True)
class Key:
    """Key of one training."""

    secret: bytes = field(repr=False)
    training: str | None = None
    """Hash of the training it is for; None: nothing drawn from it has left the process (or an earlier version made it)."""
    how: tuple[tuple[int, str], ...] = ()
    """(first step, how the steps from there on were computed)."""
    place: str | None = None
    """Folder of the run."""
    unused: bool = field(default=False, compare=False)
    """Whether it was just created."""

    @property
    def hash(self) -> str:
        """Hash under which the ledger knows it."""
        return key_hash(self.secret)

    def ways(self, start: int, end: int) -> set[str]:
        """How the steps after `start`, up to `end`, were computed; "" if not known."""
        if end <= start or not self.how:
            return {""} if end > start else set()
        starts = [*(s for s, _ in self.how[1:]), end]
        found = {way for (first, way), last in zip(self.how, starts, strict=True) if first < end and last > start}
        return found if self.how[0][0] <= start else found | {""}


def seeded_key(seed: int) -> bytes:
    """Key from a seed: anyone who knows the seed can make it. For tests."""
    return hashlib.blake2b(f"{seed}/privacy".encode(), digest_size=BYTES).digest()


def key_hash(secret: bytes) -> str:
    """Hash that identifies a key without revealing it."""
    return hashlib.sha256(b"tauon privacy key/" + secret).hexdigest()


def run_key(folder: Path, *, goes_on: bool = False) -> Key:
    """Return the run's key; create one if the run has none.

    Raises `RunError` if the file is not a key or others may read it, or if a run that is resumed (`goes_on`) has lost its key.
    """
    path = folder / NAME
    if path.exists():
        return read_key(folder)
    if goes_on:
        raise RunError(
            f"{path} is missing: the run was settled or set aside, or the file was removed. The run cannot be resumed, as its guarantee holds only "
            "for draws from that key; its checkpoints stay valid. Start over with --fresh, or give another name (name=...)."
        )
    key = Key(os.urandom(BYTES), place=os.path.realpath(folder), unused=True)
    _write(path, key)
    return key


def read_key(folder: Path) -> Key:
    """Read the key that the run's first process wrote. Raises `RunError` if the file is missing, is not a key, or others may read it."""
    path = folder / NAME
    try:
        mode, raw = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: every process must see the run's folder. Put it on a file system that all processes share."
        ) from None
    except OSError as err:
        raise RunError(f"{path}: cannot be read: {err.strerror or err}. Every process must run as the user who owns the run.") from None
    if mode & 0o077:
        raise RunError(f"{path} is readable by other users, so the noise is not secret. Start over with --fresh.")
    if len(raw) == BYTES:
        return Key(raw)  # of an earlier version
    try:
        values = json.loads(raw)
        key = Key(bytes.fromhex(values["key"]), values["training"], tuple((int(s), str(h)) for s, h in values["how"]), values["place"])
        if values["format"] != FORMAT or len(key.secret) != BYTES:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not a key file of this version ({len(raw)} bytes). Restore it, or start over with --fresh.") from None
    return key


def bind_key(folder: Path, key: Key, training: str, how: str, step: int) -> Key:
    """Bind the key to this training, with `how` for the steps after `step`; write the file, and return the bound key."""
    ways = [pair for pair in key.how if pair[0] < step]
    if not ways or ways[-1][1] != how:
        ways.append((step, how))
    bound = replace(key, training=training, how=tuple(ways), place=os.path.realpath(folder))
    if bound != key:
        _write(folder / NAME, bound)
    return bound


def discard_key(folder: Path) -> None:
    """Delete the key: from then on the noise cannot be removed."""
    for path in folder.glob(f"*{NAME}"):  # also parts of one that could not be removed completely
        erase(path)


def _write(path: Path, key: Key) -> None:
    ways: Sequence[Sequence[int | str]] = [list(pair) for pair in key.how]
    values = {"format": FORMAT, "key": key.secret.hex(), "training": key.training, "how": ways, "place": key.place}
    atomic_write(path, json.dumps(values) + "\n", mode=0o600)
