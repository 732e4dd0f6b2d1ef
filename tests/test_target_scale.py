"""Numbers to predict are standardised on the training part, and everything a person sees is in their own units again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.artifacts import latest_checkpoint, read_json
from tauon.config import parse
from tauon.data import TargetScale, inputs_from_records, outputs_in_units, prepare
from tauon.errors import RecipeError, RunError
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe
from tauon.stages.load import load_model
from tauon.starter import draft, write_draft


def houses(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and prices around 270,000."""
    rng = np.random.default_rng(seed)
    x = np.stack([rng.normal(120, 35, n), rng.integers(1, 7, n), rng.uniform(0, 60, n)], axis=1)
    return x, 60_000 + 1_500 * x[:, 0] + 9_000 * x[:, 1] - 600 * x[:, 2] + rng.normal(0, 4_000, n)


def write_csv(folder: Path, n: int = 400) -> Path:
    x, y = houses(n)
    rows = ["area,rooms,age,price", *(f"{a:.3f},{b:.0f},{c:.3f},{p:.2f}" for (a, b, c), p in zip(x, y, strict=True))]
    (folder / "houses.csv").write_text("\n".join(rows) + "\n")
    return folder / "houses.csv"


def recipe(folder: Path, **sections: Any) -> Recipe:
    source = {"kind": "csv", "path": str(write_csv(folder)), "label": "price", "target": "value"}
    base = {
        "name": "houses", "data": {"source": source, "split": {"validation": 0.1, "test": 0.25}}, "task": "regression", "model": "linear",
        "optim": {"kind": "adamw", "lr": 0.03}, "train": {"steps": 300, "batch": 64}, "stages": ["prepare", "train", "evaluate"],
        "evaluate": {"resamples": 200},
    }  # fmt: skip
    return parse(Recipe, base | sections)


def metrics(folder: Path) -> dict[str, Any]:
    return {k: v["value"] for k, v in read_json(folder / "evaluation.json")["metrics"].items()}


@pytest.mark.parametrize("model", ["linear", {"kind": "mlp", "hidden": [32]}])
def test_prices_around_270_000_are_learned_as_well_as_by_scikit_learn(model: Any, tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    done = run(recipe(tmp_path, model=model), root=tmp_path / "runs")
    found = metrics(done.folder)
    splits = prepare(recipe(tmp_path).data, seed=0, input_kind="arrays")
    train, test = ((d._table.features[d._rows], d._table.targets[d._rows]) for d in (splits.train, splits.test))  # type: ignore[union-attr,attr-defined]
    theirs = linear_model.LinearRegression().fit(*train)
    assert found["r2"] > theirs.score(*test) - 0.01
    assert found["mae"] == pytest.approx(np.abs(theirs.predict(test[0]) - test[1]).mean(), rel=0.35)


def test_predictions_from_a_checkpoint_are_in_the_units_of_the_data(tmp_path: Path) -> None:
    done = run(recipe(tmp_path), root=tmp_path / "runs")
    checkpoint = latest_checkpoint(done.checkpoints)
    assert checkpoint is not None
    model, _ = load_model(checkpoint, recipe(tmp_path))
    x, y = houses()
    records = [dict(zip(("area", "rooms", "age"), map(float, row), strict=True)) for row in x]
    preprocess = json.loads(json.dumps(checkpoint.state["preprocess"]))
    with torch.no_grad():
        out = model(torch.from_numpy(inputs_from_records(preprocess, records))).numpy()
    found = outputs_in_units(preprocess, out)[:, 0]
    assert 1 - np.square(found - y).sum() / np.square(y - y.mean()).sum() > 0.98


def test_scale_is_fitted_on_the_training_part_alone(tmp_path: Path) -> None:
    made = prepare(recipe(tmp_path).data, seed=0, input_kind="arrays", scale_targets=True)
    raw = prepare(recipe(tmp_path).data, seed=0, input_kind="arrays")
    learned = made.train.batch(np.arange(len(made.train))).targets.double().numpy()
    assert abs(learned.mean()) < 1e-6
    assert learned.std() == pytest.approx(1, abs=1e-6)
    kept = raw.train._table.targets[raw.train._rows]  # type: ignore[attr-defined]  # float64: a batch has float32
    assert made.facts["normalize_targets"]["center"] == [pytest.approx(kept.mean(), rel=1e-12)]
    assert made.facts["normalize_targets"]["names"] == ["price"]
    for part in ("validation", "test"):
        a, b = (getattr(s, part).batch(np.arange(len(getattr(s, part)))).targets.double().numpy() for s in (made, raw))
        np.testing.assert_allclose(TargetScale.from_json(made.preprocess["target_scale"]).undo(a), b, rtol=1e-6)
    assert made.fingerprint != raw.fingerprint


def test_intervals_of_quantiles_hold_what_they_should_in_the_units_of_the_data(tmp_path: Path) -> None:
    task = {"kind": "quantile-regression", "quantiles": [0.1, 0.5, 0.9]}
    done = run(recipe(tmp_path, task=task, optim={"kind": "adamw", "lr": 0.03}, train={"steps": 600, "batch": 64}), root=tmp_path / "runs")
    found = metrics(done.folder)
    assert 2_000 < found["mae"] < 6_000  # the noise of the prices: 4,000 times 0.8
    assert 0.6 < found["coverage_80"] < 0.95


def test_bounds_of_a_target_scale_it_and_clip_nothing(tmp_path: Path) -> None:
    bounds = {"*": (-10.0, 300.0), "price": (200_000.0, 300_000.0)}
    config = recipe(tmp_path).data.model_copy(update={"normalize": "bounds", "bounds": bounds})
    made = prepare(config, seed=0, input_kind="arrays", scale_targets=True)
    raw = prepare(recipe(tmp_path).data, seed=0, input_kind="arrays")
    a, b = (s.train.batch(np.arange(len(s.train))).targets.double().numpy() for s in (made, raw))
    np.testing.assert_allclose(a, (b - 250_000) / 50_000, atol=1e-6)
    assert np.abs(a).max() > 1
    assert made.facts["normalize_targets"]["why"] == "data.bounds gives the range"


def test_scaling_by_bounds_refuses_to_learn_the_scale_of_the_target(tmp_path: Path) -> None:
    config = recipe(tmp_path).data.model_copy(update={"normalize": "bounds", "bounds": {"*": (0.0, 300.0)}})
    with pytest.raises(RecipeError, match=r"no range for the target price.*data.bounds: \{price: \[low, high\]\}.*normalize_targets: none"):
        prepare(config, seed=0, input_kind="arrays", scale_targets=True)
    as_it_is = prepare(config.model_copy(update={"normalize_targets": "none"}), seed=0, input_kind="arrays", scale_targets=True)
    assert as_it_is.spec.target_scale == ()


def test_arrays_with_several_targets_are_scaled_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = np.stack([1e6 + 1e4 * x[:, 0], 1e-6 * x[:, 1]], axis=1)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    source = {"kind": "npz", "path": str(tmp_path / "a.npz"), "target": "value"}
    done = run(recipe(tmp_path, data={"source": source, "split": {"test": 0.2}}, train={"steps": 400, "batch": 64}), root=tmp_path / "runs")
    rows = read_json(done.folder / "evaluation.json")["per_class"]
    assert [row["r2"]["value"] > 0.98 for row in rows] == [True, True]
    assert rows[0]["mae"]["value"] > 1e6 * rows[1]["mae"]["value"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=40),
    st.sampled_from([0, 1, 3]),
)
def test_undoing_the_scale_gives_the_targets_back(values: list[float], columns: int) -> None:
    targets = np.array(values)
    if columns:
        targets = np.stack([targets * (k + 1) - k for k in range(columns)], axis=1)
    scale = TargetScale.fit(targets)
    spread = np.array(scale.scale).max()
    np.testing.assert_allclose(scale.undo(scale(targets)), targets, rtol=1e-9, atol=1e-5 * spread)
    again = TargetScale.from_json(json.loads(json.dumps(scale.to_json())))
    assert again == scale


def test_a_new_key_at_its_default_does_not_make_an_old_run_another_one(tmp_path: Path) -> None:
    """A run of an earlier version, whose record lacks a key that came since."""
    here = recipe(tmp_path, stages=["prepare", "train", "evaluate"], train={"steps": 20, "batch": 64})
    done = run(here, root=tmp_path / "runs")
    manifest = json.loads((done.folder / "manifest.json").read_text())
    del manifest["training"]["sections"]["data"]["normalize_targets"], manifest["training"]["sections"]["train"]["keep_every"]
    manifest["training"]["fingerprint"] = "of another version"
    (done.folder / "manifest.json").write_text(json.dumps(manifest))
    run(here, root=tmp_path / "runs", stages=("evaluate",))
    for changed in (recipe(tmp_path, seed=3, train={"steps": 20, "batch": 64}), recipe(tmp_path, train={"steps": 30, "batch": 64})):
        with pytest.raises(RunError, match=r"another recipe \((seed: 0 -> 3|train.steps: 20 -> 30)\)"):
            run(changed, root=tmp_path / "runs", stages=("evaluate",))


def test_the_recipe_that_is_written_for_prices_learns_them(tmp_path: Path) -> None:
    made = draft(write_csv(tmp_path), label="price")
    path = write_draft(made, tmp_path / "prices.yaml")
    done = run(
        load_recipe(path, ["train.epochs=60", "stages=[prepare, train, evaluate]", "evaluate.resamples=200"]), root=tmp_path / "runs"
    )
    assert metrics(done.folder)["r2"] > 0.95


def test_a_private_run_scales_its_target_by_what_was_stated_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    data = {
        "source": {"kind": "csv", "path": str(write_csv(tmp_path)), "label": "price", "target": "value"}, "split": {"validation": 0.1, "test": 0.25},
        "normalize": "bounds", "bounds": {"area": [0, 250], "rooms": [1, 7], "age": [0, 60], "price": [0, 500_000]},
    }  # fmt: skip
    privacy = {"noise_multiplier": 0.5, "delta": 1e-4}
    private = recipe(tmp_path, data=data, privacy=privacy, optim={"kind": "sgd", "lr": 0.5}, train={"steps": 200, "batch": 64})
    done = run(private, root=tmp_path / "runs")
    assert metrics(done.folder)["r2"] > 0.5  # without a scale: -20
    assert any("The scaling of numbers is public" in line for line in read_json(done.folder / "privacy.json")["guarantee"]["not_covered"])
    fitted = recipe(
        tmp_path,
        data=data | {"normalize_targets": "standard"},
        privacy=privacy,
        optim={"kind": "sgd", "lr": 0.5},
        train={"steps": 2, "batch": 64},
    )
    other = run(fitted.model_copy(update={"name": "fitted"}), root=tmp_path / "runs")
    assert any(line.startswith("Statistics, ") for line in read_json(other.folder / "privacy.json")["guarantee"]["not_covered"])
