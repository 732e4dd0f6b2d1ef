"""Training as a run: resume, workers, early stopping, derived steps, what is recorded. Through `tauon.pipeline.run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tauon.artifacts import RunFolder, load_checkpoint, read_json, steps_in
from tauon.errors import Interrupted, RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.stages import training_record as watch
from tauon.stages.load import load_model
from tauon.tracking import read_events, timeline
from tauon.train import StopSignal, loop
from toy import table_recipe, text_recipe


def final(run: RunFolder, group: str = "model") -> bytes:
    done = run.stage("train")
    assert done is not None
    return (run.checkpoints / done["checkpoint"] / f"{group}.safetensors").read_bytes()


def go(path: Path, *assignments: str, stages: Any = ("prepare", "train"), **more: Any) -> RunFolder:
    return run(load_recipe(path, assignments), root=path.parent / "runs", stages=stages, **more)


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, path: Path, *assignments: str, steps: int = 12) -> None:
    """Ctrl-C during `step`, which is finished and saved first."""
    original = loop.launch_step

    with monkeypatch.context() as patch:
        signals: list[StopSignal] = []
        listening = StopSignal.listening

        def listen(self: StopSignal) -> Any:
            signals.append(self)
            return listening(self)

        def launch_step(job: Any, batch: Any) -> Any:
            if job.step + 1 == step:
                signals[0].name = "SIGINT"
            return original(job, batch)

        patch.setattr(StopSignal, "listening", listen)
        patch.setattr(loop, "launch_step", launch_step)
        with pytest.raises(Interrupted, match=f"SIGINT: saved at step {step} of {steps}"):
            go(path, *assignments)


RICH: list[str] = ["model.dropout=0.1", "train.ema=0.9", "train.microbatch=2", "train.spike_factor=50", "optim.clip_norm=0.5"]


@pytest.mark.parametrize("optim", ["{kind: adamw, lr: 0.01}", "{kind: muon}", "{kind: sgd, nesterov: true, lr: 0.1}"])
@pytest.mark.parametrize("at", [1, 5, 8, 11])
def test_stopped_and_gone_on_is_bit_for_bit_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, optim: str
) -> None:
    path = text_recipe(tmp_path)
    settings = [*RICH, f"optim={optim}"] if at == 5 else [f"optim={optim}", "model.dropout=0.1"]
    whole = go(path, "name=whole", *settings)
    stopped_at(at, monkeypatch, path, *settings)
    assert RunFolder.read(tmp_path / "runs/toy").stage("train") is None
    again = go(path, *settings)
    for group in load_checkpoint(whole.checkpoints / "step-000012").groups():
        assert final(whole, group) == final(again, group), group
    a, b = (load_checkpoint(r.checkpoints / "step-000012").state for r in (whole, again))
    assert a == b
    losses = [{e["step"]: e["loss"] for e in timeline(read_events(r.events_path)) if e["kind"] == "step"} for r in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    path = text_recipe(tmp_path)
    first = go(path, stages=None)
    before = {
        p: p.stat().st_mtime_ns
        for p in first.folder.rglob("*")
        if p.suffix in (".safetensors", ".jsonl", ".html") or p.name == "evaluation.json"
    }
    told: list[tuple[str, Any]] = []
    second = go(path, stages=None, on_event=lambda kind, /, **facts: told.append((kind, facts.get("state"))))
    assert told == [("stage", "done before")] * 4
    assert {p: p.stat().st_mtime_ns for p in before} == before and second.stage("report") == first.stage("report")


def test_a_stage_is_done_again_when_what_it_depends_on_changed(tmp_path: Path) -> None:
    path = text_recipe(tmp_path)
    go(path, stages=None)
    told: list[tuple[str, str]] = []

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "stage" and facts["state"] != "done":
            told.append((facts["name"], facts["state"]))

    changed = go(path, "evaluate.confidence=80%", stages=None, on_event=on_event)
    assert told == [("prepare", "done before"), ("train", "done before"), ("evaluate", "begins"), ("report", "begins")]
    assert read_json(changed.folder / "evaluation.json")["confidence"] == 0.8


@pytest.mark.parametrize("make", [text_recipe, table_recipe])
def test_training_does_not_depend_on_the_number_of_workers(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    assert len({final(go(path, f"name=w{n}", f"data.workers={n}")) for n in (0, 1, 3)}) == 1


def test_nor_on_how_often_it_validates_and_saves(tmp_path: Path) -> None:
    path = text_recipe(tmp_path)
    often = ["train.validate_every=1", "train.checkpoint_every=1", "train.keep_last=3"]
    assert final(go(path, "name=a", "model.dropout=0.2")) == final(go(path, "name=b", "model.dropout=0.2", *often))


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    path = text_recipe(tmp_path)
    assert final(go(path, "name=a")) != final(go(path, "name=b", "seed=1"))


def test_ten_validations_and_ten_checkpoints_in_a_run(tmp_path: Path) -> None:
    path = table_recipe(tmp_path, train={"steps": 40, "checkpoint_every": None, "validate_every": None})
    done = go(path)
    events = list(read_events(done.events_path))
    for kind in ("validate", "checkpoint"):
        assert [e["step"] for e in events if e["kind"] == kind] == list(range(4, 41, 4))
    assert [e["step"] for e in events if e["kind"] == "step"] == list(range(1, 41))


def test_the_checkpoints_that_were_asked_for_are_kept(tmp_path: Path) -> None:
    done = go(text_recipe(tmp_path), "train.checkpoint_every=1", "train.keep_last=2", "train.keep_every=5")
    assert [s for s, _ in steps_in(done.checkpoints)] == [5, 10, 11, 12]


LONG = ["train.steps=40", "train.checkpoint_every=10", "train.keep_last=1", "train.keep_early=3"]


def test_early_checkpoints_are_written_and_kept_and_change_nothing(tmp_path: Path) -> None:
    plain = go(text_recipe(tmp_path / "a"), *LONG[:-1])
    done = go(text_recipe(tmp_path / "b"), *LONG)
    # 5 passes are more: 30% of 40 steps is 12, and 2.4, 5.4, 12 are at equal ratios
    assert [s for s, _ in steps_in(done.checkpoints)] == [2, 5, 12, 40] and [s for s, _ in steps_in(plain.checkpoints)] == [40]
    assert final(done) == final(plain)
    derived = {d["path"]: d["value"] for d in read_json(done.folder / "derived.json")}
    assert derived["train.keep_early"] == "2, 5, 12" and "train.keep_early" not in str(read_json(plain.folder / "derived.json"))


def test_early_checkpoints_survive_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_recipe(tmp_path)
    scripted([5.0, 4.0, 3.0, 2.0, 4.0, 4.0, 4.0, 4.0], monkeypatch)
    # step 5 is the best when it is saved, and is released when a better one comes
    done = go(path, *LONG, "train.validate_every=5", "train.early_stopping={patience: 3}", stages=("prepare", "train"))
    assert [s for s, _ in steps_in(done.checkpoints)] == [2, 5, 12, 20, 35]


def test_early_checkpoints_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, more = text_recipe(tmp_path), ["train.keep_early=2", "train.checkpoint_every=100", "train.keep_last=1"]
    stopped_at(3, monkeypatch, path, *more)
    assert [s for s, _ in steps_in(go(path, *more).checkpoints)] == [1, 4, 12]


def test_too_many_early_checkpoints_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"train.keep_early: 5 checkpoints do not fit into the first 4 of 12 steps. Train longer, or keep fewer"
    ):
        go(text_recipe(tmp_path), "train.keep_early=5")


def scripted(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses by number of the validation."""
    left = iter(losses)
    monkeypatch.setattr(watch, "validation_loss", lambda job, batches: next(left))


EARLY = ["train.validate_every=1", "train.checkpoint_every=100", "train.keep_last=1"]


def test_early_stopping_keeps_the_best_and_evaluation_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_recipe(tmp_path)
    scripted([5.0, 4.0, 4.5, 3.9, 4.1, 4.2, 3.95, 1.0], monkeypatch)
    done = go(path, *EARLY, "train.early_stopping={patience: 3, min_delta: 0.05}", stages=None)
    stage = done.stage("train")
    assert stage is not None and (stage["checkpoint"], stage["steps"]) == ("step-000004", 7)
    assert {s for s, _ in steps_in(done.checkpoints)} == {4, 7}
    evaluated = done.stage("evaluate")
    assert evaluated is not None and evaluated["checkpoint"] == load_checkpoint(done.checkpoints / "step-000004").hash
    assert json.loads((done.checkpoints / "protected.json").read_text()) == [4]


def test_too_small_a_fall_is_no_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5.0, 4.99, 4.98, 4.97], monkeypatch)
    done = go(text_recipe(tmp_path), *EARLY, "train.early_stopping={patience: 3, min_delta: 0.05}")
    stage = done.stage("train")
    assert stage is not None and (stage["checkpoint"], stage["steps"]) == ("step-000001", 4)


def test_losses_that_are_not_finite_are_no_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([float("nan"), 5.0, float("nan"), float("inf")], monkeypatch)
    done = go(text_recipe(tmp_path), *EARLY, "train.early_stopping={patience: 2}")
    stage = done.stage("train")
    assert stage is not None and (stage["checkpoint"], stage["steps"]) == ("step-000002", 4)


@pytest.mark.parametrize("at", [3, 5, 6])
def test_early_stopping_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    path, losses = text_recipe(tmp_path), [5.0, 4.0, 4.5, 3.9, 4.1, 4.2, 3.95, 1.0]
    settings = [*EARLY, "train.early_stopping={patience: 3}"]
    scripted(losses, monkeypatch)
    stopped_at(at, monkeypatch, path, *settings)
    scripted(losses[at:], monkeypatch)
    done = go(path, *settings)
    stage = done.stage("train")
    assert stage is not None and (stage["checkpoint"], stage["steps"]) == ("step-000004", 7)


def test_steps_from_a_time_are_recorded_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_recipe(tmp_path, train={"steps": None, "time": 0.2, "checkpoint_every": 1})
    from tauon.train import timing

    monkeypatch.setattr(timing, "_timed", lambda job, budget, world: 0.2 / 12)
    stopped_at(5, monkeypatch, path, steps=10)  # of 12 that fit, 15% of the time is for validation
    monkeypatch.setattr(timing, "_timed", lambda job, budget, world: 1 / 0)
    done = go(path)
    assert done.stage("train")["steps"] == 10  # type: ignore[index]
    assert done.manifest()["training"]["plan"]["steps"] == 10
    derived = {d["path"]: d for d in read_json(done.folder / "derived.json")}
    assert (derived["train.steps"]["value"], derived["train.steps"]["source"]) == (10, "recorded by this run")


def test_a_run_knows_where_it_came_from(tmp_path: Path) -> None:
    done = go(text_recipe(tmp_path), stages=None)
    manifest = done.manifest()
    assert manifest["seed"] == 0 and manifest["tauon"] and manifest["environment"] and manifest["data"]["fingerprint"]
    whole = load_checkpoint(done.checkpoints / manifest["checkpoint"]["hash"] if False else done.checkpoints / "step-000012")
    assert manifest["checkpoint"] == {"step": 12, "hash": whole.hash, "parent": load_checkpoint(done.checkpoints / "step-000008").hash}
    assert load_recipe(done.folder) == load_recipe(tmp_path / "recipe.yaml")


def test_the_average_is_what_is_measured_unless_the_raw_weights_are_asked_for(tmp_path: Path) -> None:
    import torch

    done = go(text_recipe(tmp_path), "train.ema=0.5", "evaluate.samples=0")
    checkpoint, recipe = load_checkpoint(done.checkpoints / "step-000012"), load_recipe(done.folder)
    for weights, group in (("auto", "ema"), ("ema", "ema"), ("raw", "model")):
        model, _ = load_model(checkpoint, recipe, weights=weights)
        state = model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in checkpoint.tensors(group).items()), weights


def test_progress_is_told_with_throughput_and_time_left(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    go(text_recipe(tmp_path), on_event=lambda kind, /, **facts: told.append(facts) if kind == "step" else None)
    assert [t["step"] for t in told] == list(range(1, 13))
    last = told[-1]
    assert last["tokens_per_s"] == pytest.approx(16 * last["examples_per_s"])
    assert last["eta_s"] == 0 and told[-2]["eta_s"] > 0 and last["tflops"] > 0 and last["memory_mb"] > 10
