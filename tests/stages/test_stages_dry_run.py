"""`tauon recipe check --data`: what training does before its first step, and nothing after."""

from __future__ import annotations

from pathlib import Path

import pytest

from tauon.recipe import load_recipe
from tauon.stages.dry_run import dry_run
from toy import Tauon, table_recipe, text_recipe


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


@pytest.mark.parametrize(
    "assignment",
    [
        "name=plain",
        "privacy={noise_multiplier: 1, delta: 1e-5}",
        "parallel={kind: parameter-server, workers: 1}",
        "parallel=diloco",
        "task.label_smoothing=0.1",
    ],
)
def test_every_way_of_training_is_resolved_and_leaves_no_run(tauon: Tauon, tmp_path: Path, assignment: str) -> None:
    recipe = table_recipe(tmp_path)
    ended = tauon("recipe", "check", recipe, "--data", "--set", assignment)
    assert ended.code == 0, ended
    assert "train.precision" in ended.out and "train.parameters" in ended.out and "fine (classification" in ended.out
    assert not (tmp_path / "runs").exists()


def test_the_settings_are_those_that_training_takes(tmp_path: Path, tauon: Tauon) -> None:
    recipe = text_recipe(tmp_path)
    checked = {d.path: d.value for d in dry_run(load_recipe(recipe))}
    assert tauon("train", recipe, "--quiet").code == 0
    import json

    trained = {d["path"]: d["value"] for d in json.loads((tmp_path / "runs/toy/derived.json").read_text())}
    assert {k: str(v) for k, v in checked.items()} == {k: str(v) for k, v in trained.items()}
