"""Heartbeats: find the rank that is missing when a collective fails or waits too long, and where it is stuck.

Every process writes its step to the group's store every few seconds, and the stack of its main thread if it has not advanced for a
while. A process whose collective failed reads these heartbeats and names the rank that lags. The timeout is that of the process
group (launch.timeout). Restarts are done by launchers.

On GPUs nothing fails in Python: the host waits for the GPU, and NCCL's watchdog aborts the process. There the heartbeat thread prints,
shortly before, which rank this process waits for.
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
"""Number of innermost stack frames in a heartbeat."""
SPEAKS_AT = 0.75
"""Share of the timeout after which a process using NCCL prints what it waits for."""
DEVICE_WAITS = (".item()", ".tolist()", ".cpu()", "synchronize()")
"""Pattern of code that makes the host wait for a GPU."""
SIGNS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "gloo", "nccl", "recv", "socket", "peer")
"""Parts of the messages of failed collectives, in lower case."""


def is_collective_failure(err: BaseException) -> bool:
    """Whether an error comes from the network or from another rank, not from this process."""
    if not isinstance(err, RuntimeError):
        return False
    import torch.distributed as dist

    text = str(err).lower()
    return isinstance(err, dist.DistError) or any(sign in text for sign in SIGNS)


class Heartbeat:
    """Context in which this process sends heartbeats. In a world of one it does nothing.

    `beat(step)` after each step costs an assignment.
    """

    def __init__(self, world: World, *, interval: float | None = None, speaks: bool | None = None) -> None:
        """`speaks`: whether to print on stderr, before the timeout, which rank this process waits for. None: if NCCL is used."""
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
        """Record that this process has finished step `step`."""
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
            with suppress(Exception):  # the store may have ended
                self._send()
            if self._stop.wait(self.interval):
                return

    def _send(self) -> None:
        idle = time.monotonic() - self.moved
        beat: dict[str, Any] = {"step": self.step, "still": round(idle, 1), "at": time.time(), "pid": os.getpid()}
        if idle > self.interval:
            beat["stack"], beat["waits"] = self._stack()
        group_store().set(f"tauon/heartbeat/{self.world.rank}", json.dumps(beat))
        self._speak(beat.get("stack", []), beat.get("waits", False))

    def _stack(self) -> tuple[list[str], bool]:
        """(innermost frames of the main thread, whether it waits for other ranks: in a collective, or for a GPU that is in one)."""
        frame = sys._current_frames().get(self._main or 0)
        found = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
        stack = [f"{f.filename}:{f.lineno} in {f.name}" for f in found]
        on_device = bool(found) and any(sign in (found[-1].line or "") for sign in DEVICE_WAITS)
        return stack, on_device or any("torch/distributed" in line.replace("\\", "/") for line in stack[-3:])

    def _speak(self, stack: list[str], waits: bool) -> None:
        """Print once, after waiting at one place for most of the timeout."""
        now = time.monotonic()
        if not waits or stack != self._seen[0]:
            self._seen = (stack, now)
        elif now - self._seen[1] > SPEAKS_AT * self.limit:
            if self.speaks is None:
                self.speaks = _over_nccl()
            if self.speaks:
                self.speaks = False
                why = RuntimeError(f"{now - self._seen[1]:.0f} s; the timeout is {self.limit:.0f} s")
                print(f"error: {self.explain(why, wait=False)}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------ afterwards

    def failure(self, err: BaseException, *, ending: bool = False) -> TrainingError | None:
        """Return the error to end with if `err` comes from the network or another rank; None if it is this process's own.

        `ending`: this process got SIGTERM: the launcher already knows who died, so do not wait to find out.
        """
        if self.world.size == 1 or not is_collective_failure(err):
            return None
        return TrainingError(
            self.explain(err, wait=not ending) + " The last complete checkpoint is kept; run the same command again to resume from it."
        )

    def heartbeats(self) -> dict[int, dict[str, Any] | None]:
        """Last heartbeat of each rank; None if it sent none. Raises `RuntimeError` if the store cannot be reached."""
        store = group_store()
        found: dict[int, dict[str, Any] | None] = {}
        for rank in range(self.world.size):
            key = f"tauon/heartbeat/{rank}"
            found[rank] = json.loads(store.get(key)) if store.check([key]) else None
        return found

    def explain(self, err: BaseException, *, wait: bool = True) -> str:
        """Explain a collective that failed in this process: which rank is missing, and where it is.

        Waits a little longer than one heartbeat, so that a stuck rank has sent its stack, and a silent one is known to have ended; but not
        after SIGTERM, and not if `wait` is false (in the heartbeat thread, which must keep sending). Returns within the timeout: an
        unreachable store fails by then (`timeouts.py`).
        """
        first = str(err).splitlines()[0][:300] if str(err) else type(err).__name__
        failure = f"rank {self.world.rank} of {self.world.size} failed while waiting for other ranks after step {self.step} ({first})"
        try:
            before = self.heartbeats()
            waited = wait and not _wait_for_sigterm(1.5 * self.interval)
            heartbeats = self.heartbeats()
        except RuntimeError:
            at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return f"{failure}. Rank 0 no longer answers at {at}. Its process or machine ended, or the network connection is broken."
        now = time.time()
        silent = [
            r
            for r, h in heartbeats.items()
            if r != self.world.rank and (h is None or now - h["at"] > 3 * self.interval or (waited and h == before[r]))
        ]
        if silent:
            last = heartbeats[silent[0]]
            when = f"last heartbeat after step {last['step']}, {now - last['at']:.0f} s ago" if last else "it never sent a heartbeat"
            return f"{failure}. Rank {silent[0]} no longer answers ({when}): its process or machine ended, or its network connection is broken."
        others = {r: h for r, h in heartbeats.items() if r != self.world.rank and h is not None}
        apart = [r for r, h in others.items() if not h.get("waits", False)]
        lag = min(apart or others, key=lambda r: (others[r]["step"], -others[r]["still"]), default=None)
        if lag is None:
            return f"{failure}."
        h = others[lag]
        stack = "\n    ".join(h.get("stack", [])) or "(it moves again)"
        return f"{failure}. Rank {lag} is missing: it is at step {h['step']} and has not advanced for {h['still']:.0f} s. Its stack:\n    {stack}"


def _wait_for_sigterm(seconds: float) -> bool:
    """Wait for this time, or until SIGTERM; return whether SIGTERM came."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
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
