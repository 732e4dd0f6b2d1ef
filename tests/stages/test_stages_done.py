"""A stage is done when its record holds the hashes of the inputs that it was made from, and they are today's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tauon.artifacts import read_json, write_json
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.stages import table
from tauon.stages.table import Stage, all_inputs, in_order, stage_table
from toy import text_recipe


def states(recipe: Path, root: Path, *assignments: str, stages: tuple[str, ...] | None = None) -> dict[str, str]:
    """What became of each stage: done, or done before."""
    seen: dict[str, str] = {}

    def note(kind: str, /, **facts: Any) -> None:
        if kind == "stage":
            seen[facts["name"]] = facts["state"]

    run(load_recipe(recipe, assignments), root=root, stages=stages, on_event=note)
    return seen


@pytest.fixture
def done(tmp_path: Path) -> Path:
    recipe = text_recipe(tmp_path)
    assert set(states(recipe, tmp_path / "runs", "audit.examples=10").values()) == {"done"}
    return recipe


def again(recipe: Path, tmp_path: Path, *assignments: str, stages: tuple[str, ...] | None = None) -> list[str]:
    found = states(recipe, tmp_path / "runs", "audit.examples=10", *assignments, stages=stages)
    return [name for name, state in found.items() if state == "done"]


def test_the_same_call_again_does_nothing(done: Path, tmp_path: Path) -> None:
    assert again(done, tmp_path) == []


def test_evaluating_again_leaves_what_reads_only_the_training_done(done: Path, tmp_path: Path) -> None:
    assert again(done, tmp_path, "evaluate.confidence=80%", stages=("evaluate",)) == ["evaluate"]
    assert again(done, tmp_path, "evaluate.confidence=80%") == ["report"]  # not audit, which reads the training


def test_evaluating_again_to_the_same_figures_leaves_the_report_done(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs/toy/stages.json"
    record = json.loads(path.read_text())
    write_json(path, {k: v for k, v in record.items() if k != "evaluate"})
    assert again(done, tmp_path) == ["evaluate"]


def test_another_training_makes_all_that_reads_it_not_done(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs/toy/stages.json"
    record = json.loads(path.read_text())
    record["train"]["result"] = "another"  # as if it had come to other weights
    write_json(path, record)
    assert again(done, tmp_path) == ["evaluate", "audit", "report"]


def test_a_record_that_is_gone_is_made_again(done: Path, tmp_path: Path) -> None:
    before = read_json(tmp_path / "runs/toy/evaluation.json")
    (tmp_path / "runs/toy/evaluation.json").unlink()
    assert again(done, tmp_path) == ["evaluate"]
    assert read_json(tmp_path / "runs/toy/evaluation.json") == before


def test_a_stage_with_a_section_is_done_where_the_section_is_given(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    assert list(states(recipe, tmp_path / "runs")) == ["prepare", "train", "evaluate", "report"]
    assert list(states(recipe, tmp_path / "runs", "audit={examples: 10}")) == ["prepare", "train", "evaluate", "audit", "report"]


def test_a_section_of_a_stage_that_is_not_among_the_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="audit: would not be used"):
        load_recipe(text_recipe(tmp_path), ["audit.examples=10", "stages=[prepare, train]"])


def test_a_stage_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no stage is called 'evalute'; did you mean 'evaluate'\? Available: prepare, quality, train"):
        load_recipe(text_recipe(tmp_path), ["stages=[prepare, train, evalute]"])
    with pytest.raises(RecipeError, match=r"no stage is called 'trian'; did you mean 'train'\?"):
        run(load_recipe(text_recipe(tmp_path)), root=tmp_path, stages=("trian",))


# ---------------------------------------------------------------------------------------------- the table


def test_every_stage_comes_after_its_inputs_and_its_parts_can_be_imported() -> None:
    names = list(stage_table())
    assert names[-1] == "report" and set(all_inputs(stage_table()["report"])) == set(names) - {"report"}
    for stage in stage_table().values():
        assert all(names.index(other) < names.index(stage.name) for other in stage.inputs)
        for place in filter(None, (stage.run, stage.config, stage.report)):
            assert callable(table.load(place))


def test_a_cycle_among_inputs_is_named() -> None:
    def stage(name: str, *inputs: str) -> Stage:
        return Stage(name, "nowhere:nothing", "", inputs=inputs)

    cycle = {s.name: s for s in (stage("a"), stage("b", "a", "d"), stage("c", "b"), stage("d", "c"))}
    with pytest.raises(ValueError, match="cycle: b -> d -> c -> b"):
        in_order(cycle)
    assert [s.name for s in in_order({s.name: s for s in (stage("c", "b"), stage("b", "a"), stage("a"))})] == ["a", "b", "c"]
