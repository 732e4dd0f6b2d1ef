"""A real run on two processes whose workers are killed: it ends, and every loss and every weight is that of the undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toy import text_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def command(folder: Path, name: str, steps: int, *more: str) -> list[str]:
    recipe = text_recipe(folder, train={"steps": steps, "batch": 8, "checkpoint_every": 10, "validate_every": steps})
    return [sys.executable, "-m", "tauon", "train", str(recipe), "--root", str(folder / "runs"), f"name={name}", "--on", "local:2", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def losses(run: Path) -> dict[int, float]:
    """Loss of each step; of one that was done again after a restart, the last."""
    found = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that was being written when its writer was killed
            event = json.loads(line)
            if event.get("kind", event.get("event")) == "step":
                found[event["step"]] = event["loss"]
    return found


def worker(run: Path, rank: int) -> tuple[int, int]:
    """(process, restart) of the newest worker of a rank."""
    starts = re.findall(
        r"^---- worker \d+ of \d+, process (\d+), restart (\d+)", (run / "logs" / f"rank-{rank}.log").read_text(), re.MULTILINE
    )
    return int(starts[-1][0]), int(starts[-1][1])


def far_enough(run: Path, goal: int, restart: int) -> bool:
    """Whether the workers of this restart are up, and have come to step `goal`: a step of the ones before may be logged after their end."""
    if not (run / "events.jsonl").exists() or max(losses(run), default=0) < goal:
        return False
    return all(worker(run, rank)[1] == restart for rank in range(2))


def disturbed(folder: Path, steps: int, kills: int, *more: str) -> str:
    """Run to the end while a random worker is killed `kills` times, each time after some steps of progress; returns what it printed."""
    run = folder / "runs" / "disturbed"
    draw = random.Random(0)
    with subprocess.Popen(
        command(folder, "disturbed", steps, f"launch.max_restarts={kills}", *more), text=True, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            reached = 0
            for number in range(kills):
                goal = reached + draw.randrange(5, 20)
                wait_until(lambda goal=goal, number=number: far_enough(run, goal, number), process)
                pid, _ = worker(run, draw.randrange(2))
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.3)  # what was logged just before is on disk
                reached = max(losses(run))
            out, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, out
    assert out.count("was killed by SIGKILL") == kills
    return out


def wait_until(condition, process: subprocess.Popen[str], seconds: float = 180) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no progress in {seconds} s:\n{process.communicate()[0]}")
        time.sleep(0.05)  # a look reads the whole log, which takes time from the workers


def undisturbed(folder: Path, steps: int) -> Path:
    subprocess.run(command(folder, "calm", steps), env=environment(), check=True, capture_output=True, timeout=300)
    return folder / "runs" / "calm"


def equal(folder: Path, steps: int) -> None:
    calm, run = folder / "runs" / "calm", folder / "runs" / "disturbed"
    assert losses(run) == losses(calm) and set(losses(run)) == set(range(1, steps + 1))
    for file in ("model.safetensors", "optim.safetensors"):
        assert (run / f"checkpoints/step-{steps:06d}" / file).read_bytes() == (calm / f"checkpoints/step-{steps:06d}" / file).read_bytes()


@pytest.mark.timeout(900)
def test_twenty_killed_workers_change_no_bit(tmp_path: Path) -> None:
    steps = 2000  # more than twenty times the steps that go by before a look at the log answers, on a fast machine too
    undisturbed(tmp_path, steps)
    disturbed(tmp_path, steps, 20)
    equal(tmp_path, steps)


def test_after_a_signal_the_same_command_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed(tmp_path, 300)
    run = tmp_path / "runs" / "disturbed"
    with subprocess.Popen(
        command(tmp_path, "disturbed", 300), text=True, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as first:
        wait_until(lambda: (run / "events.jsonl").exists() and max(losses(run), default=0) >= 15, first)
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "all 2 workers saved" in out, out
    assert max(losses(run)) < 300
    subprocess.run(command(tmp_path, "disturbed", 300), env=environment(), check=True, capture_output=True, timeout=300)
    equal(tmp_path, 300)
