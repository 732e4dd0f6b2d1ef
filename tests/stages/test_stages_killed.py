"""Killed at any moment of any stage, the same command ends in the same records."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tauon.artifacts import load_checkpoint, read_json
from tauon.stages.table import stage_table
from toy import text_recipe

STAGES = list(stage_table())


def start(recipe: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tauon", "run", str(recipe), "audit.examples=10", "train.steps=40", "--root", str(root), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(recipe: Path, root: Path) -> None:
    process = start(recipe, root)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def records(root: Path) -> dict[str, Any]:
    """What a run leaves, without times and places."""
    folder = root / "toy"
    found: dict[str, Any] = {name: read_json(folder / name) for name in ("data.json", "evaluation.json", "samples.json", "audit.json")}
    found["audit.json"].pop("time")
    found["data.json"].pop("cache")
    (last,) = [c for c in (folder / "checkpoints").iterdir() if c.name == "step-000040"]
    found["checkpoint"] = load_checkpoint(last).hash
    found["stages"] = {
        name: (stage["result"], stage["inputs"]) for name, stage in read_json(folder / "stages.json").items() if name != "report"
    }
    found["report"] = (folder / "report.html").stat().st_size > 10_000
    return found


def kill_in(recipe: Path, root: Path, stage: str, rng: random.Random) -> bool:
    """Start, and kill at a random moment of one stage; whether the kill came before the end."""
    process = start(recipe, root)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "stage" and event["name"] == stage:
            if event["state"] == "begins":
                time.sleep(rng.uniform(0, 0.3 if stage in ("train", "audit") else 0.1))
            break
    process.send_signal(signal.SIGKILL)
    killed = process.wait(600) == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    return killed


def check(tmp_path: Path, times: int) -> None:
    recipe = text_recipe(tmp_path)
    finish(recipe, tmp_path / "undisturbed")
    rng, root, hits = random.Random(times), tmp_path / "killed", 0
    for stage in STAGES:
        hits += sum(kill_in(recipe, root, stage, rng) for _ in range(times))
    finish(recipe, root)
    assert hits >= len(STAGES) * times // 2  # a fast machine may be done before the kill
    assert records(root) == records(tmp_path / "undisturbed")
    assert not [p for p in (root / "toy").rglob("*") if ".tmp-" in p.name]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_once_in_each_stage_the_records_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    check(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_in_each_stage_the_records_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    check(tmp_path, 10)
