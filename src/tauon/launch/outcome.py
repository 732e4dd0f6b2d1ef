"""How workers ended, in words and as an exit code: what is worth another try, which rank was the cause, what it said."""

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
"""Exit codes after which a restart would end the same way: the recipe, the data, a checkpoint, a missing library, a privacy budget."""
ONCE = 5
"""Worth one more try: the run's folder, or the meeting of the ranks. A lock of a process that was just killed, a peer that died while
they met; but also the training of another recipe, which stays."""
NAMED = FINAL | {ONCE, 6}
"""Exit codes of a worker that said what is wrong."""
STOPPED = 130
"""Exit code of a worker that was asked to stop and saved."""


class WorkerFailed(TauonError):
    """A worker failed for good; the others were stopped. `exit_code` is the worker's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def cause(codes: Mapping[int, int]) -> int:
    """The rank whose end made the others end, from each failed rank's exit code (negative: a signal).

    One that was killed or crashed comes first, then one that named a problem, then any other failure. Who was stopped from outside
    (SIGTERM) comes last, as that is what happens to the others.

    >>> cause({0: 1, 1: -9}), cause({0: 1, 3: 2}), cause({0: -15, 1: 1})
    (1, 3, 1)
    """

    def order(rank: int) -> tuple[int, int]:
        code = codes[rank]
        stopped = code in (-signal.SIGTERM, STOPPED)
        return (3 if stopped else 0 if code < 0 else 1 if code in NAMED else 2, rank)

    return min(codes, key=order)


def is_final(codes: Mapping[int, int], restarts: int = 0) -> bool:
    """Whether starting again would change nothing, or was not asked for (somebody stopped the workers)."""
    code = codes[cause(codes)]
    return code in FINAL | {STOPPED} or (code == ONCE and restarts > 0)


def ended(rank: int, code: int) -> str:
    """How a rank ended, in words.

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
    """What can be said of the workers that had not ended when nobody waited for them any longer: [] where there are none."""
    if ended >= workers:
        return []
    steps = []
    with contextlib.suppress(TauonError, ValueError, TypeError):
        steps = [int(e["step"]) for e in read_events(folder / "events.jsonl", warn=lambda _: None) if e.get("kind") in ("step", "resume")]
    saved = max((step for step, _ in steps_in(folder / "checkpoints")), default=None)
    last = f"the last checkpoint is of step {saved:,}" if saved is not None else "no checkpoint yet"
    reached = f"step {max(steps):,} was the last that they logged, {last}" if steps else last
    return [f"{workers - ended} of {workers} were still at work ({reached})"]


def failed(codes: Mapping[int, int], logs: Path, restarts: int) -> WorkerFailed:
    """The one error for all: which rank, what it said, where the rest is, whether it was tried again."""
    rank = cause(codes)
    code = codes[rank]
    said = error_in(log_path(logs, rank))
    tried = f" after {restarts} restart{'s' if restarts != 1 else ''}" if restarts else ""
    if code == -signal.SIGKILL:
        hint = "the system kills so where memory ends: fewer workers, or a smaller train.microbatch. The same command goes on from the last checkpoint."
    else:
        hint = f"its whole log: {log_path(logs, rank)}"
    text = said if code in NAMED and said else "\n".join(filter(None, [ended(rank, code) + tried, said]))
    if code in NAMED and said and not said.startswith("rank "):  # a run on several processes names the rank itself
        text = f"[rank {rank}] {text}"
    return WorkerFailed(f"{text}\n({hint})", code if code > 0 else 6)
