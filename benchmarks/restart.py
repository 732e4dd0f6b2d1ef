"""Seconds from `kill -9` of a worker to the next productive step: two processes on this machine (`--on local:2`), a small GPT.

A step is productive when it goes beyond every step done before the kill; what lies between holds all of it: noticing the death,
ending the other worker, two new processes that import torch and meet, reading data and checkpoint, and doing again the steps since that
checkpoint (every 20 here). Kills hit rank 0 and rank 1 in turn, at random moments drawn from a fixed seed. There is no peer: torchrun
restarts processes and does not resume a run. `peer` is the ceiling of 15 s, `ours` the median over kills, `ratio` ceiling / ours.

    python -m benchmarks.restart [--quick] [--kills N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CEILING_S = 15.0
STILL_LOGGED_S = 0.3
"""A step that was under way when a worker was killed may still be logged so much later."""
RECIPE = """\
name: restart
data: {{source: {{kind: text, path: {folder}/text.txt}}, tokenizer: bytes, seq_len: 64, cache: {folder}/cache}}
task: language-modelling
model: {{kind: gpt, layers: 2, width: 64, heads: 4}}
optim: {{kind: adamw, lr: 1e-3}}
train: {{steps: 100k, batch: 8, checkpoint_every: 20, validate_every: 100k, precision: fp32, compile: false}}
"""


def steps_done(run: Path) -> tuple[int, float]:
    """(highest step in the event log, when it was logged)."""
    best, when = 0, 0.0
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["kind"] == "step" and event["step"] > best:
                    best, when = event["step"], event["time"]
    return best, when


def wait(run: Path, beyond: int, process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Until a step above `beyond` is in the log."""
    deadline = time.monotonic() + 120
    while (found := steps_done(run))[0] <= beyond:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run stands at step {found[0]}, exit code {process.poll()}")
        time.sleep(0.01)
    return found


def first_beyond(run: Path, step: int, killed: float) -> float:
    """When the first step above `step` was logged, of those that the restarted workers took."""
    for line in (run / "events.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["kind"] == "step" and event["step"] > step and event["time"] > killed + STILL_LOGGED_S:
                return float(event["time"])
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 kills instead of 6")
    parser.add_argument("--kills", type=int, default=6)
    args = parser.parse_args()
    kills = 2 if args.quick else args.kills
    draw = random.Random(0)
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["the", "heavy", "lepton", "decays", "quickly"]
        (folder / "text.txt").write_text(" ".join(draw.choices(words, k=50_000)))
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        run = folder / "runs" / "restart"
        command = [sys.executable, "-m", "tauon", "train", str(folder / "recipe.yaml"), "--root", str(folder / "runs"), "--quiet"]
        command += ["--on", "local:2", f"launch.max_restarts={kills}"]
        source = str(Path(__file__).parents[1] / "src")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
        with subprocess.Popen(command, env=env) as process:
            try:
                reached = 0
                for number in range(kills):
                    reached, _ = wait(run, reached + draw.randrange(20, 60), process)
                    log = (run / "logs" / f"rank-{number % 2}.log").read_text()
                    pid = int(re.findall(r"^---- worker .* process (\d+)", log, re.MULTILINE)[-1])
                    killed = time.time()
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(STILL_LOGGED_S)
                    before, _ = steps_done(run)
                    reached, _ = wait(run, before, process)
                    taken.append(first_beyond(run, before, killed) - killed)
                    print(f"rank {number % 2} killed at step {before}: {taken[-1]:.2f} s to step {before + 1}", flush=True)
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=60)
                process.kill()
    ours = statistics.median(taken)
    result = {"claim": "restart", "ours": round(ours, 2), "peer": CEILING_S, "ratio": round(CEILING_S / ours, 2), "floor": 1.0}
    result |= {"unit": "s from kill to the next productive step; ratio is the ceiling of 15 s / ours", "worst_s": round(max(taken), 2)}
    result |= {"kills": kills, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
