"""What optimizers, schedules, warm-ups and the watch over layers bring to a run: through `tauon.pipeline.run`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, load_checkpoint
from tauon.errors import RecipeError
from tauon.pipeline import run
from tauon.recipe import load_recipe
from tauon.tracking import read_events
from tauon.train import LayerLook, complaints, lasting_complaints
from toy import Tauon, table_recipe, text_recipe


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def go(path: Path, *assignments: str, stages: Any = ("prepare", "train"), **more: Any) -> RunFolder:
    return run(load_recipe(path, assignments), root=path.parent / "runs", stages=stages, **more)


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(run.events_path) if e["kind"] == kind]


def test_gradient_descent_takes_the_whole_training_set_and_its_loss_falls_at_every_step(tmp_path: Path) -> None:
    path = table_recipe(tmp_path, optim={"kind": "gd", "lr": 0.3}, train={"steps": 30, "batch": None})
    text = path.read_text().replace("  batch: null\n", "")
    path.write_text(text)
    steps = events(go(path), "step")
    losses = [e["loss"] for e in steps]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]
    train = json.loads((tmp_path / "runs" / "table" / "data.json").read_text())["parts"]["train"]
    assert steps[0]["examples"] == next(v for k, v in train.items() if k in ("rows", "examples"))


def test_gradient_descent_refuses_a_batch(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.batch: gd uses the full training set"):
        load_recipe(table_recipe(tmp_path, optim={"kind": "gd"}))


def test_a_batch_and_its_sequences_grow(tmp_path: Path) -> None:
    path = text_recipe(tmp_path, train={"batch_warmup": {"start": 1, "steps": 3}, "seq_len_warmup": {"start": 8, "steps": 4}})
    steps = events(go(path), "step")
    assert [e["examples"] for e in steps][:5] == [1, 3, 6, 10, 14]
    assert [e["tokens"] for e in steps][:5] == [8, 8 + 2 * 8, 24 + 3 * 8, 48 + 4 * 8, 80 + 4 * 16]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch_warmup", {"start": 4, "steps": 3}, "is not below batch"),
        ("seq_len_warmup", {"start": 16, "steps": 3}, "is not below data.seq_len"),
    ],
)
def test_a_warm_up_that_does_not_grow_is_refused(tmp_path: Path, key: str, value: dict[str, int], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        go(text_recipe(tmp_path, train={key: value}))


def test_a_warm_up_of_sequences_needs_sequences(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs text"):
        go(table_recipe(tmp_path, train={"seq_len_warmup": {"start": 2, "steps": 3}}))


def test_plateau_lowers_the_rate_and_remembers_across_a_resume(tmp_path: Path) -> None:
    path = table_recipe(
        tmp_path, optim={"kind": "sgd", "lr": 1e-9, "schedule": {"kind": "plateau", "patience": 0, "warmup": 0}},
        train={"steps": 12, "validate_every": 2, "checkpoint_every": 4},
    )  # fmt: skip
    whole = go(path)
    rates = [e["lr"] for e in events(whole, "step")]
    assert rates[:4] == [1e-9] * 4 and rates[4] == pytest.approx(5e-10) and rates[-1] == pytest.approx(1e-9 / 16)
    state = load_checkpoint(whole.checkpoints / "step-000012").state
    assert state["notes"]["plateau"]["factor"] == pytest.approx(1 / 32)


def test_what_schedule_free_saves_is_the_average_and_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"optim": {"kind": "schedule-free", "lr": 0.02}}
    whole = go(text_recipe(tmp_path / "a", **options))
    half = text_recipe(tmp_path / "b", **options)
    with pytest.raises(KeyboardInterrupt):
        go(half, on_event=_stop_at(8))
    resumed = go(half)
    last = "step-000012/model.safetensors"
    assert (whole.checkpoints / last).read_bytes() == (resumed.checkpoints / last).read_bytes()
    held = load_checkpoint(whole.checkpoints / "step-000012")
    name = next(n for n in held.tensors("model") if n.endswith("weight"))
    assert not torch.equal(held.tensors("model")[name], held.tensors("optim")[f"{name}/y"])


def _stop_at(step: int) -> Any:
    def on_event(kind: str, **facts: Any) -> None:
        if kind == "checkpoint" and facts["step"] == step:
            raise KeyboardInterrupt

    return on_event


@pytest.mark.parametrize("kind", ["soap", "adamw8bit", "lion", "adafactor", "rmsprop", "adagrad"])
def test_every_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    if kind == "adamw8bit":
        pytest.importorskip("torchao", reason="torchao is not installed")
    options: dict[str, Any] = {"optim": {"kind": kind, "lr": None}, "model": {"width": 64}}
    paths = [text_recipe(tmp_path / name, **options) for name in ("a", "b")]
    for path in paths:
        path.write_text(path.read_text().replace("  lr: null\n", ""))
    whole = go(paths[0])
    with pytest.raises(KeyboardInterrupt):
        go(paths[1], on_event=_stop_at(8))
    last = "step-000012/model.safetensors"
    assert (whole.checkpoints / last).read_bytes() == (go(paths[1]).checkpoints / last).read_bytes()


def test_schedule_free_and_an_average_of_weights_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.ema: schedule-free already averages"):
        go(text_recipe(tmp_path, optim={"kind": "schedule-free"}, train={"ema": 0.9}))


def test_the_log_tells_of_every_layer_and_the_report_draws_it(tmp_path: Path) -> None:
    path = table_recipe(tmp_path, train={"watch_layers": 4})
    done = go(path, stages=("prepare", "train", "evaluate", "report"))
    looks = events(done, "layers")
    assert [e["step"] for e in looks] == [1, 4, 8, 12]
    for e in looks:
        assert set(e["layers"]) == {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"} and e["complaints"] == []
        for name, look in e["layers"].items():
            if e["step"] > 1 or name.startswith("layers.1"):  # the last layer starts at zero, and lets no gradient through
                assert look["gradient"] > 0 and look["update"] > 0
    total = math.sqrt(sum(x["gradient"] ** 2 for x in looks[0]["layers"].values()))
    assert total == pytest.approx(events(done, "step")[0]["grad_norm"], rel=1e-5)
    page = (done.folder / "report.html").read_text()
    assert "Update / weights, by layer" in page and "layers.1.weight" in page


def test_layers_that_vanish_or_explode_are_named_with_remedies() -> None:
    healthy = {f"blocks.{i}.weight": LayerLook(0.1, 10.0, 0.01) for i in range(5)}
    assert complaints(healthy) == []
    dead = complaints(healthy | {"first.weight": LayerLook(1e-12, 10.0, 0.0)})
    assert len(dead) == 1 and "vanishing gradients in first.weight" in dead[0] and "residual" in dead[0]
    wild = complaints(healthy | {"last.weight": LayerLook(1e5, 10.0, 1.0)})
    assert len(wild) == 1 and "exploding gradients in last.weight" in wild[0] and "clip" in wild[0]
    broken = complaints(healthy | {"odd.weight": LayerLook(math.nan, 10.0, None)})
    assert len(broken) == 1 and "not finite in odd.weight" in broken[0]


def test_trouble_is_told_when_it_lasts_and_not_of_a_head_that_starts_at_zero() -> None:
    body = {f"blocks.{i}.weight": LayerLook(1e-6, 10.0, 0.01) for i in range(5)}
    notes: dict[str, Any] = {}
    for step in range(10):  # the head grows from zero, slowly; its gradient stays what it was
        assert lasting_complaints(body | {"head.weight": LayerLook(0.5, 1e-5 * step, 0.1)}, notes) == []
    for step in range(4):  # now it does explode
        told = lasting_complaints(body | {"head.weight": LayerLook(5e3, 1e-4, 0.1)}, notes)
        assert bool(told) == (step >= 2)
    assert any("exploding gradients in head.weight" in t for t in told)
    notes = {}
    healthy = {f"blocks.{i}.weight": LayerLook(0.1, 10.0, 0.01) for i in range(5)}
    wild = healthy | {"last.weight": LayerLook(1e5, 10.0, 1.0)}
    assert [bool(lasting_complaints(look, notes)) for look in (wild, wild, healthy, wild, wild, wild, wild)] == [False] * 5 + [True] * 2
    assert "not finite" in lasting_complaints(healthy | {"odd.weight": LayerLook(math.nan, 10.0, None)}, {})[0]


def test_what_lies_behind_a_part_that_begins_at_zero_has_not_vanished() -> None:
    """A residual block whose last norm starts at zero: its convolution has no gradient at first, then a small one that grows."""
    notes: dict[str, Any] = {}
    body = {f"blocks.{i}.weight": LayerLook(0.1, 10.0, 0.01) for i in range(5)}
    for gradient in (0.0, 1e-12, 1e-10, 1e-8, 1e-3):
        assert lasting_complaints(body | {"conv.weight": LayerLook(gradient, 10.0, 0.0)}, notes) == []
    notes = {}
    dead = body | {"conv.weight": LayerLook(1e-12, 10.0, 0.0)}
    assert [bool(lasting_complaints(dead, notes)) for _ in range(3)] == [False, False, True]


def test_a_deep_narrow_network_is_told_that_its_gradients_vanish(tmp_path: Path) -> None:
    told: list[str] = []
    path = table_recipe(tmp_path, model={"hidden": [3] * 60, "activation": "tanh"}, train={"steps": 12, "watch_layers": 2})
    go(path, on_event=lambda kind, **facts: told.append(facts["message"]) if kind == "warning" else None)
    assert any("vanishing gradients in layers.0.weight" in t for t in told), told


def test_the_range_test_finds_the_edge_and_leaves_the_run_alone(tmp_path: Path, tauon: Tauon) -> None:
    path = table_recipe(tmp_path)
    ended = tauon("tune", path, "--lr-range", "--root", tmp_path / "runs", "--high", "1000", "--json", "optim={kind: sgd}")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out.splitlines()[-1])
    assert record["diverged"] and 1e-3 < record["steepest"] < 10 and len(record["rates"]) == len(record["losses"])
    assert record["rates"] == sorted(record["rates"])
    page = Path(record["page"]).read_text()
    assert "Learning-rate range test of table" in page
    assert not (tmp_path / "runs" / "table").exists()


def test_tune_says_what_it_can_do(tmp_path: Path, tauon: Tauon) -> None:
    ended = tauon("tune", table_recipe(tmp_path))
    assert ended.code == 2 and "--lr-range" in ended.err
