"""`tauon run DATA`: what is data, which recipe is used, what is refused, what is said."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tauon.errors import RecipeError
from tauon.starter.draft import Draft
from tauon.starter.one_command import is_data, recipe_of_data
from toy import Tauon, refused

FEW = ("train.epochs=null", "train.steps=2", "evaluate.resamples=100")


def patients(folder: Path, name: str = "patients.csv", rows: int = 120) -> Path:
    draw = random.Random(0)
    lines = [f"{draw.randint(30, 90)},{draw.randint(90, 180)},{draw.choice(['yes', 'no'])}" for _ in range(rows)]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("age,bp,died\n" + "\n".join(lines) + "\n")
    return folder / name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    patients(tmp_path)
    return tmp_path


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str]) -> Tauon:
    return Tauon(capsys)


def test_data_is_told_from_recipes_and_runs(here: Path) -> None:
    (here / "r.yaml").write_text("name: r\n")
    (here / "r.json").write_text(json.dumps({"data": {}, "task": "classification"}))
    (here / "rows.json").write_text(json.dumps([{"a": 1, "b": 2}]))
    (here / "runs/x").mkdir(parents=True)
    (here / "runs/x/recipe.yaml").write_text("name: x\n")
    (here / "empty").mkdir()
    assert is_data("patients.csv") and is_data("rows.json")
    for other in ("r.yaml", "r.json", "runs/x", "empty", "-", "quickstart", "no-such.csv", "x" * 5000):
        assert not is_data(other), other


def test_the_recipe_is_written_once_and_never_overwritten(here: Path, tauon: Tauon) -> None:
    ended = tauon("run", "patients.csv", "--label", "died", *FEW)
    assert ended.code == 0, ended
    assert "died from 2 columns" in ended.out and "wrote patients.yaml" in ended.out and "held out" in ended.out
    assert (here / "runs/patients/report.html").is_file()
    edited = (here / "patients.yaml").read_text().replace("dropout: 0.3", "dropout: 0.25") + "# mine\n"
    (here / "patients.yaml").write_text(edited)
    ended = tauon("run", "patients.csv", "--label", "died", "name=again", *FEW)
    assert ended.code == 0, ended
    assert "using patients.yaml" in ended.out and (here / "patients.yaml").read_text() == edited
    assert "dropout: 0.25" in (here / "runs/again/recipe.yaml").read_text()


def test_a_recipe_of_other_data_or_another_label_is_refused(here: Path) -> None:
    recipe_of_data(Path("patients.csv"), label="died")
    before = Path("patients.yaml").read_bytes()
    assert recipe_of_data(Path("patients.csv")).made is None
    with pytest.raises(RecipeError, match="does not predict 'bp'.*--name patients-2 --label bp"):
        recipe_of_data(Path("patients.csv"), label="bp")
    with pytest.raises(
        RecipeError, match="reads patients.csv, not old/patients.csv.*tauon recipe new --from old/patients.csv --name patients-2"
    ):
        recipe_of_data(patients(Path("old")), label="died")
    with pytest.raises(RecipeError, match="tunes None, not runs/base"):
        recipe_of_data(Path("patients.csv"), model="runs/base")
    assert Path("patients.yaml").read_bytes() == before
    Path("load.csv").write_text("date,load\n" + "".join(f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{i % 24 + 0.5}\n" for i in range(600)))
    recipe_of_data(Path("load.csv"), label="load")
    assert recipe_of_data(Path("load.csv"), label="load").made is None


def test_a_label_that_cannot_be_known_is_asked_for_with_the_option(here: Path, tauon: Tauon) -> None:
    (here / "two.csv").write_text("a,b\n" + "".join(f"{'xy'[i % 2]},{'uv'[i // 2 % 2]}\n" for i in range(60)))
    refused(tauon("run", "two.csv", *FEW), 3, "Name it with --label.", "Available: a (category), b")
    assert not (here / "two.yaml").exists()


def test_options_of_data_have_no_effect_on_a_recipe(here: Path, tauon: Tauon) -> None:
    ended = tauon("run", "quickstart", "--label", "died")
    assert ended.code == 2 and "--label has no effect on a recipe" in ended.err


@pytest.mark.parametrize(("seconds", "said"), [(400.0, True), (20.0, False)])
def test_long_training_is_announced_before_it_begins(
    here: Path, tauon: Tauon, monkeypatch: pytest.MonkeyPatch, seconds: float, said: bool
) -> None:
    def measured(made: Draft, budget: float = 1.0) -> Draft:
        made.seconds = seconds
        return made

    monkeypatch.setattr("tauon.starter.add_time", measured)
    ended = tauon("train", "patients.csv", "--label", "died", *FEW)
    assert ended.code == 0, ended
    before, _, _ = ended.out.partition("step 1/")
    assert ("Training takes about 7 minutes" in before) is said
