"""The process that works on blocks of documents for another (`block_workers.py`): reads them from standard input, writes results to standard output.

It ends when its standard input does, and so with the process that started it.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import signal
import struct
import sys
from typing import Any, BinaryIO

from tauon.errors import RunError

__all__ = ["main", "receive", "send", "work_on"]

_LENGTH = struct.Struct("<Q")


def send(to: Any, data: bytes) -> None:
    """Write a message: its length, then its bytes."""
    to.write(_LENGTH.pack(len(data)))
    to.write(data)
    to.flush()


def receive(source: Any) -> bytes | None:
    """Return the next message; None at the end."""
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data: bytes = source.read(length)
    return data if len(data) == length else None


def work_on(work: tuple[tuple[str, ...], bytes], documents: Any) -> tuple[bool, Any]:
    """Return (True, the result) or (False, the error)."""
    try:
        return True, _loaded(work)(documents)
    except Exception as err:
        try:
            pickle.loads(pickle.dumps(err))  # noqa: S301 - our own bytes
        except Exception:
            return False, RunError(f"{type(err).__name__}: {err}")
        return False, err


@functools.lru_cache(maxsize=1)
def _loaded(work: tuple[tuple[str, ...], bytes]) -> Any:
    modules, pickled = work
    for module in modules:
        importlib.import_module(module)
    return pickle.loads(pickled)  # noqa: S301 - from the process that started this one


def main() -> None:
    """Work until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the process that started this one ends it
    source: BinaryIO = sys.stdin.buffer
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a filter of a user prints must not come between the results
    work: Any = None
    while (message := receive(source)) is not None:
        given, documents = pickle.loads(message)  # noqa: S301 - from the process that started this one
        work = given or work
        send(results, pickle.dumps(work_on(work, documents)))
