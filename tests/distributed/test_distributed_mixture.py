"""A run on three mixed sources, stopped twice in mid-epoch and resumed with other ranks and workers, is the run that was not stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tauon.artifacts import load_checkpoint
from tauon.cli.trace import trace_command
from tauon.config import parse
from tauon.errors import Interrupted
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.testing.processes import run_processes
from tauon.tracking import read_events, timeline

pytestmark = pytest.mark.distributed
STEPS = 18


def recipe(folder: Path, name: str, workers: int = 0) -> dict[str, Any]:
    sources = [{"source": {"kind": "text", "path": str(folder / n)}, "name": n, "weight": w} for n, w in (("a", 3), ("b", 1), ("c", 2))]
    return {
        "name": name,
        "seed": 5,
        "data": {
            "source": {"kind": "mixture", "sources": sources, "curriculum": [{"share": "50%", "weights": {"b": 3}}]},
            "tokenizer": "bytes", "seq_len": 32, "split": {"validation": "20%"}, "workers": workers,
        },
        "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 1, "width": 32, "heads": 2},
        "optim": {"kind": "adamw", "lr": 1e-3, "eps": 1e-6},
        "train": {"steps": STEPS, "batch": 8, "validate_every": 100, "checkpoint_every": 100, "compile": False, "precision": "fp32"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    for k, name in enumerate("abc"):
        (path / name).mkdir()
        for i in range(12):
            lines = "\n".join(f"{name} {i * 31 + j}: {'abcdefgh'[(j + k) % 8] * (j % 13)}" for j in range(20 + 10 * k))
            (path / name / f"{i}.txt").write_text(lines)
    return path


def stage(data: dict[str, Any], root: str, stop_at: int | None = None) -> str:
    os.environ["TAUON_CACHE"] = root + "/cache"
    torch.set_num_threads(1)

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run(parse(Recipe, data), root=root, stages=("prepare", "train"), on_event=on_event)
    except Interrupted as err:
        return str(err)
    return "done"


def losses(root: Path, name: str) -> dict[int, float]:
    events = timeline(read_events(root / name / "events.jsonl"))
    return {e["step"]: e["loss"] for e in events if e["kind"] == "step"}


def test_one_rank_then_two_with_workers_then_one_with_two_workers(folder: Path) -> None:
    assert stage(recipe(folder, "whole"), str(folder)) == "done"
    assert "step 5" in stage(recipe(folder, "parts"), str(folder), stop_at=5)
    told = run_processes(stage, 2, 400, recipe(folder, "parts", workers=1), str(folder), 11)
    assert all("step 11" in t for t in told)
    assert stage(recipe(folder, "parts", workers=2), str(folder)) == "done"
    whole, parts = losses(folder, "whole"), losses(folder, "parts")
    assert list(whole) == list(parts) == list(range(1, STEPS + 1))
    assert max(abs(whole[s] - parts[s]) for s in whole) < 1e-6
    last = [load_checkpoint(folder / n / "checkpoints" / f"step-{STEPS:06d}").tensors("model") for n in ("whole", "parts")]
    assert max((last[0][k] - last[1][k]).abs().max().item() for k in last[0]) < 1e-5
    check_traced_steps(folder)
    derived = {d["path"]: d["value"] for d in json.loads((folder / "parts" / "derived.json").read_text())}
    windows = {s["name"]: s["windows"] for s in json.loads((folder / "parts" / "data.json").read_text())["mixture"]["sources"]}
    drawn = {"a": 36 + 27, "b": 12 + 27, "c": 24 + 18}  # 9 steps of 8 rows at 3 : 1 : 2, 9 at 3 : 3 : 2
    assert derived["data.source"] == ", ".join(f"{n} {drawn[n] / windows[n]:.2f}" for n in "abc")


def check_traced_steps(folder: Path) -> None:
    """The rows of a step come from the sources in the proportions of that time: 3 : 1 : 2 before half of the steps, then 3 : 3 : 2."""
    counts = []
    for steps in ((0, 1, 2), (15, 16, 17)):
        found: list[str] = []
        for step in steps:
            for row in range(8):
                done = CliRunner().invoke(trace_command, [str(folder / "parts"), "--step", str(step), "--row", str(row), "--json"])
                assert done.exit_code == 0, done.output
                places = [json.loads(line) for line in done.output.splitlines()]
                assert len({p["source"] for p in places}) == 1  # a window does not cross from one source to another
                found.append(places[0]["source"])
        counts.append([found.count(n) for n in "abc"])
    assert counts == [[12, 4, 8], [9, 9, 6]]
