"""Heartbeats: when a collective fails or waits too long, which rank is it that does not come, and where is it stuck?

Every process tells the group's store, every few seconds, how far it is, and once it has not moved for a while, also the stack of
its main thread. A process whose collective failed reads what the others told and names the one that lags. The time-out itself is
that of the process group (launch.timeout). Restarts nothing: launchers do.

On GPUs nothing fails in Python: the host waits for the card, and NCCL's watchdog then aborts the process. There the heartbeat itself
says, shortly before, for whom this process waits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

from tauon.distributed.timeouts import group_store, time_limit
from tauon.distributed.world import World
from tauon.errors import TrainingError

__all__ = ["Heartbeat", "is_collective_failure"]

FRAMES = 6
"""Innermost frames of a stack that are told."""
SPEAKS_AT = 0.75
"""Share of the time-out after which a process that NCCL will abort says what it waits for."""
DEVICE_WAITS = (".item()", ".tolist()", ".cpu()", "synchronize()")
"""How a line of code looks that makes the host wait for a GPU."""
SIGNS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "gloo", "nccl", "recv", "socket", "peer")
"""What the messages of failed collectives have in common, in lower case."""


def is_collective_failure(err: BaseException) -> bool:
    """Whether an error is of the network or of another rank, rather than of this process's own work."""
    if not isinstance(err, RuntimeError):
        return False
    import torch.distributed as dist

    text = str(err).lower()
    return isinstance(err, dist.DistError) or any(sign in text for sign in SIGNS)


class Heartbeat:
    """A context: inside, this process tells how far it is. In a world of one it does nothing.

    `beat(step)` after each step costs an assignment.
    """

    def __init__(self, world: World, *, interval: float | None = None, speaks: bool | None = None) -> None:
        """`speaks`: whether to say on standard error, before the time-out, for whom this process waits. None: where NCCL is used."""
        self.world, self.speaks = world, speaks
        self.limit = time_limit()
        self.interval = interval or max(0.2, min(5.0, self.limit / 10))
        self._seen: tuple[list[str], float] = ([], 0.0)
        self.step = 0
        self.moved = time.monotonic()
        self._main = threading.current_thread().ident
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int) -> None:
        """Step `step` is done in this process."""
        self.step, self.moved = step, time.monotonic()

    def __enter__(self) -> Heartbeat:
        if self.world.size > 1:
            self._thread = threading.Thread(target=self._tell_regularly, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2)

    def _tell_regularly(self) -> None:
        while True:
            with suppress(Exception):  # the store may be gone: then there is nobody to tell
                self._tell()
            if self._stop.wait(self.interval):
                return

    def _tell(self) -> None:
        still = time.monotonic() - self.moved
        told: dict[str, Any] = {"step": self.step, "still": round(still, 1), "at": time.time(), "pid": os.getpid()}
        if still > self.interval:
            told["stack"], told["waits"] = self._stack()
        group_store().set(f"tauon/heart/{self.world.rank}", json.dumps(told))
        self._speak(told.get("stack", []), told.get("waits", False))

    def _stack(self) -> tuple[list[str], bool]:
        """(innermost frames of the main thread, whether it waits for others: in a collective, or for a GPU that is in one)."""
        frame = sys._current_frames().get(self._main or 0)
        found = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
        stack = [f"{f.filename}:{f.lineno} in {f.name}" for f in found]
        on_device = bool(found) and any(sign in (found[-1].line or "") for sign in DEVICE_WAITS)
        return stack, on_device or any("torch/distributed" in line.replace("\\", "/") for line in stack[-3:])

    def _speak(self, stack: list[str], waits: bool) -> None:
        """Once, when this process has waited at one place for most of the time-out."""
        now = time.monotonic()
        if not waits or stack != self._seen[0]:
            self._seen = (stack, now)
        elif now - self._seen[1] > SPEAKS_AT * self.limit:
            if self.speaks is None:
                self.speaks = _over_nccl()
            if self.speaks:
                self.speaks = False
                why = RuntimeError(f"{now - self._seen[1]:.0f} s; the time-out is {self.limit:.0f} s")
                print(f"error: {self.explain(why, wait=False)}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------ afterwards

    def failure(self, err: BaseException, *, ending: bool = False) -> TrainingError | None:
        """The error to end with where `err` is of the network or of another rank; None where it is this process's own.

        `ending`: this process was told to end (SIGTERM): whoever told it knows who died, so it does not wait to find out.
        """
        if self.world.size == 1 or not is_collective_failure(err):
            return None
        return TrainingError(self.explain(err, wait=not ending) + " The last whole checkpoint is kept; the same command goes on from it.")

    def hearts(self) -> dict[int, dict[str, Any] | None]:
        """What each rank told last; None where it told nothing. `RuntimeError` where the store cannot be reached."""
        store = group_store()
        found: dict[int, dict[str, Any] | None] = {}
        for rank in range(self.world.size):
            key = f"tauon/heart/{rank}"
            found[rank] = json.loads(store.get(key)) if store.check([key]) else None
        return found

    def explain(self, err: BaseException, *, wait: bool = True) -> str:
        """Words for a collective that failed in this process: who did not come, and where that one is.

        Waits a little longer than a beat, so that whoever is stuck has told its stack, and whoever tells nothing is known to be gone; but
        not once it is told to end, and not where `wait` is false: a heart that waits does not beat. Returns within the time-out: a store
        that is cut off fails by then (`timeouts.py`).
        """
        first = str(err).splitlines()[0][:300] if str(err) else type(err).__name__
        said = f"rank {self.world.rank} of {self.world.size} waited for others after step {self.step} in vain ({first})"
        try:
            before = self.hearts()
            waited = wait and not _told_to_end(1.5 * self.interval)
            hearts = self.hearts()
        except RuntimeError:
            at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return f"{said}. Rank 0 no longer answers: nothing comes from {at}. Its process or its machine is gone, or this one is cut off."
        now = time.time()
        silent = [
            r
            for r, h in hearts.items()
            if r != self.world.rank and (h is None or now - h["at"] > 3 * self.interval or (waited and h == before[r]))
        ]
        if silent:
            last = hearts[silent[0]]
            when = f"last heard of after step {last['step']}, {now - last['at']:.0f} s ago" if last else "never heard of"
            return f"{said}. Rank {silent[0]} no longer answers ({when}): its process or its machine is gone, or cut off."
        others = {r: h for r, h in hearts.items() if r != self.world.rank and h is not None}
        apart = [r for r, h in others.items() if not h.get("waits", False)]
        lag = min(apart or others, key=lambda r: (others[r]["step"], -others[r]["still"]), default=None)
        if lag is None:
            return f"{said}."
        h = others[lag]
        stack = "\n    ".join(h.get("stack", [])) or "(it moves again)"
        return (
            f"{said}. Rank {lag} has not come: it is at step {h['step']} and has not moved for {h['still']:.0f} s. Its stack:\n    {stack}"
        )


def _told_to_end(seconds: float) -> bool:
    """Wait for so long, but not once SIGTERM comes; returns whether it came."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        time.sleep(seconds)
        return False
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        return told.wait(seconds)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _over_nccl() -> bool:
    import torch.distributed as dist

    return "nccl" in str(dist.get_backend_config())
