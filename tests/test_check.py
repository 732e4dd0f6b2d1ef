"""`tauon check` finds nothing where a layout is right, and names the first layer where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tauon.config import dump, parse
from tauon.distributed import World
from tauon.errors import RecipeError
from tauon.models import GPT
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe
from tauon.stages.check import Finding, compare, first_divergent, reference, scaled_down
from tauon.stages.context import null_callback
from tauon.testing.processes import run_processes
from tones import tone, write_wav
from toy import Tauon, table_recipe, text_recipe, words, write

pytestmark = [pytest.mark.distributed, pytest.mark.long]

GPT_TOY = {"kind": "gpt", "layers": 2, "width": 32, "heads": 4, "dropout": 0.1}


def on_the_layout(folder: str, recipe: dict[str, Any], sabotage: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    torch.set_num_threads(1)
    if sabotage == "plan":  # heads are cut, and the weight that is applied to each of them is taken for one that sees them all
        GPT.shard_plan = {k: v for k, v in GPT.shard_plan.items() if v != "per-head"}
    elif sabotage == "layer" and dist.get_rank() == 1:
        import tauon.stages.check as check

        take = check._outputs

        def spoilt(job: Any, batch: Any) -> Any:
            handle = job.model.blocks[1].register_forward_hook(lambda block, args, out: out * 1.001, prepend=True)
            try:
                return take(job, batch)
            finally:
                handle.remove()

        check._outputs = spoilt
    elif sabotage == "update":  # one process decays its weights, the other does not
        import tauon.stages.check as check

        build = check._job

        def undecayed(*args: Any) -> Any:
            job, loader = build(*args)
            update = job.functions.update

            def stronger(job: Any) -> None:
                update(job)
                with torch.no_grad():
                    job.model.blocks[0].mlp.up.weight.mul_(0.99)

            job.functions = replace(job.functions, update=stronger)
            return job, loader

        check._job = undecayed
    world = World(dist.get_rank(), dist.get_world_size())
    findings, sent, _ = compare(parse(Recipe, recipe), Path(folder), world, on_event=null_callback)
    return [f.to_json() for f in findings], sent


@pytest.mark.parametrize(
    ("parallel", "sabotage", "begins", "optim"),
    [
        ({"replicate": 2}, "", None, "adamw"),
        ({"replicate": 2}, "", None, "muon"),
        ({"replicate": 2}, "update", ("loss", "step 2"), "muon"),
        ({"replicate": 2}, "layer", ("output", "blocks.1"), "adamw"),
        ({"tensor": 2}, "plan", ("gradient", "norm"), "adamw"),
        ({"pipeline": 2}, "", None, "adamw"),
        ({"tensor": 2, "sequence_parallel": True}, "", None, "adamw"),
        ({"replicate": 2}, "update", ("loss", "step 2"), "adamw"),
    ],
)
def test_findings(tmp_path: Path, parallel: dict[str, Any], sabotage: str, begins: tuple[str, str] | None, optim: str) -> None:
    """Muon iterates in bf16, which makes much of rounding; a true difference is found all the same."""
    path = text_recipe(tmp_path, model=GPT_TOY, optim={"kind": optim}, parallel={"kind": "mesh", **parallel}, train={"batch": 8})
    recipe = load_recipe(path)
    reference(recipe, tmp_path, steps=2, processes=2, on_event=null_callback)
    ranks = run_processes(on_the_layout, 2, 400, str(tmp_path), dump(recipe), sabotage)
    assert ranks[0] == ranks[1] or ranks[0][0] == ranks[1][0]
    found = [Finding(**{k: v for k, v in f.items() if k != "fine"}) for f in ranks[0][0]]
    assert {f.what for f in found} == {"output", "loss", "gradient", "update"}
    assert sum(ranks[0][1].values()) > 0
    bad = first_divergent(found)
    if begins is None:
        assert bad is None
    else:
        assert bad is not None
        assert (bad.what, begins[1] in bad.name) == (begins[0], True)
        if sabotage == "update":
            assert "blocks.0.mlp.up.weight" in [f.name for f in found if f.what == "update" and not f.fine]
        if begins[0] == "output":
            assert [f.name for f in found if f.what == "output" and not f.fine] == ["blocks.1"]


def test_the_command_prints_what_was_compared_and_what_a_step_sends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text_recipe(tmp_path, model=GPT_TOY)
    ended = Tauon(capsys)("check", path, "--on", "local:2", "--steps", "2", "--json", "parallel.shard=2")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.strip().splitlines()[-1])
    assert found["layout"] == "shard 2"
    assert all(f["fine"] for f in found["findings"])
    assert set(found["sent"]) >= {"all-gather", "reduce-scatter"}


def test_a_large_layout_is_scaled_down_to_what_is_here(tmp_path: Path) -> None:
    path = text_recipe(tmp_path, model=GPT_TOY, parallel={"kind": "mesh", "shard": 8, "tensor": 4, "pipeline": 2})
    small, n, said = scaled_down(load_recipe(path), 64, 4)
    assert (n, small.parallel.raw_value("tensor"), small.parallel.raw_value("pipeline"), small.parallel.raw_value("shard")) == (4, 2, 2, 1)
    assert "shard not checked" in said
    other = load_recipe(path, ["parallel=diloco"])
    with pytest.raises(RecipeError, match="cannot be checked"):
        scaled_down(other, 2, 2)
    rounded = load_recipe(path, ["parallel={kind: mesh, replicate: 2, compression: int8}"])
    with pytest.raises(RecipeError, match="Check with parallel.compression=none"):
        scaled_down(rounded, 2, 2)


def test_what_cannot_work_is_told_before_any_work(tmp_path: Path) -> None:
    recipe = load_recipe(text_recipe(tmp_path, model=GPT_TOY), ["parallel.tensor=3"])
    with pytest.raises(RecipeError, match="is 3, which does not divide the model's 4 heads"):
        reference(recipe, tmp_path, steps=1, processes=3, on_event=null_callback)
    assert not list(tmp_path.glob("step-*"))


def on_pictures(folder: str, recipe: dict[str, Any], sabotage: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    if sabotage:  # every process normalises by its own rows
        from tauon.train import build

        build.share_statistics = lambda model, mesh: None
    findings, _, _ = compare(parse(Recipe, recipe), Path(folder), World(dist.get_rank(), dist.get_world_size()), on_event=null_callback)
    return [f.to_json() for f in findings]


@pytest.mark.parametrize(("parallel", "sabotage"), [({"replicate": 2}, False), ({"shard": 2}, False), ({"replicate": 2}, True)])
def test_batch_norm_over_processes_is_what_one_process_computes(tmp_path: Path, parallel: dict[str, Any], sabotage: bool) -> None:
    """Also with mixed pairs, whose partners lie on the other rank; and where statistics are each process's own, the check says so."""
    import numpy as np

    y = np.arange(60) % 3
    x = (np.random.default_rng(0).integers(0, 120, (60, 1, 8, 8)) + 40 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, y=y)
    data = {
        "source": {"kind": "npz", "path": str(tmp_path / "pictures.npz")},
        "mix": {"mixup": 0.4},
        "augment": [{"kind": "crop", "padding": 1}],
    }
    model = {"kind": "resnet20", "drop_path": 0.1}
    path = table_recipe(
        tmp_path, data=data, model=model, parallel={"kind": "mesh", **parallel}, optim={"kind": "sgd", "lr": 0.05}, train={"batch": 12}
    )
    recipe = load_recipe(path)
    reference(recipe, tmp_path, steps=2, processes=2, on_event=null_callback)
    ranks = run_processes(on_pictures, 2, 400, str(tmp_path), dump(recipe), sabotage)
    bad = first_divergent([Finding(**{k: v for k, v in f.items() if k != "fine"}) for f in ranks[0]])
    assert (bad is not None) == sabotage, bad


def toy_layout(folder: str, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    findings, _, _ = compare(parse(Recipe, recipe), Path(folder), World(dist.get_rank(), dist.get_world_size()), on_event=null_callback)
    return [f.to_json() for f in findings]


def spoken(folder: Path) -> Path:
    for i in range(24):
        write_wav(folder / "w" / "ab"[i % 2] / f"{i}.wav", tone(300 + 300 * (i % 2), 0.2, 8000, seed=i), 8000)
    model = {"kind": "speech-cnn", "channels": [4, 4], "mels": 12, "freq_masks": 2, "time_masks": 2, "dropout": 0.2}
    source = {"kind": "wav", "path": str(folder / "w")}
    base = {"name": "spoken", "data": {"source": source, "augment": ["gain"]}, "task": "audio-classification", "model": model}
    return write(
        folder / "spoken.yaml", base | {"optim": {"kind": "adamw", "lr": 1e-3}, "train": {"steps": 4, "batch": 8, "precision": "fp32"}}
    )


def preferred(folder: Path) -> Path:
    base = text_recipe(folder, data={"seq_len": 64}, train={"steps": 2})
    run(load_recipe(base), root=folder / "runs", stages=("prepare", "train"))
    lines = [json.dumps({"prompt": words(2, i), "chosen": words(3, i + 50), "rejected": words(4, i + 90)}) for i in range(20)]
    (folder / "p.jsonl").write_text("\n".join(lines))
    model = {"kind": "checkpoint", "from": str(folder / "runs" / "toy")}
    data = {"source": {"kind": "pairs", "path": str(folder / "p.jsonl")}, "seq_len": 64, "split": {"validation": 0.2}}
    recipe = {"name": "prefer", "data": data, "task": "dpo", "model": model, "optim": {"kind": "adamw", "lr": 1e-3}}
    return write(folder / "prefer.yaml", recipe | {"train": {"steps": 4, "batch": 8, "precision": "fp32"}})


@pytest.mark.parametrize("make", [spoken, preferred])
def test_masks_are_off_and_a_pair_is_two_rows(tmp_path: Path, make: Any) -> None:
    recipe = load_recipe(make(tmp_path))
    said: list[str] = []
    reference(recipe, tmp_path, steps=2, processes=2, on_event=lambda kind, **facts: said.append(facts.get("message", "")))
    if make is spoken:
        assert any("freq_masks" in s and "dropout" in s for s in said)
    ranks = run_processes(toy_layout, 2, 100, str(tmp_path), dump(recipe))
    found = [Finding(**{k: v for k, v in f.items() if k != "fine"}) for f in ranks[0]]
    assert first_divergent(found) is None and sum(f.what == "output" for f in found) > 0
    if make is preferred:
        with pytest.raises(RecipeError, match="reads pairs of rows"):
            reference(
                load_recipe(tmp_path / "prefer.yaml", ["parallel.tensor=2"]),
                tmp_path / "tensor",
                steps=1,
                processes=2,
                on_event=null_callback,
            )
