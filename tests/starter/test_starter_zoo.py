"""`tauon recipe new` on a zoo of small inputs: right task, target, split and groups, and never silently wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from zoo import ZOO, Case

from tauon.data import prepare
from tauon.errors import DataError
from tauon.recipe import load_recipe
from tauon.starter import Draft, draft, write_draft

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
    if made.sections["task"] == "forecasting":
        return "series", None
    if "split" not in data:
        return "parts", None
    return "document" if made.sections["task"] == "language-modelling" else "row", None


def wrong_in(made: Draft, case: Case) -> list[str]:
    """What differs from what is right."""
    found = []
    source = made.sections["data"]["source"]
    if made.sections["task"] != case.task:
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
        splits = prepare(recipe.data, seed=0, input_kind=recipe.task.input_kind, scale_targets=made.sections["task"] == "regression")
        assert len(splits.train) and splits.validation is not None
        notes: list[Any] = splits.facts.get("notes", [])
        assert not case.notes or any(case.notes in note for note in notes), notes
