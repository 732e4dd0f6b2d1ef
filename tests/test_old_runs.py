"""Runs that earlier versions left on disk keep opening: evaluated again they have the same figures, they go on, and they write the same text.

tests/fixtures/format-1: of 2026-11-29, runs `text` and `table` of tests/golden_recipes.py (text: one layer of width 16), each beside the recipe that made
it. They are never made anew: a new format gets a folder of its own, beside this one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from golden_recipes import HERE, RECIPES
from tauon.artifacts import load_checkpoint, read_json
from toy import Tauon

FORMATS = sorted(p for p in (HERE / "fixtures").glob("format-*"))


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def opened(fixture: Path, name: str, folder: Path) -> Path:
    """The run as it lay there, with its data beside it."""
    RECIPES[name](folder)
    shutil.copy(fixture / f"{name}.yaml", folder / "recipe.yaml")
    return Path(shutil.copytree(fixture / name, folder / "runs" / name))


@pytest.mark.parametrize("name", ["text", "table"])
@pytest.mark.parametrize("fixture", FORMATS, ids=lambda p: p.name)
def test_an_old_run_is_evaluated_to_the_same_figures(fixture: Path, name: str, tauon: Tauon, tmp_path: Path) -> None:
    run = opened(fixture, name, tmp_path)
    before = read_json(run / "evaluation.json")["metrics"]
    (run / "evaluation.json").unlink()
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps({k: v for k, v in stages.items() if k in ("prepare", "train")}))
    ended = tauon("evaluate", run, "--quiet")
    assert ended.code == 0, ended
    after = read_json(run / "evaluation.json")["metrics"]
    gone = {"recall_weighted"}  # it was accuracy
    assert after.keys() >= before.keys() - gone
    for metric, old in before.items():
        if metric in gone:
            continue
        assert after[metric]["value"] == pytest.approx(old["value"], rel=1e-4), metric
    assert tauon("report", run, "--quiet").code == 0 and (run / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["text", "table"])
@pytest.mark.parametrize("fixture", FORMATS, ids=lambda p: p.name)
def test_an_old_run_is_done_and_is_not_trained_again(fixture: Path, name: str, tauon: Tauon, tmp_path: Path) -> None:
    run = opened(fixture, name, tmp_path)
    (checkpoint,) = (run / "checkpoints").iterdir()
    before = load_checkpoint(checkpoint)
    ended = tauon("train", tmp_path / "recipe.yaml", "--quiet")
    assert ended.code == 0, ended
    (still,) = (run / "checkpoints").iterdir()
    after = load_checkpoint(still)
    assert after.hash == before.hash
    for group in before.groups():
        assert all(torch.equal(t, after.tensors(group)[k]) for k, t in before.tensors(group).items())


@pytest.mark.parametrize("fixture", FORMATS, ids=lambda p: p.name)
def test_an_old_run_goes_on_from_its_checkpoint(fixture: Path, tauon: Tauon, tmp_path: Path) -> None:
    """Its training is not marked as done, as if it had been killed before that: the checkpoint is taken, and nothing is trained twice."""
    run = opened(fixture, "text", tmp_path)
    (run / "stages.json").write_text(json.dumps({k: v for k, v in json.loads((run / "stages.json").read_text()).items() if k == "prepare"}))
    ended = tauon("train", tmp_path / "recipe.yaml", "--json")
    assert ended.code == 0, ended
    told = [json.loads(line) for line in ended.out.splitlines()]
    assert [t["step"] for t in told if t.get("kind") == "resume"] == [30] and not [t for t in told if t.get("kind") == "step"]


@pytest.mark.parametrize("fixture", FORMATS, ids=lambda p: p.name)
def test_an_old_model_writes_the_same_text(fixture: Path, tauon: Tauon, tmp_path: Path) -> None:
    run = opened(fixture, "text", tmp_path)
    ended = tauon("generate", run, "-p", "the heavy ", "-n", "24", "-t", "0")
    assert ended.code == 0 and ended.out == (fixture / "text.generated").read_text(), ended
