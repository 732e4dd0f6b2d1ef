"""The compress stage: what keeps the promise is kept and used like a run; what does not is refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tauon
from tauon.artifacts import read_json
from tauon.compress.report import compression
from tauon.config import parse
from tauon.errors import DataError, RecipeError, RunError
from tauon.pipeline import run
from tauon.predict import predict_rows
from tauon.recipe import Recipe, load_recipe
from tauon.report import Records
from tauon.stages.side_effects import membership_auc

pytestmark = pytest.mark.long

pytest.importorskip("onnxruntime")
pytest.importorskip("torchao")
FAST = {"seconds": 0.02, "batch_sizes": [1, 4]}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has so many weights that integers pay, and enough held-out rows for a promise of 5%."""
    folder = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 6))
    rows = [",".join(f"{v:.4f}" for v in r) + f",{'yes' if r[:3].sum() > 0 else 'no'}" for r in x]
    (folder / "t.csv").write_text("a,b,c,d,e,f,y\n" + "\n".join(rows) + "\n")
    recipe = {
        "name": "wide",
        "data": {"source": {"kind": "csv", "path": str(folder / "t.csv"), "label": "y"}, "split": {"validation": "20%", "test": "20%"}},
        "task": "classification",
        "model": {"kind": "mlp", "hidden": [1024, 1024]},
        "optim": {"kind": "adam", "lr": 1e-3},
        "train": {"steps": 60, "batch": 64, "validate_every": None},
    }
    return run(parse(Recipe, recipe), root=folder / "runs", stages=("prepare", "train")).folder


def compressed(source: Path, to: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    shutil.copytree(source, to)
    recipe = load_recipe(to, [f"compress={json.dumps(FAST | settings)}"])
    run(recipe, folder=to, stages=("compress",))
    return to, read_json(to / "compress" / "compress.json")


ROWS = [dict(zip("abcdef", row, strict=True)) for row in np.random.default_rng(5).normal(size=(20, 6)).tolist()]


def test_a_search_keeps_a_model_that_keeps_the_promise_and_it_is_used_like_a_run(wide: Path, tmp_path: Path) -> None:
    folder, record = compressed(wide, tmp_path / "wide", max_drop=0.05)
    assert record["best"], record["reason"]
    best = next(p for p in record["points"] if p["name"] == record["best"])
    own = record["points"][0]
    assert best["drop"]["high"] <= 0.05 and best["cost"]["size_bytes"] < own["cost"]["size_bytes"]
    small, large = predict_rows(folder / "compress", ROWS), predict_rows(folder, ROWS)
    assert np.mean([a["prediction"] == b["prediction"] for a, b in zip(small, large, strict=True)]) >= 0.9
    assert small != large, "the small model answers, not the trained one"
    effects = record["side_effects"]
    assert effects["metrics"]["figures"]["accuracy"][1]["value"] == pytest.approx(
        effects["metrics"]["figures"]["accuracy"][0]["value"], abs=0.05
    )
    assert 0.3 < effects["membership"]["auc"][1] < 0.9
    section = compression(Records.read(folder))
    assert section is not None and record["best"] in section.html and "upper end" in section.html


def test_steps_by_hand_are_applied_in_order_and_saved(wide: Path, tmp_path: Path) -> None:
    steps = [{"kind": "int8_weight_only"}, {"kind": "structured", "remove": 0.5}]
    folder, record = compressed(wide, tmp_path / "wide", max_drop=0.9, steps=steps, runtime="eager", side_effects=False)
    point = record["points"][-1]
    assert [s["kind"] for s in point["steps"]] == ["structured", "int8_weight_only"]
    assert "side_effects" not in record
    if record["best"]:
        assert (folder / "compress" / "model" / "model.safetensors").stat().st_size < 0.3 * point["cost"]["size_bytes"] * 4
        assert len(predict_rows(folder / "compress", ROWS)) == 20


def test_what_is_slower_or_loses_too_much_is_not_kept(wide: Path, tmp_path: Path) -> None:
    steps = [{"kind": "magnitude", "sparsity": 0.999}]
    folder, record = compressed(wide, tmp_path / "wide", max_drop=0.02, steps=steps, side_effects=False)
    assert record["best"] is None and "may drop by" in record["reason"]
    assert not (folder / "compress" / "model").exists()
    with pytest.raises(RunError, match=r"(?s)has no model, because .*magnitude.*may drop by"):
        predict_rows(folder / "compress", ROWS)


def test_too_few_examples_are_said(wide: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    shutil.copytree(wide, tmp_path / "wide")
    settings = json.dumps(FAST | {"max_drop": 0.001, "steps": [{"kind": "bf16"}], "side_effects": False})
    run(load_recipe(tmp_path / "wide", [f"compress={settings}"]), folder=tmp_path / "wide", stages=("compress",),
        on_event=lambda kind, /, **facts: heard.append(str(facts.get("message", ""))))  # fmt: skip
    assert any("examples cannot prove a drop of at most 0.10%" in text for text in heard)


def test_a_model_that_was_trained_again_is_not_answered_by_the_old_small_one(wide: Path, tmp_path: Path) -> None:
    folder, record = compressed(wide, tmp_path / "wide", max_drop=0.9, steps=[{"kind": "bf16"}], runtime="eager", side_effects=False)
    if record["best"] is None:
        pytest.skip("bf16 is slower here")
    other = dict(record) | {"checkpoint": "another"}
    (folder / "compress" / "compress.json").write_text(json.dumps(other))
    with pytest.raises(RunError, match="earlier training"):
        predict_rows(folder / "compress", ROWS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_drop": 1.5}, "max_drop"),
        ({"runtime": "onnx"}, "has no effect without steps"),
        ({"steps": ["nothing"]}, "nothing"),
        ({"for": "toaster"}, "for"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"calibration": 0}, "calibration"),
    ],
)
def test_bad_settings_are_named(wide: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(wide, [f"compress={json.dumps(settings)}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_refused(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no GPU to measure on"):
        compressed(wide, tmp_path / "wide", **{"for": "gpu"})
    assert not (tmp_path / "wide" / "compress").exists()


def test_a_language_model_is_compressed_and_generates(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 80)
    recipe = {
        "name": "lm",
        "data": {"source": {"kind": "text", "path": str(tmp_path / "t.txt")}, "tokenizer": "bytes", "seq_len": 64},
        "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 1, "width": 64, "heads": 2},
        "train": {"steps": 20, "batch": 8, "validate_every": None},
    }
    trained = run(parse(Recipe, recipe), root=tmp_path / "runs", stages=("prepare", "train")).folder
    folder, record = compressed(trained, tmp_path / "small", max_drop=0.9, steps=[{"kind": "int8_weight_only"}], side_effects=False)
    assert [p["runtime"] for p in record["points"]][-1] == "eager"
    assert record["points"][-1]["drop"]["metric"] == "perplexity" and record["points"][-1]["drop"]["value"] < 0.05
    if record["best"]:
        from tauon.serve.loading import load_language_model

        assert len(load_language_model(folder / "compress").write("the", max_tokens=5)) == 1


def test_from_python(wide: Path, tmp_path: Path) -> None:
    shutil.copytree(wide, tmp_path / "wide")
    record = tauon.open_run(tmp_path / "wide").compress(
        "20%", "compress.seconds=0.02", "compress.steps=[bf16]", "compress.side_effects=false"
    )
    assert record["max_drop"] == 0.2 and len(record["points"]) == 3


def test_membership_auc_is_the_mann_whitney_statistic() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50), rng.integers(0, 7, 70)
    assert membership_auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (50 * 70))


def test_healing_trains_what_was_cut(wide: Path, tmp_path: Path) -> None:
    cut = [{"kind": "structured", "remove": 0.9, "refit": False}]
    lost = [
        compressed(wide, tmp_path / name, max_drop=0.9, steps=cut, runtime="eager", side_effects=False, **more)[1]["points"][-1]["drop"][
            "value"
        ]
        for name, more in (("cut", {}), ("healed", {"heal": {"steps": 60, "lr": 1e-3}}))
    ]
    assert lost[1] < lost[0]
