"""The explain stage on a tiny run of every kind: its record says what predictions say, and it is done, repeated and stopped as every stage is."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from explained import FEW, KINDS, UNEXPLAINED, Worlds
from tauon.artifacts import RunFolder, read_json, write_json
from tauon.data import outputs_in_units
from tauon.errors import RecipeError, TauonError
from tauon.evaluate import predict_all
from tauon.pipeline import run
from tauon.predict import open_trained
from tauon.recipe import load_recipe
from tauon.stages.context import Context, null_callback

pytestmark = pytest.mark.long

RECORD, MAPS, CARD = "explain/explanation.json", "explain/maps.safetensors", "card.md"
LONG = ("series-calendar", "series-inputs", "series-quantiles", "series-patchtst", "sounds-conformer", "table-codes", "table-tabular")
"""Kinds that take seconds."""
EXPLAINED = [n for n in KINDS if n not in UNEXPLAINED]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("explained"))


def explain(folder: Path, *assignments: str) -> dict[str, Any]:
    """Explain, with settings of this call alone: a run keeps the recipe that it was last called with."""
    kept = (folder / "recipe.yaml").read_bytes()
    try:
        run(load_recipe(folder, assignments), folder=folder, stages=("explain",))
    finally:
        (folder / "recipe.yaml").write_bytes(kept)
    found: dict[str, Any] = read_json(folder / RECORD)
    return found


def lasting(folder: Path) -> tuple[dict[str, Any], bytes, str]:
    """What an explanation leaves, without its time."""
    record = read_json(folder / RECORD)
    record.pop("time")
    return record, (folder / MAPS).read_bytes(), (folder / CARD).read_text()


def predicted(folder: Path, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """What evaluation and `tauon predict` compute of the part that was explained."""
    recipe, it = load_recipe(folder), open_trained(folder)
    with RunFolder.open(folder) as opened:
        splits = Context(recipe, opened, null_callback).splits
    part = {"test": splits.test, "validation": splits.validation}[record["part"]]
    return predict_all(it.model, recipe.task, part, batch=64, context=it.precision.context)[0]


def check_card(folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((folder / CARD).read_text())
    assert card.data.to_dict()["library_name"] == "tauon" and card.text.strip().startswith("# ")


def check_record(record: dict[str, Any]) -> None:
    assert len(record["opening"]) == 3 and all(s[0].isupper() and s.rstrip()[-1] == "." for s in record["opening"])
    json.dumps(record, allow_nan=False)
    for case in record["cases"]:
        assert case["maps"] and case["row"] >= 0 and "target" not in case
        for one in case["maps"]:
            if "completeness_error" in one and not one["failed"]:
                assert one["completeness_error"] <= 0.01


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in EXPLAINED])
def test_the_record_says_what_predictions_say(worlds: Worlds, name: str) -> None:
    folder = worlds[name]
    record = explain(folder)
    check_record(record)
    check_card(folder)
    if (record["kind"] == "text" and "gpt" in name) or name == "lora":
        return
    recipe, outputs = load_recipe(folder), predicted(folder, record)
    labels = record["labels"]
    for case in record["cases"]:
        row = case["row"]
        if recipe.task.family in ("classification", "ordinal"):
            scores = outputs["scores"][row]
            assert case["explained_probability"] == pytest.approx(scores[labels.index(case["explained"])], abs=1e-5)
            assert case["probability"] == pytest.approx(scores[labels.index(case["answer"])], abs=1e-5)
            best = int((np.cumsum(scores) < 0.5).sum()) if recipe.task.family == "ordinal" else int(scores.argmax())
            assert case["answer"] == labels[best] and case["truth"] == labels[int(outputs["targets"][row])]
        elif recipe.task.family == "multi-label":
            scores = outputs["scores"][row]
            said = [name for name, p in zip(labels, scores, strict=True) if p >= 0.5]
            assert case["answer"] == (", ".join(said) or "none of the labels")
            assert case["explained_probability"] == pytest.approx(scores[labels.index(case["explained"])], abs=1e-5)
        else:
            check_value(folder, case, outputs, row, labels)


def check_value(folder: Path, case: dict[str, Any], outputs: dict[str, np.ndarray], row: int, labels: list[str]) -> None:
    """The answer and the truth are in the units of the data."""
    preprocess = open_trained(folder).preprocess
    k = labels.index(case["explained"].removeprefix("mean forecast of "))
    if "quantiles" in outputs:
        said = outputs["quantiles"][row]
        said = said[..., said.shape[-1] // 2]
    else:
        said = outputs["predictions"][row]
    truth = outputs["targets"][row]
    if case["explained"].startswith("mean forecast"):
        kept = preprocess["normalize"]
        center, scale = np.ravel(kept["center"])[k], np.ravel(kept["scale"])[k]
        said, truth = (np.asarray(x, float)[:, k].mean() * scale + center for x in (said, truth))
    else:
        said, truth = (outputs_in_units(preprocess, np.asarray(x, float).reshape(1, -1))[0, k] for x in (said, truth))
    assert case["answer"] == pytest.approx(said, rel=1e-4) and case["truth"] == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("name", ["gpt", "lora"])
def test_the_next_token_is_that_of_the_model(worlds: Worlds, name: str) -> None:
    folder = worlds[name]
    record = explain(folder)
    it, recipe = open_trained(folder), load_recipe(folder)
    with RunFolder.open(folder) as opened:
        splits = Context(recipe, opened, null_callback).splits
    part = {"test": splits.test, "validation": splits.validation}[record["part"]]
    for case in record["cases"]:
        batch = part.batch(np.array([case["row"]]))
        with torch.no_grad():
            last = it.model.logits(it.model(batch.inputs, batch.segments))[0, -1].float().softmax(0)
        assert case["probability"] == pytest.approx(float(last.max()), abs=1e-5)
        assert case["lens"] and case["lens"][-1]["rank"] == 1


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_what_cannot_be_explained_is_refused_with_what_can(worlds: Worlds, name: str) -> None:
    with pytest.raises(RecipeError, match=r"explain: task [a-z-]+ cannot be explained: .*Explain a model of"):
        explain(worlds[name])
    assert not (worlds[name] / "explain").exists()
    with pytest.raises(RecipeError, match="cannot be explained"):  # in the recipe: before training
        load_recipe(worlds[name], ["explain.examples=2"])


def test_folds_are_explained_one_by_one(worlds: Worlds) -> None:
    from tauon.stages.explain_runs import open_to_explain

    data = {"source": {"kind": "sklearn", "name": "iris"}, "split": {"folds": 2, "validation": 0}}
    folder = worlds.train("folded", data=data, task="classification", model={"kind": "mlp", "hidden": [4]})
    run(load_recipe(folder), folder=folder, stages=("explain", "report"))
    for fold in (0, 1):
        check_record(read_json(folder / f"fold-{fold}" / RECORD))
    with pytest.raises(TauonError, match="Name one: .*fold-0"):
        open_to_explain(folder, (), null_callback)


# ---------------------------------------------------------------------------------------------- done, repeated, stopped


def states(folder: Path, *assignments: str, stages: tuple[str, ...] = ("explain",)) -> dict[str, str]:
    seen: dict[str, str] = {}

    def note(kind: str, /, **facts: Any) -> None:
        if kind == "stage":
            seen[facts["name"]] = facts["state"]

    run(load_recipe(folder, assignments), folder=folder, stages=stages, on_event=note)
    return seen


@pytest.fixture(scope="module")
def iris(worlds: Worlds) -> Path:
    folder = worlds["iris"]
    explain(folder)
    return folder


def test_it_is_done_once_and_a_lost_file_is_made_again(iris: Path) -> None:
    before = lasting(iris)
    assert states(iris) == {"explain": "done before"}
    for name in (RECORD, MAPS, CARD):
        (iris / name).unlink()
        assert states(iris) == {"explain": "done"}
        assert lasting(iris) == before


def test_evaluation_does_not_undo_it_and_other_training_does(iris: Path) -> None:
    run(load_recipe(iris, ["evaluate.confidence=80%"]), folder=iris, stages=("evaluate",))
    assert states(iris) == {"explain": "done before"}
    record = json.loads((iris / "stages.json").read_text())
    write_json(iris / "stages.json", record | {"train": record["train"] | {"result": "another"}})
    assert states(iris) == {"explain": "done"}
    write_json(iris / "stages.json", record)


def test_other_settings_make_another_explanation(iris: Path) -> None:
    assert len(explain(iris, "explain.examples=2")["cases"]) == 2
    assert states(iris) == {"explain": "done"}


def test_twice_is_the_same_with_another_number_of_threads_too(iris: Path) -> None:
    explain(iris)
    before, threads = lasting(iris), torch.get_num_threads()
    (iris / RECORD).unlink()
    import shutil

    shutil.rmtree(iris / "explain/influence")
    explain(iris)
    assert lasting(iris) == before
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        (iris / RECORD).unlink()
        record = explain(iris)
    finally:
        torch.set_num_threads(threads)
    assert record["opening"] == before[0]["opening"]
    for ours, theirs in zip(record["cases"], before[0]["cases"], strict=True):
        assert ours["row"] == theirs["row"] and ours["probability"] == pytest.approx(theirs["probability"], abs=1e-6)


def test_another_method_of_influence_builds_another_index(iris: Path) -> None:
    for method in ("tracin", "ekfac"):
        record = explain(iris, f"explain.influence.method={method}")
        assert "problem" not in record["influence"] and record["influence"]["method"] == method
    explain(iris)


def test_a_stopped_index_continues_and_a_damaged_one_is_built_again(iris: Path) -> None:
    explain(iris)
    before = lasting(iris)
    index = iris / "explain/influence"
    for what in ("stopped", "part", "encoder", "record"):
        (iris / RECORD).unlink()
        if what == "stopped":
            (index / "index.json").unlink()
            (index / "part-00000.npy").unlink()
        elif what == "part":
            (index / "part-00000.npy").write_bytes((index / "part-00000.npy").read_bytes()[:100])
        elif what == "encoder":
            (index / "encoder.safetensors").write_bytes(b"nothing")
        else:
            (index / "index.json").write_text("{")
        explain(iris)
        assert lasting(iris) == before, what


def begin(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tauon", "explain", str(folder), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_moment_it_ends_in_the_same_record(iris: Path, how: signal.Signals) -> None:
    import shutil

    explain(iris)
    before, rng, hits = lasting(iris), random.Random(int(how)), 0
    for _ in range(6):
        shutil.rmtree(iris / "explain", ignore_errors=True)
        (iris / CARD).unlink(missing_ok=True)
        process = begin(iris)
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("state") == "begins":
                time.sleep(rng.uniform(0, 2))
                break
        process.send_signal(how)
        _, err = process.communicate(timeout=300)
        hits += process.returncode != 0
        assert "Traceback" not in err
        odd = [p for p in iris.rglob("*") if ".tmp" in p.name]
        assert how == signal.SIGKILL or not odd, odd
        if (iris / RECORD).exists():
            json.loads((iris / RECORD).read_text())
    assert hits >= 2
    explain(iris)
    assert lasting(iris) == before
    assert not [p for p in iris.rglob("*") if ".tmp" in p.name]


# ---------------------------------------------------------------------------------------------- private runs


@pytest.fixture(scope="module")
def private(worlds: Worlds) -> Path:
    pytest.importorskip("dp_accounting")
    privacy = {"noise_multiplier": 3.0, "delta": 1e-3, "accountant": "rdp", "statistics": {"noise": 4.0}, "generator": "seeded"}
    data = {
        "source": {"kind": "sklearn", "name": "iris"},
        "normalize": "standard",
        "bounds": {"*": [0, 8]},
        "split": {"validation": 0.1, "test": 0.2},
    }
    return worlds.train(
        "private", data=data, task="classification", model={"kind": "mlp", "hidden": [4]}, privacy=privacy, explain={"influence": None}
    )


def test_of_a_private_run_no_training_example_is_read(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(private) as opened:
        ctx = Context(load_recipe(private), opened, null_callback)
        assert ctx.splits.train is not None
        kind = type(ctx.splits.train)
    read: list[Any] = []
    batch = kind.batch

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        read.append(self)
        return batch(self, *args, **more)

    parts: list[Any] = []
    splits = Context.splits.func  # type: ignore[attr-defined]

    def remembered(self: Any) -> Any:
        found = splits(self)
        parts.append(found.train)
        return found

    monkeypatch.setattr(kind, "batch", watched)
    monkeypatch.setattr(Context.splits, "func", remembered)
    record = explain(private)
    rows = {len(d) for d in parts}
    assert read and parts and not [d for d in read if len(d) in rows]
    check_record(record)
    assert "private" in record["influence"]["problem"] and "mislabelled" not in record
    assert not (private / "explain/influence").exists()
    assert all("influence" not in case for case in record["cases"])


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("explain.split=train", "training examples of a private run are protected"),
        ("explain.influence=true", "The run is private"),
        ("explain.influence.method=tracin", "The run is private"),
    ],
)
def test_of_a_private_run_training_examples_are_refused(private: Path, assignment: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        explain(private, assignment)


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "assignments", "says"),
    [
        ("iris", ["explain.maps=[gradcam]"], "'gradcam' is not an attribution method; did you mean 'grad_cam'"),
        ("iris", ["explain.target=virginca"], "explain.target: 'virginca' does not exist; did you mean 'virginica'"),
        ("iris", ["explain.target=virginca", "explain.examples=0"], "explain.target: 'virginca' does not exist"),
        ("iris", ["explain.examples=2", "explain.rows=[3,500]"], "row 500 does not exist: the test part has rows 0 to 44"),
        ("iris", ["explain.counterfactuals.keep=[petal width]"], r"'petal width' is not a column.*petal width \(cm\)"),
        ("iris", ["explain.layer=layers.0"], "explain.layer: has no effect"),
        ("iris", ["explain.maps=[occlusion]", "explain.layer=layers.0"], "explain.layer: is only read by grad_cam"),
        ("images", ["explain.counterfactuals=false"], "explain.counterfactuals: has no effect"),
        ("iris", ["explain.language.answer=3"], "explain.language: has no effect with task classification: it is for language models"),
        ("images", ["explain.counterfactuals.keep=[age]"], "explain.counterfactuals: has no effect"),
        ("images", ["explain.features=false"], "explain.features: has no effect"),
        ("images", ["explain.maps=[grad_cam]", "explain.layer=layerz"], "layerz"),
        ("images", ["explain.language.contrast=[a,b]"], "explain.language: has no effect"),
        ("regression", ["explain.counterfactuals.keep=[age]"], "explain.counterfactuals: has no effect with task regression"),
        ("texts-bag", ["explain.maps=[integrated_gradients]"], "needs gradients"),
        ("texts-bag", ["explain.features=false"], "explain.features: has no effect with task text-classification: it is for tables"),
        ("gpt", ["explain.slices=false"], "explain.slices: has no effect"),
        ("gpt", ["explain.language.contrast=[the lepton, a]"], "explain.language.contrast"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(worlds: Worlds, name: str, assignments: list[str], says: str) -> None:
    with pytest.raises(TauonError, match=says):
        explain(worlds[name], *assignments)


def test_the_defaults_of_a_test_are_not_the_defaults_of_a_person() -> None:
    from tauon.explain import ExplainConfig

    assert set(FEW) <= set(ExplainConfig.model_fields)


def test_a_setting_that_is_refused_does_not_stay_in_the_run(worlds: Worlds) -> None:
    folder = worlds["iris"]
    before = (folder / "recipe.yaml").read_bytes()
    with pytest.raises(TauonError, match="row 500 does not exist"):
        run(load_recipe(folder, ["explain.examples=1", "explain.rows=[500]"]), folder=folder, stages=("explain",))
    assert (folder / "recipe.yaml").read_bytes() == before
