"""Tauon from Python: the same as the command line does, and what a run gives back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tauon
from tauon.artifacts import read_json
from tauon.errors import RecipeError, RunError
from tauon.tracking import read_events
from toy import table_recipe, text_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_recipe(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def run(recipe: Path) -> tauon.Run:
    return tauon.run(recipe, "train.steps=8", root=recipe.parent / "runs")


def test_a_run_gives_figures_events_recipe_report_and_model(run: tauon.Run) -> None:
    stored = read_json(run.folder / "evaluation.json")["metrics"]
    assert {name: m.value for name, m in run.metrics.items()} == {name: m["value"] for name, m in stored.items()}
    assert run.recipe.train.steps == 8 and run.name == "toy" and run.report.name == "report.html"
    assert set(run.stages) == {"prepare", "train", "evaluate", "report"}
    model = run.model()
    assert not model.training and sum(p.numel() for p in model.parameters()) > 0


def test_events_are_a_table_of_the_log(run: tauon.Run) -> None:
    events, log = run.events, list(read_events(run.folder / "events.jsonl"))
    assert events.num_rows == len(log) and events["kind"].to_pylist() == [e["kind"] for e in log]
    losses = [e["loss"] for e in log if e["kind"] == "step"]
    assert [x for k, x in zip(events["kind"].to_pylist(), events["loss"].to_pylist(), strict=True) if k == "step"] == losses


def test_generating_is_what_the_command_writes(run: tauon.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tauon.cli import main

    (text,) = run.generate("the heavy", max_tokens=12, seed=3)
    with pytest.raises(SystemExit):
        main(["generate", str(run.folder), "-p", "the heavy", "-n", "12", "--seed", "3"])
    assert capsys.readouterr().out == "the heavy" + text + "\n"
    assert len(run.generate("the", max_tokens=4, samples=3)) == 3


def test_predicting_is_what_the_command_writes(tmp_path: Path) -> None:
    import pyarrow as pa

    from tauon.predict import predict_rows

    done = tauon.run(table_recipe(tmp_path), root=tmp_path / "runs")
    names = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
    rows = [dict(zip(names, values, strict=True)) for values in ((5.1, 3.5, 1.4, 0.2), (6.3, 3.3, 6.0, 2.5))]
    assert done.predict(rows) == predict_rows(done.folder, rows) == done.predict(pa.Table.from_pylist(rows))


def test_a_cross_validation_has_folds_and_their_means(tmp_path: Path) -> None:
    done = tauon.run(table_recipe(tmp_path, data={"split": {"folds": 3}}), root=tmp_path / "runs")
    assert [fold.name for fold in done.folds] == ["fold-0", "fold-1", "fold-2"]
    mean = sum(fold.metrics["accuracy"].value or 0.0 for fold in done.folds) / 3
    assert done.metrics["accuracy"].value == pytest.approx(mean, abs=1e-12) and "mean over 3 folds" in done.metrics["accuracy"].method
    assert "Cross-validated: 3 folds" in done._repr_html_() and "accuracy" in done._repr_html_().lower()


def test_a_run_shows_itself_in_a_notebook(run: tauon.Run) -> None:
    html = run._repr_html_()
    assert "Finished: 8 steps" in html and "<svg" in html and "perplexity" in html.lower()
    assert run.evaluation is not None and run.evaluation.primary == "bits_per_byte"
    assert html.index("Bits per byte") < html.index("Perplexity")  # the primary metric leads
    assert "http://" not in html.replace("http://www.w3.org", "") and "<script" not in html


def test_the_same_call_again_does_nothing_and_an_opened_run_is_the_same(run: tauon.Run, recipe: Path) -> None:
    seen: list[str] = []
    again = tauon.run(recipe, "train.steps=8", root=recipe.parent / "runs", on_event=lambda kind, **f: seen.append(f.get("state", "")))
    assert set(filter(None, seen)) == {"done before"} and again.folder == run.folder
    opened = tauon.open_run(run.folder)
    assert repr(opened) == f"tauon.open_run({str(run.folder)!r})"
    ours, theirs = opened.model().state_dict(), run.model().state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_folder_is_gone_on_with_where_it_lies(run: tauon.Run) -> None:
    assert tauon.run(run.folder).folder == run.folder
    assert tauon.run(run.folder, "name=other", "train.steps=3", stages=("prepare", "train")).folder == run.folder.with_name("other")


def test_a_tree_from_python_runs_as_the_file_does(run: tauon.Run, recipe: Path) -> None:
    tree = tauon.load_recipe(recipe, ["train.steps=8", "name=tree"])
    assert isinstance(tree, tauon.Recipe)
    done = tauon.run(tree, root=recipe.parent / "runs")
    assert {k: m.value for k, m in done.metrics.items()} == {k: m.value for k, m in run.metrics.items()}
    with pytest.raises(TypeError, match="assignments"):
        tauon.run(tree, "train.steps=3")


def test_what_is_not_there_is_said(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(RunError, match="not a run"):
        tauon.open_run(tmp_path)
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        tauon.run(recipe, "train.stps=3", root=tmp_path)
    begun = tauon.run(recipe, root=tmp_path, stages=("prepare",))
    assert begun.metrics == {} and begun.events.num_rows == 0 and "No training" in begun._repr_html_()
    with pytest.raises(RunError, match="no checkpoint yet"):
        begun.model()
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = tauon.rum  # type: ignore[attr-defined]
