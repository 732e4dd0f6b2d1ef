"""A shipped recipe on somebody's own data: by `--data`, or by an error that gives the whole source to write."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tauon.artifacts import read_json
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.starter.own_data import own_data

SHORT = ("train.epochs=null", "train.steps=2", "data.split={validation: 10%, test: 20%}")


def loans(path: Path, rows: int = 150) -> Path:
    draw = random.Random(0)
    lines = [f"{draw.randint(500, 9000)},{draw.choice(['car', 'home'])},{draw.randint(20, 70)},{i % 4 == 0:d}" for i in range(rows)]
    path.write_text("amount,purpose,age,default\n" + "\n".join(lines))
    return path


def test_a_shipped_recipe_and_a_file_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = own_data("credit-risk", loans(tmp_path / "mine.csv"), "default", SHORT)
    recipe = load_recipe("credit-risk", given)
    assert recipe.name == "credit-risk-mine" and recipe.model.kind_ == "wide-and-deep" and recipe.data.source.kind_ == "csv"
    done = run(recipe, root=tmp_path / "runs")
    assert read_json(done.folder / "evaluation.json")["family"] == "classification"


def test_keys_of_a_shipped_recipe_without_use_on_other_data_do_not_stop_it(tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 13},{i % 7},{i % 2}" for i in range(120))
    (tmp_path / "n.csv").write_text("a,b,y\n" + rows)
    source = f"data.source={{kind: csv, path: {tmp_path / 'n.csv'}, label: y}}"
    done = run(load_recipe("credit-risk", [source, "model=mlp", "name=n", *SHORT]), root=tmp_path / "runs", stages=("prepare", "train"))
    assert (done.folder / "data.json").is_file()


@pytest.mark.parametrize(
    ("recipe", "path", "said"),
    [
        ("credit-risk", "x.csv", r"data.source=\{kind: csv, path: x.csv, label: LABEL\}.*tauon run credit-risk --data x.csv --label LABEL"),
        ("energy-forecast", "load.csv", r"data.source=\{kind: series, path: load.csv, date: DATE\}"),
        ("sentiment", "films.jsonl", r"data.source=\{kind: jsonl, path: films.jsonl, text: TEXT, label: LABEL\}"),
        ("speech-digits", "calls", r"data.source=\{kind: wav, path: calls"),
        ("shakespeare-char", "mine.txt", r"data.source=\{kind: text, path: mine.txt\}"),
    ],
)
def test_a_path_for_data_of_another_kind_is_answered_with_the_whole_source(recipe: str, path: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, [f"data.source.path={path}"])


def test_a_path_of_the_same_kind_is_taken(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\ndata: {source: {kind: csv, path: a.csv, label: y}}\ntask: classification\nmodel: mlp\ntrain: {epochs: 1}\n"
    )
    assert load_recipe(tmp_path / "r.yaml", ["data.source.path=b.csv"]).data.source.path == "b.csv"  # type: ignore[attr-defined]


def test_data_for_another_task_is_refused_with_the_command_that_fits(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"credit-risk is for classification, but .* is for regression .*tauon recipe new --from .* --label amount"
    ):
        own_data("credit-risk", loans(tmp_path / "mine.csv"), "amount")
