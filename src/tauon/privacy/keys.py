"""The secret that noise and sampling are drawn from: 256 bits from the operating system, kept beside a run only while it trains.

It lies in a file of its own that its owner alone may read, never in a checkpoint: whoever has it can take the noise off again. A resume
needs it to go on with the same draws; with its last use it goes: when training is done, or the run is settled or set aside.

A key is for one training. Used for two, with another learning rate, other data, another number of steps, both would have the same noise, and
the difference of what they leave would be exact. So the file says what the key is for (`training`), how the steps were computed (`how`: other
layouts and versions round differently), and where the run lies (`place`), so that a copy of the folder is known as one.
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
    """The key of one training."""

    secret: bytes = field(repr=False)
    training: str | None = None
    """What it is for; None: nothing was drawn from it that left the process (or an earlier version made it)."""
    how: tuple[tuple[int, str], ...] = ()
    """(first step, how the steps from there on were computed)."""
    place: str | None = None
    """Folder of the run."""
    unused: bool = field(default=False, compare=False)
    """It was made just now."""

    @property
    def hash(self) -> str:
        """What the ledger calls it."""
        return key_hash(self.secret)

    def ways(self, start: int, end: int) -> set[str]:
        """How the steps after `start`, up to `end`, were computed; "" where that is not known."""
        if end <= start or not self.how:
            return {""} if end > start else set()
        starts = [*(s for s, _ in self.how[1:]), end]
        found = {way for (first, way), last in zip(self.how, starts, strict=True) if first < end and last > start}
        return found if self.how[0][0] <= start else found | {""}


def seeded_key(seed: int) -> bytes:
    """A key that anybody who knows the seed can make again."""
    return hashlib.blake2b(f"{seed}/privacy".encode(), digest_size=BYTES).digest()


def key_hash(secret: bytes) -> str:
    """By which a key is known without being told."""
    return hashlib.sha256(b"tauon privacy key/" + secret).hexdigest()


def run_key(folder: Path, *, goes_on: bool = False) -> Key:
    """The run's key: a new one where there is none.

    Raises `RunError` for a file that is no key, or that others may read, and where a run that `goes_on` has lost its own.
    """
    path = folder / NAME
    if path.exists():
        return read_key(folder)
    if goes_on:
        raise RunError(
            f"{path} is gone: the run was settled or set aside, or somebody removed the file. It cannot go on, as it would with other draws than "
            "its guarantee counts; its checkpoints stay good. Start over with --fresh, or give another name (name=...)."
        )
    key = Key(os.urandom(BYTES), place=os.path.realpath(folder), unused=True)
    _write(path, key)
    return key


def read_key(folder: Path) -> Key:
    """The key of a run, as its first process made it. Raises `RunError` for a file that is not there, is no key, or that others may read."""
    path = folder / NAME
    try:
        mode, raw = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        raise RunError(
            f"{path} is not there: every process must see the run's folder. Put it on a file system that all of them share."
        ) from None
    except OSError as err:
        raise RunError(f"{path}: cannot be read: {err.strerror or err}. Every process must run as the user who owns the run.") from None
    if mode & 0o077:
        raise RunError(f"{path} may be read by others than its owner, so its noise is no secret. Start over with --fresh.")
    if len(raw) == BYTES:
        return Key(raw)  # of an earlier version
    try:
        said = json.loads(raw)
        key = Key(bytes.fromhex(said["key"]), said["training"], tuple((int(s), str(h)) for s, h in said["how"]), said["place"])
        if said["format"] != FORMAT or len(key.secret) != BYTES:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is no key of this version ({len(raw)} bytes). Restore it, or start over with --fresh.") from None
    return key


def bind_key(folder: Path, key: Key, training: str, how: str, step: int) -> Key:
    """The key, for this training from now on: its steps after `step` are computed as `how` says. In the file before it is returned."""
    ways = [pair for pair in key.how if pair[0] < step]
    if not ways or ways[-1][1] != how:
        ways.append((step, how))
    bound = replace(key, training=training, how=tuple(ways), place=os.path.realpath(folder))
    if bound != key:
        _write(folder / NAME, bound)
    return bound


def discard_key(folder: Path) -> None:
    """Throw the key away: nothing is drawn from it any more, and nobody can take its noise off again."""
    for path in folder.glob(f"*{NAME}"):  # and what is left of one that could not be removed whole
        erase(path)


def _write(path: Path, key: Key) -> None:
    ways: Sequence[Sequence[int | str]] = [list(pair) for pair in key.how]
    said = {"format": FORMAT, "key": key.secret.hex(), "training": key.training, "how": ways, "place": key.place}
    atomic_write(path, json.dumps(said) + "\n", mode=0o600)
