"""Models that are fitted as a whole are trained, evaluated, predicted, exported and resumed like any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tauon.artifacts import read_json
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe

BOOSTING: dict[str, Any] = {"kind": "gradient-boosting", "rounds": 12, "leaves": 6}


def loans(folder: Path, n: int = 300) -> Path:
    """A table whose label depends on two numbers and a word."""
    rng = np.random.default_rng(0)
    age, pay, zone = rng.normal(size=n).round(3), rng.normal(size=n).round(3), rng.integers(0, 5, n)
    paid = age * pay + (zone % 2) + rng.normal(size=n) * 0.3 > 0.4
    with (folder / "loans.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("age", "pay", "zone", "paid"), *zip(age, pay, [f"z{i}" for i in zone], np.where(paid, "yes", "no"), strict=True)]
        )
    return folder / "loans.csv"


def recipe(folder: Path, **sections: Any) -> Path:
    source = {"kind": "csv", "path": str(loans(folder)), "label": "paid"}
    tree: dict[str, Any] = {
        "name": "fitted", "data": {"source": source, "split": {"validation": 0.1, "test": 0.3}}, "task": "classification", "model": BOOSTING,
        "train": {"epochs": 1, "precision": "fp32", "compile": False}, "evaluate": {"resamples": 100},
    }  # fmt: skip
    path = folder / "fitted.yaml"
    path.write_text(yaml.safe_dump(tree | sections))
    return path


def texts(folder: Path) -> dict[str, Any]:
    good, bad = ("a lovely film", "great fun", "fine work"), ("a dull film", "no fun", "poor work")
    rows = [{"text": f"{(good if i % 2 else bad)[i % 3]} number {i}", "label": "good" if i % 2 else "bad"} for i in range(150)]
    (folder / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "data": {
            "source": {"kind": "jsonl", "path": str(folder / "films.jsonl"), "text": "text", "label": "label"},
            "tokenizer": {"kind": "bpe", "vocab": 300}, "split": {"validation": 0.1, "test": 0.3},
        },
        "task": "text-classification", "model": {"kind": "tfidf", "buckets": 997},
    }  # fmt: skip


def test_a_booster_is_trained_and_evaluated_in_a_run_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    notes: list[str] = []
    done = run(
        load_recipe(recipe(tmp_path)),
        root=tmp_path,
        on_event=lambda kind, **f: notes.append(str(f.get("message"))) if kind == "note" else None,
    )
    assert read_json(done.folder / "evaluation.json")["metrics"]["roc_auc"]["value"] > 0.75
    assert any("rounds of at most 12" in n for n in notes)
    steps = [json.loads(line) for line in (done.folder / "events.jsonl").read_text().splitlines()]
    losses = [e["loss"] for e in steps if e["kind"] == "step"]
    assert 3 <= len(losses) <= 12 and losses[-1] < losses[0]
    assert "gradient-boosting" in (done.folder / "report.html").read_text()
    assert not [p for p in done.folder.rglob("*") if p.suffix in (".pkl", ".joblib", ".pt")]


def test_the_same_call_again_fits_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path, seen = recipe(tmp_path), []
    for _ in range(2):
        run(load_recipe(path), root=tmp_path, on_event=lambda kind, **f: seen.append(f["what"]) if kind == "progress" else None)
    assert seen.count("grow trees") == 2  # begun and ended, once


def test_texts_are_fitted_and_evaluated(tmp_path: Path) -> None:
    done = run(load_recipe(recipe(tmp_path, **texts(tmp_path))), root=tmp_path)
    assert read_json(done.folder / "evaluation.json")["metrics"]["accuracy"]["value"] > 0.9


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"privacy": {"target_epsilon": 3, "delta": 1e-5}}, "privacy"),
        ({"adapt": {"kind": "lora", "rank": 2}}, "adapt"),
        ({"parallel": {"kind": "local-sgd"}}, "parallel"),
        ({"train": {"epochs": 1, "ema": 0.99}}, r"train\.ema"),
    ],
)
def test_what_needs_gradient_steps_is_refused_in_words(tmp_path: Path, sections: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}.*gradient-boosting"):
        load_recipe(recipe(tmp_path, **sections))


def test_another_task_is_refused_when_it_is_fitted(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = recipe(tmp_path, task="ordinal")
    with pytest.raises(RecipeError, match="not ordinal"):
        run(load_recipe(path, ["data.label_order=['no', 'yes']"]), root=tmp_path)


def test_a_booster_predicts_what_was_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.metrics import roc_auc_score

    from tauon.predict import predict_file

    done = run(load_recipe(recipe(tmp_path, data=own_test(tmp_path))), root=tmp_path, stages=("prepare", "train", "evaluate"))
    predict_file(done.folder, tmp_path / "later.csv", tmp_path / "out.csv")
    rows, later = (list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("out.csv", "later.csv"))
    truth = [r["paid"] == "yes" for r in later]
    column = next(name for name in rows[0] if "yes" in name)
    evaluated = read_json(done.folder / "evaluation.json")["metrics"]["roc_auc"]["value"]
    assert roc_auc_score(truth, [float(r[column]) for r in rows]) == pytest.approx(evaluated, abs=1e-6)


def own_test(folder: Path) -> dict[str, Any]:
    """The table, and its last 100 rows as the test part."""
    lines = loans(folder).read_text().splitlines()
    (folder / "later.csv").write_text("\n".join([lines[0], *lines[-100:]]) + "\n")
    (folder / "earlier.csv").write_text("\n".join(lines[:-100]) + "\n")
    source = {"kind": "csv", "label": "paid"}
    return {"source": source | {"path": str(folder / "earlier.csv")}, "test": source | {"path": str(folder / "later.csv")}}


@pytest.mark.parametrize("kind", ["trees", "words"])
def test_models_that_are_fitted_as_a_whole_are_explained(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("sklearn")
    sections = {} if kind == "trees" else texts(tmp_path)
    done = run(load_recipe(recipe(tmp_path, **sections, explain={"examples": 2})), root=tmp_path)
    record = read_json(done.folder / "explain" / "explanation.json")
    assert len(record["opening"]) == 3
