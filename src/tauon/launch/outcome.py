"""Outcome of workers, as a message and an exit code: whether to retry, which rank was the cause, and its error."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path

from tauon.artifacts import steps_in
from tauon.errors import TauonError
from tauon.launch.logs import error_in, log_path
from tauon.tracking import read_events

__all__ = ["STOPPED", "WorkerFailed", "cause", "ended", "failed", "is_final", "still_at_work"]

FINAL = frozenset({2, 3, 4, 7, 8, 9})
"""Exit codes after which a restart would fail in the same way: recipe, data, checkpoint, missing library, privacy budget."""
ONCE = 5
"""Exit codes with one retry: the run's folder, or the rendezvous. May be temporary (the lock of a killed process, a peer that died during
the rendezvous) or permanent (another training in the folder)."""
NAMED = FINAL | {ONCE, 6}
"""Exit codes of a worker that printed an error message."""
STOPPED = 130
"""Exit code of a worker that saved after a stop signal."""


class WorkerFailed(TauonError):
    """A worker failed finally; the others were stopped. `exit_code` is the worker's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def cause(codes: Mapping[int, int]) -> int:
    """Return the rank that caused the failure, from each failed rank's exit code (negative: a signal).

    In this order: killed or crashed, ended with an error message, any other failure, stopped from outside (SIGTERM), which also
    happens to the other workers.

    >>> cause({0: 1, 1: -9}), cause({0: 1, 3: 2}), cause({0: -15, 1: 1})
    (1, 3, 1)
    """

    def order(rank: int) -> tuple[int, int]:
        code = codes[rank]
        stopped = code in (-signal.SIGTERM, STOPPED)
        return (3 if stopped else 0 if code < 0 else 1 if code in NAMED else 2, rank)

    return min(codes, key=order)


def is_final(codes: Mapping[int, int], restarts: int = 0) -> bool:
    """Whether not to restart: it would fail again, or the workers were stopped on purpose."""
    code = codes[cause(codes)]
    return code in FINAL | {STOPPED} or (code == ONCE and restarts > 0)


def ended(rank: int, code: int) -> str:
    """Describe how a rank ended.

    >>> ended(1, -9), ended(0, 6)
    ('rank 1 was killed by SIGKILL', 'rank 0 ended with exit code 6')
    """
    if code >= 0:
        return f"rank {rank} ended with exit code {code}"
    try:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"rank {rank} was killed by signal {-code}"


def still_at_work(folder: Path, ended: int, workers: int) -> list[str]:
    """Message about workers that were still running when the launcher stopped waiting; [] if there are none."""
    if ended >= workers:
        return []
    steps = []
    with contextlib.suppress(TauonError, ValueError, TypeError):
        steps = [int(e["step"]) for e in read_events(folder / "events.jsonl", warn=lambda _: None) if e.get("kind") in ("step", "resume")]
    saved = max((step for step, _ in steps_in(folder / "checkpoints")), default=None)
    last = f"the last checkpoint is of step {saved:,}" if saved is not None else "no checkpoint yet"
    reached = f"step {max(steps):,} was the last in their logs, {last}" if steps else last
    return [f"{workers - ended} of {workers} were still running ({reached})"]


def failed(codes: Mapping[int, int], logs: Path, restarts: int) -> WorkerFailed:
    """The one error for all workers: the rank, its error, the log, and the number of restarts."""
    rank = cause(codes)
    code = codes[rank]
    said = error_in(log_path(logs, rank))
    tried = f" after {restarts} restart{'s' if restarts != 1 else ''}" if restarts else ""
    if code == -signal.SIGKILL:
        hint = "probably out of memory: use fewer workers, or a smaller train.microbatch. Run the same command again to resume from the last checkpoint."
    else:
        hint = f"its complete log: {log_path(logs, rank)}"
    text = said if code in NAMED and said else "\n".join(filter(None, [ended(rank, code) + tried, said]))
    if code in NAMED and said and not said.startswith("rank "):  # the error already names the rank
        text = f"[rank {rank}] {text}"
    return WorkerFailed(f"{text}\n({hint})", code if code > 0 else 6)
