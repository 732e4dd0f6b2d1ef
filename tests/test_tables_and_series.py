"""From a CSV to a report, and from one JSON record to the very prediction that evaluation made of its row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import Checkpoint, read_json
from tauon.config import parse
from tauon.data import DataSplits, inputs_from_records, outputs_in_units, prepare
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.stages.load import load_model
from tauon.testing import check_model
from tauon.types import Batch

TRAIN = {"steps": 12, "batch": 16, "checkpoint_every": 12, "validate_every": 6}


def finished(recipe: dict[str, Any], folder: Path) -> tuple[Recipe, Path, Checkpoint, DataSplits]:
    whole = parse(Recipe, {"name": "toy", "train": TRAIN, "evaluate": {"resamples": 100}, "optim": {"kind": "adam", "lr": 0.02}} | recipe)
    done = run(whole, root=folder)
    from tauon.artifacts import latest_checkpoint

    checkpoint = latest_checkpoint(done.checkpoints)
    assert checkpoint is not None
    return whole, done.folder, checkpoint, prepare(whole.data, seed=whole.seed, input_kind=whole.task.input_kind)


def predicted(recipe: Recipe, checkpoint: Checkpoint, inputs: Any) -> dict[str, Any]:
    """What the checkpoint's own model says of inputs, in evaluation mode."""
    model, _ = load_model(checkpoint, recipe)
    x = torch.as_tensor(np.asarray(inputs))
    targets = torch.zeros(len(x), dtype=torch.int64 if recipe.task.family == "classification" else torch.float32)
    with torch.no_grad():
        return recipe.task.predict(model, Batch(x, targets, torch.ones(len(x))))


def loans(folder: Path, n: int = 200) -> Path:
    rng = np.random.default_rng(0)
    with (folder / "loans.csv").open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["age", "town", "since", "zone", "paid", "amount"])
        for i in range(n):
            town = ("Bonn", "Kiel", "Ulm")[int(rng.integers(3))]
            age = "" if i % 9 == 0 else int(rng.integers(20, 70))
            paid = "yes" if (town == "Bonn") ^ (rng.random() < 0.1) else "no"
            out.writerow(
                [age, "" if i % 11 == 0 else town, f"2020-{i % 12 + 1:02d}-03", i % 3 + 1, paid, f"{rng.normal() + (town == 'Ulm'):.4f}"]
            )
    return folder / "loans.csv"


@pytest.mark.parametrize(
    ("model", "table"),
    [
        ({"kind": "wide-and-deep", "hidden": [8], "crosses": True}, {"categories": "codes"}),
        ({"kind": "ft-transformer", "width": 8, "heads": 2, "layers": 1}, {"categories": "codes"}),
        ({"kind": "mlp", "hidden": [8]}, {"categories": "codes"}),
        ({"kind": "logistic"}, {"categories": "onehot"}),
        ({"kind": "mlp", "hidden": [8]}, {"categories": "target"}),
    ],
)
def test_a_record_gets_the_prediction_that_its_row_got(model: dict[str, Any], table: dict[str, Any], tmp_path: Path) -> None:
    path = loans(tmp_path)
    recipe, folder, checkpoint, splits = finished(
        {
            "data": {
                "source": {"kind": "csv", "path": str(path), "label": "paid", "categorical": ["zone"]},
                "table": {"impute": "median", "indicators": True, "dates": ["month"]} | table,
                "split": {"test": 0.2},
                "normalize": "robust",
            },
            "task": "classification",
            "model": model,
        },
        tmp_path,
    )
    assert splits.test is not None
    held = splits.test.batch(np.arange(len(splits.test)))
    scores = predicted(recipe, checkpoint, held.inputs)["scores"]
    with path.open() as f:
        raw = [{k: (None if v == "" else v) for k, v in row.items()} for row in csv.DictReader(f)]
    preprocess = checkpoint.state["preprocess"]
    everything = inputs_from_records(preprocess, json.loads(json.dumps(raw)))
    rows = {x.tobytes(): i for i, x in enumerate(everything)}
    for i, x in enumerate(held.inputs.numpy()):
        record = raw[rows[x.tobytes()]]
        alone = predicted(recipe, checkpoint, inputs_from_records(preprocess, [record]))["scores"]
        torch.testing.assert_close(alone[0], scores[i], rtol=1e-5, atol=1e-6)
    # a JSON number instead of the CSV's word, a town never seen, and a missing one
    record = raw[1] | {"zone": int(raw[1]["zone"]), "age": float(raw[1]["age"]), "amount": float(raw[1]["amount"])}
    np.testing.assert_array_equal(inputs_from_records(preprocess, [record]), everything[1:2])
    lost = inputs_from_records(preprocess, [raw[1] | {"town": "Atlantis"}, raw[1] | {"town": None}])
    same = lost[0] == lost[1]
    assert same.sum() >= len(same) - 1  # they differ in the indicator alone
    assert "<th" in (folder / "report.html").read_text()
    assert read_json(folder / "data.json")["columns"]


def test_quantiles_of_a_table_from_csv_to_report(tmp_path: Path) -> None:
    source = {"kind": "csv", "path": str(loans(tmp_path)), "label": "amount", "drop": ["since"]}
    recipe, folder, checkpoint, _ = finished(
        {
            "data": {"source": source, "table": {"impute": "mean"}, "split": {"test": 0.2}},
            "task": {"kind": "quantile-regression", "quantiles": [0.1, 0.5, 0.9]},
            "model": {"kind": "mlp", "hidden": [8]},
        },
        tmp_path,
    )
    assert {"pinball", "coverage_80", "mae"} <= set(read_json(folder / "evaluation.json")["metrics"])
    assert "Coverage of the 80% interval" in (folder / "report.html").read_text()
    inputs = inputs_from_records(checkpoint.state["preprocess"], [{"age": 30, "town": "Ulm", "zone": 2, "paid": "no"}])
    assert predicted(recipe, checkpoint, inputs)["quantiles"].shape == (1, 1, 3)


def test_forecasts_from_csv_to_report_and_from_records(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "load.csv"
    hours = np.arange("2020-01-01T00", "2020-01-20T00", dtype="datetime64[h]").astype("datetime64[s]")
    load = 50 + 10 * np.sin(np.arange(len(hours)) / 24 * 2 * np.pi) + rng.normal(size=len(hours))
    warmth = rng.normal(size=len(hours))
    rows = [f"{t},{a:.4f},{b:.4f}" for t, a, b in zip(hours, load, warmth, strict=True)]
    path.write_text("\n".join(["time,load,warmth", *rows]))
    recipe, folder, checkpoint, splits = finished(
        {
            "data": {
                "source": {"kind": "series", "path": str(path), "date": "time", "targets": ["load"], "inputs": ["warmth"]},
                "window": {"context": 24, "horizon": 6, "calendar": ["hour"]}, "split": {"test": 0.3}, "augment": ["jitter"],
            },
            "task": {"kind": "forecasting", "loss_kind": "quantile"}, "model": {"kind": "lstm", "width": 8},
        },
        tmp_path,
    )  # fmt: skip
    evaluation = read_json(folder / "evaluation.json")
    assert {"mse", "mae", "mase", "pinball", "coverage_80"} <= set(evaluation["metrics"])
    assert evaluation["n"] == len(splits.test)  # type: ignore[arg-type]
    page = (folder / "report.html").read_text()
    assert "load from 2020-01-14" in page
    assert "10% to 90% quantile" in page

    preprocess = checkpoint.state["preprocess"]
    records = [dict(zip(("time", "load", "warmth"), row.split(","), strict=True)) for row in rows]
    batch = splits.test.batch(np.array([7]))  # type: ignore[union-attr]
    at = len(rows) - round(0.3 * len(rows)) + 7
    inputs = inputs_from_records(preprocess, records[at - 24 : at])
    np.testing.assert_array_equal(inputs, batch.inputs.numpy())
    model, _ = load_model(checkpoint, recipe)
    with torch.no_grad():
        out = recipe.task.predict(model, Batch(torch.from_numpy(inputs), batch.targets, batch.weights))
    forecast = outputs_in_units(preprocess, out["quantiles"].numpy())
    assert forecast.shape == (1, 6, 1, 3)
    assert (np.diff(forecast[0, :, 0], axis=1) >= 0).all()
    assert 20 < forecast.mean() < 80


@pytest.mark.parametrize("kind", ["mlp", "wide-and-deep"])
def test_the_contract_catches_a_table_model_that_ignores_codes(kind: str) -> None:
    from tauon.models import ModelConfig
    from tauon.types import DataSpec

    spec = DataSpec(input_shape=(1,), outputs=2, labels=("a", "b"), categories=(40,))  # only the code tells the rows apart
    check_model(parse(ModelConfig, {"kind": kind, "hidden": [16]}), spec)
