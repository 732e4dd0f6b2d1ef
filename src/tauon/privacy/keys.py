"""The secret that noise and sampling are drawn from: 256 bits from the operating system, kept beside a run only while it trains.

It lies in a file of its own that its owner alone may read, never in a checkpoint: whoever has it can take the noise off again. A resume
needs it to go on with the same draws; when training is done it is thrown away.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tauon.errors import RunError

__all__ = ["discard_key", "run_key", "seeded_key"]

NAME = "privacy.key"
BYTES = 32


def seeded_key(seed: int) -> bytes:
    """A key that anybody who knows the seed can make again."""
    return hashlib.blake2b(f"{seed}/privacy".encode(), digest_size=BYTES).digest()


def run_key(folder: Path, *, goes_on: bool = False) -> bytes:
    """The run's key: a new one where there is none.

    Raises `RunError` for a file that is no key, or that others may read, and where a run that `goes_on` has lost its own.
    """
    path = folder / NAME
    if goes_on and not path.exists():
        said = (
            "is gone, and the run has trained with it: it would go on with other draws than its guarantee counts. Start over with --fresh."
        )
        raise RunError(f"{path} {said}")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise RunError(f"{path} may be read by others than its owner, so its noise is no secret. Start over with --fresh.") from None
        key = path.read_bytes()
        if len(key) != BYTES:
            raise RunError(f"{path} holds {len(key)} bytes, a key has {BYTES}. Start over with --fresh.") from None
        return key
    key = os.urandom(BYTES)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def discard_key(folder: Path) -> None:
    """Throw the key away: the run is done, and nobody can take its noise off again."""
    path = folder / NAME
    if path.exists():
        path.write_bytes(os.urandom(BYTES))
        path.unlink()
