"""`tauon recipe new` on a zoo of small inputs: right task, target, split and groups, and never silently wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from zoo import ZOO, Case

from tauon.artifacts import read_json
from tauon.data import prepare
from tauon.errors import DataError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.starter import Draft, draft, write_draft
from tauon.starter.timing import add_time
from toy import words

pytestmark = pytest.mark.long

CASES = [pytest.param(case, id=case.name) for case in ZOO]


def split_of(made: Draft) -> tuple[str, str | None]:
    """(kind of split, group) that a draft's recipe has."""
    data = made.sections["data"]
    source, table = data["source"], data.get("table", {})
    group = table.get("group") or source.get("group")
    if group is not None:
        return "group", group
    if table.get("time") or source.get("time"):
        return "time", None
    if made.task == "forecasting":
        return "series", None
    if "split" not in data:
        return "parts", None
    return "document" if made.task == "language-modelling" else "row", None


def wrong_in(made: Draft, case: Case) -> list[str]:
    """What differs from what is right."""
    found = []
    source = made.sections["data"]["source"]
    if made.task != case.task:
        found.append(f"task {made.sections['task']}, expected {case.task}")
    found += [f"source.{k} is {source.get(k)!r}, expected {v!r}" for k, v in case.source.items() if source.get(k) != v]
    if split_of(made) != (case.split, case.group):
        found.append(f"split {split_of(made)}, expected {(case.split, case.group)}")
    table, train = made.sections["data"].get("table", {}), made.sections["train"]
    found += [f"table.{k} is {table.get(k)!r}, expected {v!r}" for k, v in case.table.items() if table.get(k) != v]
    found += [f"train.{k} is {train.get(k)!r}, expected {v!r}" for k, v in case.train.items() if train.get(k) != v]
    comments = "\n".join(line for line in made.to_yaml().splitlines() if line.lstrip().startswith("#"))
    return found + [f"no comment says {said!r}" for said in case.said if not re.search(said, comments)]


def test_the_zoo_is_large_enough_and_its_names_differ() -> None:
    assert len(ZOO) >= 60 and len({case.name for case in ZOO}) == len(ZOO)


@pytest.mark.parametrize("case", CASES)
def test_an_input_becomes_the_right_recipe_or_is_asked_about(case: Case, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    place = case.make(tmp_path / "data")
    if case.asks:
        with pytest.raises(DataError, match=case.asks):
            draft(place, **case.given)
        return
    made = draft(place, **case.given)
    assert not wrong_in(made, case), made.to_yaml()
    written = write_draft(made, tmp_path / "r.yaml")
    assert yaml.safe_load(written.read_text())["data"]["source"]["path"]
    if case.given.get("model") is None:
        recipe = load_recipe(written, [f"data.cache={tmp_path / 'cache'}"])
        splits = prepare(recipe.data, seed=0, input_kind=recipe.task.input_kind, scale_targets=made.task == "regression")
        assert len(splits.train) and splits.validation is not None
        notes: list[Any] = splits.facts.get("notes", [])
        assert not case.notes or any(case.notes in note for note in notes), notes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny trained language model, to be tuned."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text(words(1500))
    sections = {"tokenizer": {"kind": "bpe", "vocab": 280}, "source": {"kind": "text", "path": str(folder / "text.txt")}, "seq_len": 256}
    tree = {"name": "base", "data": sections, "task": "language-modelling", "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}}
    (folder / "base.yaml").write_text(yaml.safe_dump(tree | {"train": {"steps": 2, "batch": 2}}))
    return str(run(load_recipe(folder / "base.yaml"), root=folder / "runs", stages=("prepare", "train")).folder)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ZOO if case.steps])
def test_some_of_the_zoo_train_as_written_but_for_the_number_of_steps(case: Case, tmp_path: Path, base: str) -> None:
    (tmp_path / "data").mkdir()
    made = draft(case.make(tmp_path / "data"), **case.given | ({"model": base} if case.given.get("model") else {}))
    recipe = load_recipe(write_draft(made, tmp_path / "r.yaml"), ["train.epochs=null", "train.steps=2", f"data.cache={tmp_path / 'cache'}"])
    done = run(recipe, root=tmp_path / "runs", stages=("prepare", "train", "evaluate"))
    figures = read_json(done.folder / "evaluation.json")
    assert figures["primary"] in figures["metrics"]
    if split_of(made)[0] == "group" and made.task != "instruction-tuning":
        figure = figures["metrics"][figures["primary"]]
        assert "groups" in figure["method"] or "groups" in figure["reason"]


def test_the_time_of_training_is_measured_and_said(tmp_path: Path) -> None:
    case = next(c for c in ZOO if c.name == "small-table")
    made = draft(case.make(tmp_path), measure=True)
    assert any(re.search(r"All epochs take about .* on this machine \(.* ms a step, measured now\)", s) for s in made.why["train"])


@pytest.mark.parametrize(("step", "epochs"), [(0.001, 60), (6.0, 12), (500.0, 5)])
def test_a_training_of_more_than_a_quarter_of_an_hour_is_made_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, epochs: int
) -> None:
    monkeypatch.setattr("tauon.starter.timing.seconds_of", lambda made, budget: step)
    case = next(c for c in ZOO if c.name == "small-table")
    made = draft(case.make(tmp_path), measure=False)
    made.sections["train"] = {"epochs": 60, "batch": 20}
    shortened = add_time(made)
    assert shortened.sections["train"]["epochs"] == pytest.approx(epochs, abs=8)
    assert (f"{shortened.sections['train']['epochs']} are set" in " ".join(shortened.why["train"])) == (epochs < 60)


def test_large_pictures_are_made_smaller_where_they_would_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def seconds(made: Draft, budget: float) -> float:
        sizes.append(made.sections["data"]["source"]["size"])
        return 5.0 if sizes[-1] > 64 else 0.1

    monkeypatch.setattr("tauon.starter.timing.seconds_of", seconds)
    case = next(c for c in ZOO if c.name == "pictures-105")
    made = draft(case.make(tmp_path), measure=True)
    assert sizes == [128, 64] and made.sections["model"] == "resnet20" and made.sections["data"]["source"]["size"] == 64
    assert "would take" in made.to_yaml() and "about 50 seconds on this machine" in made.to_yaml()
