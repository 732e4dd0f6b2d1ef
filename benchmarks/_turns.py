"""A peer in a process of its own that takes turns with ours, step by step: what we set in ours (how malloc keeps freed memory) must not help it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "@step"
Seconds = tuple[float, float]
"""By the clock, and of the processor (all threads)."""


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    clock, cpu = now()
    return clock - start[0], cpu - start[1]


class Peer:
    """`python -m benchmarks.<module> --peer NAME --steps N --threads T`, which calls `serve`. It makes its first step at once."""

    def __init__(self, module: str, name: str, steps: int, threads: int) -> None:
        command = [sys.executable, "-m", f"benchmarks.{module}", "--peer", name, "--steps", str(steps), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        self.times: list[Seconds] = []

    def go(self) -> None:
        """Let it make its next step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Wait for the end of its step."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                clock, cpu = line.split()[1:]
                self.times.append((float(clock), float(cpu)))
                return
        raise RuntimeError("the peer's process ended early")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(train: Callable[[Callable[[Seconds], None]], None]) -> None:
    """The peer's process: `train` calls what it is given with the time of each step, which then waits for its turn."""

    def between(seconds: Seconds) -> None:
        print(MARK, *seconds, flush=True)
        sys.stdin.readline()

    train(between)
