"""Explanations of what should not be: constant and broken models, tiny and strange data. A right result, or an error that says what to do."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from explained import FEW, MLP, Worlds, pictures
from tauon.artifacts import read_json
from tauon.errors import TauonError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.stages import explain as stage
from tones import write_wav

pytestmark = pytest.mark.long


@pytest.fixture
def worlds(tmp_path: Path) -> Worlds:
    return Worlds(tmp_path)


def explain(folder: Path, *assignments: str) -> dict[str, Any]:
    run(load_recipe(folder, assignments), folder=folder, stages=("explain", "report"))
    found: dict[str, Any] = read_json(folder / "explain/explanation.json")
    assert len(found["opening"]) == 3
    text = (folder / "report.html").read_text()
    assert "could not be drawn" not in text, text[text.index("could not be drawn") - 200 :][:600]
    return found


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))
    return path


def table(worlds: Worlds, columns: dict[str, list[Any]], label: str = "y", *, task: str = "classification", **more: Any) -> Path:
    path = write_csv(worlds.folder / "t.csv", columns)
    data = {"source": {"kind": "csv", "path": str(path), "label": label}, "split": {"test": 0.3}, "normalize": "standard"} | more
    return worlds.train("table", data=data, task=task, model=MLP)


def with_weights(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change the weights of every model that the stage loads."""
    load = stage.load_model

    def changed(*args: Any, **more: Any) -> Any:
        model, precision = load(*args, **more)
        with torch.no_grad():
            for name, p in model.named_parameters():
                change(name, p)
        return model, precision

    monkeypatch.setattr(stage, "load_model", changed)


KINDS = [
    "table-onehot",
    "regression",
    "images",
    "texts-bag",
    "texts-bert",
    "series-dlinear",
    "sounds-cnn",
    "gpt",
    "multi-label",
    "quantiles",
]


@pytest.mark.parametrize("name", KINDS)
def test_a_constant_model(worlds: Worlds, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worlds[name]
    with_weights(monkeypatch, lambda _, p: p.zero_())
    record = explain(folder)
    assert all(np.isfinite(m.get("deletion", 0)) for c in record["cases"] for m in c["maps"])


@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_diverged_is_named(worlds: Worlds, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worlds[name]
    with_weights(monkeypatch, lambda _, p: p.fill_(float("nan")))
    with pytest.raises(TauonError, match="not finite"):
        explain(folder)
    assert not (folder / "explain/explanation.json").exists()


@pytest.mark.parametrize("name", ["table-onehot", "images", "texts-bert", "gpt"])
def test_a_model_with_huge_logits(worlds: Worlds, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worlds[name]
    with_weights(monkeypatch, lambda name, p: p.mul_(1e6) if p.ndim > 1 else None)
    record = explain(folder)
    assert all(0 <= c["probability"] <= 1 for c in record["cases"])


def test_two_classes_and_two_held_out_rows(worlds: Worlds) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    record = explain(table(worlds, {"x": x.tolist(), "y": ["a" if v > 0 else "b" for v in x]}, split={"test": 0.1}))
    assert len(record["cases"]) == 2 and "too few" in record["slices"]["problem"]


def test_one_class_is_held_out(worlds: Worlds) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2))
    y = (x[:, 0] > 0).astype(int)
    keep = np.flatnonzero(y[100:] == 0) + 100
    np.savez(worlds.folder / "one.npz", x_train=x[:100], y_train=y[:100], x_test=x[keep], y_test=y[keep])
    folder = worlds.train("one", data={"source": {"kind": "npz", "path": str(worlds.folder / "one.npz")}}, task="classification", model=MLP)
    assert all(c["truth"] == "0" for c in explain(folder)["cases"])


@pytest.mark.slow
def test_one_column_many_columns_many_categories(worlds: Worlds) -> None:
    rng = np.random.default_rng(0)
    n = 120
    y = ["yes" if v > 0 else "no" for v in rng.normal(size=n)]
    wide = {f"c{j}": rng.normal(size=n).round(3).tolist() for j in range(500)}
    record = explain(
        table(worlds, wide | {"y": y}), "explain.sample=20", "explain.examples=1", "explain.checks.examples=2", "explain.influence=false"
    )
    assert record["readable"]["features"] == 500
    many = {"word": [f"w{i % 300}" for i in range(600)], "y": [("a", "b")[i % 2] for i in range(600)]}
    for encoding in ("codes", "onehot"):
        path = write_csv(worlds.folder / f"{encoding}.csv", many)
        data = {
            "source": {"kind": "csv", "path": str(path), "label": "y", "categorical": ["word"]},
            "split": {"test": 0.3},
            "table": {"categories": encoding},
        }
        record = explain(worlds.train(encoding, data=data, task="classification", model=MLP))
        assert record["readable"]["features"] == 1 and record["cases"][0]["shown"]["columns"][0]["name"] == "word"


def test_labels_and_names_that_are_no_words(worlds: Worlds) -> None:
    rng = np.random.default_rng(0)
    n = 120
    columns: dict[str, list[Any]] = {
        "<script>alert(1)</script>": rng.normal(size=n).round(2).tolist(), "a" * 400: rng.normal(size=n).round(2).tolist(), "🦜=": rng.choice(["<b>", "\"'", "ü"], n).tolist(),
        "x missing": rng.normal(size=n).round(2).tolist(), "x": ["" if i % 7 == 0 else i for i in range(n)], "y": [(1, -2, 30)[i % 3] for i in range(n)],
    }  # fmt: skip
    folder = table(worlds, columns, table={"impute": "median", "indicators": True, "categories": "onehot"}, source={"kind": "csv", "path": str(worlds.folder / "t.csv"), "label": "y", "target": "class"})  # fmt: skip
    explain(folder)
    assert "<script>alert" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(("size", "channels"), [((3, 3), 3), ((5, 17), 1), ((12, 12), 4)])
def test_images_of_odd_shapes(worlds: Worlds, size: tuple[int, int], channels: int) -> None:
    pictures(worlds.folder / "odd.npz", size, channels, 90)
    model = {"kind": "cnn", "channels": [8]}
    folder = worlds.train(
        "odd", data={"source": {"kind": "npz", "path": str(worlds.folder / "odd.npz")}}, task="classification", model=model
    )
    record = explain(folder)
    assert record["grid"] == list(size)


def test_texts_without_a_token_and_prompts_of_one(worlds: Worlds) -> None:
    import json

    rows = [{"text": "" if i % 5 == 0 else f"word {i % 7}", "label": ("a", "b")[i % 2]} for i in range(80)]
    (worlds.folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"kind": "jsonl", "path": str(worlds.folder / "t.jsonl"), "text": "text", "label": "label"}
    data = {"source": source, "tokenizer": "bytes", "seq_len": 8, "split": {"test": 0.4}}
    for model in ({"kind": "text-bag", "buckets": 97}, {"kind": "bert", "layers": 1, "width": 8, "heads": 2}):
        try:
            folder = worlds.train(model["kind"], data=data, task="text-classification", model=model)  # type: ignore[arg-type]
        except TauonError:
            continue  # empty texts are refused where the data is read
        explain(folder, "explain.examples=20")


def test_a_series_shorter_than_a_dozen_steps(worlds: Worlds) -> None:
    data = {
        "source": {"kind": "series", "path": str(worlds.file("series.csv"))},
        "window": {"context": 2, "horizon": 1},
        "split": {"test": 0.3},
    }
    record = explain(worlds.train("short", data=data, task="forecasting", model={"kind": "dlinear"}))
    assert record["grid"] == [2, 2]


def test_recordings_of_silence(worlds: Worlds) -> None:
    for i in range(24):
        write_wav(worlds.folder / "silent" / ("a", "b")[i % 2] / f"{i}.wav", np.zeros(400 + 40 * (i % 3)), 8000)
    data = {"source": {"kind": "wav", "path": str(worlds.folder / "silent")}, "split": {"test": 0.4}}
    explain(worlds.train("silent", data=data, task="audio-classification", model={"kind": "speech-cnn", "channels": [4], "mels": 8}))


def test_nothing_to_explain_one_by_one(worlds: Worlds) -> None:
    record = explain(worlds["iris"], "explain.examples=0")
    assert record["cases"] == [] and record["features"]["importance"]


def test_everything_switched_off(worlds: Worlds) -> None:
    record = explain(
        worlds["iris"], "explain.examples=1", "explain.tree=false", "explain.features=false", "explain.slices=false", "explain.checks=false",
        "explain.influence=false", "explain.counterfactuals=false",
    )  # fmt: skip
    assert not {"tree", "features", "slices", "influence"} & set(record)
    assert FEW["sample"] >= record["outputs"]["examples"]
