"""Runs with `distil`, `qat` and `model.from` a compressed model, through the pipeline: resume, lineage, refusals, two processes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tauon.artifacts import RunFolder, latest_checkpoint, load_checkpoint
from tauon.compress import Int4WeightOnly, Magnitude, Structured, compress_model, save_compressed
from tauon.compress.training import HealConfig
from tauon.config import parse
from tauon.errors import Interrupted, RecipeError, RunError
from tauon.models import from_record
from tauon.pipeline import run
from tauon.recipe import Recipe, to_yaml
from tauon.stages.context import Context, null_callback
from tauon.stages.healing import stage_healer
from tauon.stages.load import load_model
from tauon.testing import run_processes
from tauon.tracking import read_events
from toy import text_recipe

SMALL = {"model": {"kind": "gpt", "layers": 1, "width": 8, "heads": 2}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher, `runs/big`, and the same made sparse, `runs/big/compress`."""
    folder = tmp_path_factory.mktemp("distil")
    go(folder, "big", model={"kind": "gpt", "layers": 2, "width": 16, "heads": 2})
    checkpoint = latest_checkpoint(folder / "runs/big/checkpoints")
    assert checkpoint is not None
    recipe = tree(folder, "big", model={"kind": "gpt", "layers": 2, "width": 16, "heads": 2})
    model, _ = load_model(checkpoint, parse(Recipe, recipe))
    config = from_record(checkpoint.state["model"])
    task = parse(Recipe, recipe).task
    (folder / "runs/big/compress").mkdir()
    save_compressed(
        folder / "runs/big/compress/model", compress_model(model, task, None, [Magnitude(sparsity=0.5, pattern="2:4")], config=config)
    )
    shutil.copytree(folder / "runs/big", folder / "runs/cut")
    shutil.rmtree(folder / "runs/cut/compress/model")
    save_compressed(folder / "runs/cut/compress/model", compress_model(model, task, None, [Structured(remove=0.5)], config=config))
    return folder


def tree(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    base = yaml.safe_load(text_recipe(folder, **sections).read_text())
    return base | {"name": name}  # type: ignore[no-any-return]


def go(folder: Path, name: str, stop_at: int | None = None, **sections: Any) -> RunFolder | None:
    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    data = tree(folder, name, **sections)
    for key, value in sections.items():
        data[key] = value if key not in ("train", "data") else data[key]
    before = signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # training has its own; a signal that comes after it must not end the test process
    try:
        return run(parse(Recipe, data), root=folder / "runs", stages=("prepare", "train"), on_event=on_event)
    except Interrupted:
        assert stop_at is not None
        return None
    finally:
        signal.signal(signal.SIGTERM, before)


def groups(folder: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    found = latest_checkpoint(folder / "runs" / name / "checkpoints")
    assert found is not None
    return {g: found.tensors(g) for g in found.groups()}


def equal(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(a[g].keys() == b[g].keys() and all(torch.equal(a[g][k], b[g][k]) for k in a[g]) for g in a)


def distil(world: Path, **how: Any) -> dict[str, Any]:
    return SMALL | {"distil": {"teacher": str(world / "runs/big"), **how}}


# ------------------------------------------------------------------------------------------------ distil


def test_a_stopped_run_ends_as_one_that_was_not_and_both_record_the_teacher(world: Path) -> None:
    how = distil(world, features={"blocks.0": "blocks.1"}) | {"qat": {"group": 8, "start": 0.5}}
    go(world, "whole", **how)
    go(world, "stopped", stop_at=7, **how)
    go(world, "stopped", **how)
    whole = groups(world, "whole")
    assert equal(whole, groups(world, "stopped")) and set(whole) == {"model", "optim", "distil"}
    teacher = latest_checkpoint(world / "runs/big/checkpoints")
    done = latest_checkpoint(world / "runs/whole/checkpoints")
    assert teacher is not None and done is not None
    assert done.state["teacher"]["fingerprint"] == teacher.hash == RunFolder.read(world / "runs/whole").manifest()["teacher"]["fingerprint"]


def test_weight_zero_is_the_run_without_the_section(world: Path) -> None:
    go(world, "plain", **SMALL)
    go(world, "zero", **distil(world, weight=0.0))
    assert equal(groups(world, "plain"), groups(world, "zero"))


def test_another_teacher_at_resume_is_refused_and_a_finished_run_needs_none(world: Path) -> None:
    shutil.copytree(world / "runs/big", world / "runs/passing")
    how = SMALL | {"distil": {"teacher": str(world / "runs/passing")}}
    go(world, "kept", **how)
    go(world, "half", stop_at=5, **how)
    shutil.rmtree(world / "runs/passing")
    go(world, "kept", **how)
    go(world, "passing", model={"kind": "gpt", "layers": 1, "width": 8, "heads": 2})
    with pytest.raises(RunError, match="the teacher .* changed since this run began"):
        go(world, "half", **how)


def test_a_teacher_of_other_data_is_refused_and_what_differs_is_named(world: Path) -> None:
    data = yaml.safe_load(text_recipe(world).read_text())["data"] | {"tokenizer": "chars"}
    other = tree(world, "other", **SMALL) | {"data": data} | {"distil": {"teacher": str(world / "runs/big")}}
    with pytest.raises(RecipeError, match=r"distil\.teacher.*tokenizer: 25\d ids"):
        run(parse(Recipe, other), root=world / "runs", stages=("prepare", "train"), on_event=null_callback)
    longer = tree(world, "longer", **SMALL) | {"data": data | {"tokenizer": "bytes", "seq_len": 32}}
    with pytest.raises(RecipeError, match="its longest sequence is 16 tokens, not 32"):
        run(parse(Recipe, longer | {"distil": {"teacher": str(world / "runs/big")}}), root=world / "runs", stages=("prepare", "train"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"distil": {"teacher": "x"}, "privacy": {"noise_multiplier": 1.0, "delta": 1e-5}},
            "may have seen the training examples without noise",
        ),
        ({"distil": {"teacher": "x"}, "parallel": {"kind": "parameter-server"}}, "parameter-server"),
        ({"distil": {"teacher": "x"}, "parallel": {"kind": "mesh", "tensor": 2}}, r"parallel\.tensor"),
        ({"distil": {"teacher": "x", "feature_weight": 2}}, "no effect without features"),
        ({"distil": {"teacher": "x"}, "train": {"time": "1h", "batch": 4}}, "measured without the teacher"),
        ({"distil": {"teacher": "x"}, "task": "dpo"}, "does not work with task dpo"),
        ({"qat": {"weights": "int4", "activations": "int8"}}, "Set weights: int8"),
        ({"qat": {"weights": "int8", "group": 64}}, "int8 weights have one scale"),
        ({"qat": {}, "privacy": {"noise_multiplier": 1.0, "delta": 1e-5}}, "does not work with privacy"),
        ({"qat": {}, "train": {"steps": 9, "batch": 4, "early_stopping": {"patience": 2}}}, r"qat\.start=0"),
        ({"qat": {}, "model": {"from": "runs/x"}, "adapt": {"kind": "lora", "rank": 2}}, "`adapt` freezes"),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_anything_is_read(world: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, tree(world, "refused") | sections)


def test_a_recipe_without_the_sections_is_written_as_before(world: Path) -> None:
    text = to_yaml(parse(Recipe, tree(world, "plain")))
    assert "\ndistil" not in text and "\nqat" not in text


# ------------------------------------------------------------------------------------------------ qat


def test_a_qat_run_with_averaged_weights_resumes_exactly_and_its_checkpoint_is_that_of_a_plain_model(world: Path) -> None:
    how = SMALL | {"qat": {"weights": "int8", "activations": "int8", "start": 0.3}}
    train = yaml.safe_load(text_recipe(world).read_text())["train"] | {"ema": 0.9}
    for name, stop in (("aware", None), ("aware-stopped", 7), ("aware-stopped", None)):
        data = tree(world, name) | how | {"train": train}

        def on_event(kind: str, /, stop: int | None = stop, **facts: Any) -> None:
            if kind == "step" and facts["step"] == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            run(parse(Recipe, data), root=world / "runs", stages=("prepare", "train"), on_event=on_event)
        except Interrupted:
            assert stop is not None
    go(world, "plain-names", **SMALL)
    assert equal(groups(world, "aware"), groups(world, "aware-stopped"))
    assert groups(world, "aware")["model"].keys() == groups(world, "plain-names")["model"].keys()


# ------------------------------------------------------------------------------------------------ healing


def test_a_run_from_a_sparse_model_stays_sparse_and_so_does_one_from_that_run(world: Path) -> None:
    go(world, "healed", model={"from": str(world / "runs/big/compress")})
    go(world, "healed-again", model={"from": str(world / "runs/healed")})
    for name in ("healed", "healed-again"):
        found = latest_checkpoint(world / "runs" / name / "checkpoints")
        assert found is not None and found.state["sparse"]
        weights = found.tensors("model")
        for layer in found.state["sparse"]:
            w = weights[f"{layer}.weight"]
            assert (w.unflatten(1, (-1, 4)) != 0).sum(2).max() <= 2 and w.any()
    assert not torch.equal(groups(world, "healed")["model"]["embed.weight"], groups(world, "big")["model"]["embed.weight"])


def test_a_run_from_a_model_with_fewer_heads_goes_on_and_opens_again(world: Path) -> None:
    go(world, "thinner", model={"from": str(world / "runs/cut/compress")}, distil={"teacher": str(world / "runs/big")})
    found = latest_checkpoint(world / "runs/thinner/checkpoints")
    assert found is not None
    model, _ = load_model(found, parse(Recipe, tree(world, "thinner")))
    assert sum(p.numel() for p in model.parameters()) < sum(t.numel() for t in groups(world, "big")["model"].values())
    losses = [e["loss"] for e in read_events(world / "runs/thinner/events.jsonl") if e["kind"] == "validate"]
    assert losses[-1] < losses[0]


def test_the_stage_heals_on_the_runs_own_data(world: Path) -> None:
    recipe = parse(Recipe, tree(world, "big", model={"kind": "gpt", "layers": 2, "width": 16, "heads": 2}))
    ctx = Context(recipe, RunFolder.read(world / "runs/big"), null_callback)
    checkpoint = ctx.final_checkpoint
    model, _ = load_model(checkpoint, recipe)
    heal = stage_healer(ctx, HealConfig(steps=5), model)
    config = from_record(checkpoint.state["model"])
    steps = [Structured(remove=0.5), Int4WeightOnly()]
    a, b = (compress_model(model, recipe.task, None, steps, config=config, heal=heal) for _ in range(2))  # the second time from memory
    assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))
    assert stage_healer(ctx, None, model) is None
    private = parse(Recipe, tree(world, "big") | {"privacy": {"noise_multiplier": 1.0, "delta": 1e-5}, "optim": {"kind": "sgd", "lr": 0.1}})
    with pytest.raises(RecipeError, match=r"compress\.heal"):
        stage_healer(Context(private, None, null_callback), HealConfig(), model)


# ------------------------------------------------------------------------------------------------ processes


def on_two_ranks(data: dict[str, Any], root: str) -> None:
    torch.set_num_threads(1)
    for name, parallel in (("replicas", {"kind": "mesh", "replicate": 2}), ("shards", {"kind": "mesh", "shard": 2})):
        run(parse(Recipe, data | {"name": name, "parallel": parallel}), root=root, stages=("prepare", "train"))


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_equal_one(world: Path) -> None:
    how = {"distil": {"teacher": str(world / "runs/big"), "features": {"blocks.0": "blocks.1"}, "feature_weight": 0.1}}
    how |= {"model": {"from": str(world / "runs/big/compress")}, "qat": {"group": 8, "start": 0.3}}
    how |= {"optim": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}
    data = tree(world, "one") | how
    run(parse(Recipe, data), root=world / "runs", stages=("prepare", "train"))
    run_processes(on_two_ranks, 2, 200, data, str(world / "runs"))
    one = load_checkpoint(world / "runs/one/checkpoints/step-000012").tensors("model")
    for name in ("replicas", "shards"):
        two = load_checkpoint(world / "runs" / name / "checkpoints/step-000012").tensors("model")
        for k, v in one.items():
            torch.testing.assert_close(two[k], v, rtol=1e-3, atol=1e-4, msg=lambda m, k=k, name=name: f"{name} {k}: {m}")
