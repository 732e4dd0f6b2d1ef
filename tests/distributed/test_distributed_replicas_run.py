"""Replicas that train on their own, through the pipeline: a run that was stopped ends as one that was not, to the last bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tauon.artifacts import load_checkpoint
from tauon.config import parse
from tauon.errors import CheckpointError, Interrupted
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.testing import run_processes
from tauon.tracking import read_events, timeline
from toy import text_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

DILOCO = {"kind": "diloco", "every": 5, "fragments": 2, "overlap": 2, "compression": "int8"}
INT8 = {"kind": "mesh", "replicate": 2, "compression": "int8"}


def stage(data: dict[str, Any], root: str, stop_at: int | None = None) -> None:
    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run(parse(Recipe, data), root=root, stages=("prepare", "train"), on_event=on_event)
    except Interrupted:
        assert stop_at is not None


def on_two_ranks(base: dict[str, Any], root: str) -> str:
    torch.set_num_threads(1)
    for name, parallel in (("diloco", DILOCO), ("int8", INT8)):
        stage(base | {"name": name, "parallel": parallel}, root)
        stage(base | {"name": f"{name}-stopped", "parallel": parallel}, root, 6)  # a fragment is on its way
        stage(base | {"name": f"{name}-stopped", "parallel": parallel}, root)
    stage(base | {"name": "other", "parallel": DILOCO}, root, 6)
    try:
        stage(base | {"name": "other", "parallel": "auto"}, root)
    except CheckpointError as err:
        return str(err)
    return ""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicas")
    base = yaml.safe_load(text_recipe(folder, optim={"kind": "adamw", "lr": 1e-2}).read_text())
    said = run_processes(on_two_ranks, 2, 400, base, str(folder))
    assert all("was trained with local steps" in s for s in said), said
    return folder


@pytest.mark.parametrize("name", ["diloco", "int8"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(root: Path, name: str) -> None:
    whole, resumed = (load_checkpoint(root / n / "checkpoints" / "step-000012") for n in (name, f"{name}-stopped"))
    assert (
        set(whole.groups()) == set(resumed.groups()) == {"model", *(("outer", "replica") if name == "diloco" else ("optim", "compression"))}
    )
    for group in whole.groups():
        mine, want = resumed.tensors(group), whole.tensors(group)
        assert mine.keys() == want.keys()
        assert all(torch.equal(mine[k], want[k]) for k in want), group


def test_the_anchor_is_saved_and_bytes_are_logged(root: Path) -> None:
    checkpoint = load_checkpoint(root / "diloco" / "checkpoints" / "step-000012")
    model, replicas = checkpoint.tensors("model"), checkpoint.tensors("replica")
    for k in (0, 1):  # the last step brought all together
        assert all(torch.equal(w, replicas[f"replica-{k}/model/{n}"]) for n, w in model.items())
    steps = [e for e in timeline(read_events(root / "diloco" / "events.jsonl")) if e["kind"] == "step"]
    # fragment 0 goes out after 5 and 10 steps, fragment 1 after 2, 7 and 12; after the last both
    assert [e["step"] for e in steps if e.get("sent_bytes")] == [2, 5, 7, 10, 12]
