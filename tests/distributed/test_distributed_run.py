"""A run on several processes, through the pipeline: the same losses as one, other layouts on the way, errors on every rank."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tauon.artifacts import load_checkpoint
from tauon.config import parse
from tauon.errors import Interrupted, RecipeError, RunError, TauonError
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.testing.processes import run_processes
from tauon.tracking import read_events, timeline

pytestmark = pytest.mark.distributed


def recipe(folder: Path, name: str, **parallel: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 5,
        "data": {
            "source": {"kind": "text", "path": str(folder / "text")},
            "tokenizer": "bytes",
            "seq_len": 32,
            "split": {"validation": "20%"},
        },
        "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 2, "width": 32, "heads": 4},
        "optim": {"kind": "adamw", "lr": 1e-3, "eps": 1e-6},
        "train": {"steps": 12, "batch": 8, "ema": 0.9, "validate_every": 6},
        "parallel": {"kind": "mesh", **parallel} if parallel else "auto",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed")
    (path / "text").mkdir()
    for i in range(8):
        (path / "text" / f"{i}.txt").write_text("\n".join(f"line {i * 31 + k}: {'abcdefgh'[k % 8] * (k % 13)}" for k in range(60)))
    return path


def stage(data: dict[str, Any], root: str, stop_at: int | None = None) -> str:
    """Train in this process and its like, to the end or until a signal at step `stop_at`."""
    os.environ["TAUON_CACHE"] = root + "/cache"
    torch.set_num_threads(1)

    def on_event(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run(parse(Recipe, data), root=root, stages=("prepare", "train"), on_event=on_event)
    except Interrupted as err:
        return str(err)
    return "done"


def on_ranks(data: dict[str, Any], root: str, stop_at: int | None = None) -> str:
    return stage(data, root, stop_at)


def losses(root: Path, name: str) -> dict[int, float]:
    events = timeline(read_events(root / name / "events.jsonl"))
    return {e["step"]: e["loss"] for e in events if e["kind"] == "step"}


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[int, float]:
    assert stage(recipe(folder, "alone"), str(folder)) == "done"
    return losses(folder, "alone")


def weights(root: Path, name: str, group: str = "model") -> dict[str, torch.Tensor]:
    return load_checkpoint(root / name / "checkpoints" / "step-000012").tensors(group)


def assert_same_run(folder: Path, name: str, undisturbed: dict[int, float]) -> None:
    found = losses(folder, name)
    assert list(found) == list(undisturbed)
    assert max(abs(found[s] - undisturbed[s]) for s in found) < 1e-6
    for group in ("model", "ema", "optim"):
        mine, want = weights(folder, name, group), weights(folder, "alone", group)
        assert set(mine) == set(want)
        assert max((mine[k] - want[k]).abs().max().item() for k in want) < 1e-5


@pytest.mark.parametrize("layout", [{}, {"shard": 2}], ids=["ddp", "fsdp"])
def test_two_processes_leave_the_run_that_one_leaves(folder: Path, undisturbed: dict[int, float], layout: dict[str, int]) -> None:
    name = "two-" + "-".join([*layout, "auto"][:1])
    assert run_processes(on_ranks, 2, 400, recipe(folder, name, **layout), str(folder)) == ["done", "done"]
    assert_same_run(folder, name, undisturbed)


@pytest.mark.parametrize("layout", [{}, {"pipeline": 2}], ids=["ddp", "pipeline"])
def test_a_batch_that_does_not_divide_is_learned_from_whole(folder: Path, layout: dict[str, int]) -> None:
    odd, name = {"train": {"steps": 4, "batch": 5, "validate_every": 4}}, f"odd-{len(layout)}"
    assert stage(recipe(folder, f"{name}-alone") | odd, str(folder)) == "done"
    assert run_processes(on_ranks, 2, 400, recipe(folder, f"{name}-two", **layout) | odd, str(folder)) == ["done", "done"]
    one, two = losses(folder, f"{name}-alone"), losses(folder, f"{name}-two")
    assert max(abs(one[s] - two[s]) for s in one) < 1e-6
    state = json.loads((folder / f"{name}-two" / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["examples"] == 20


def halted_and_again(data: dict[str, Any], root: str, at: int) -> tuple[str, str]:
    return stage(data, root, at), stage(data, root)


def test_two_processes_that_were_stopped_go_on(folder: Path, undisturbed: dict[int, float]) -> None:
    name = "stopped-two"
    for stopped, done in run_processes(halted_and_again, 2, 400, recipe(folder, name), str(folder), 5):
        assert "saved at step 5 of 12" in stopped
        assert done == "done"
    assert_same_run(folder, name, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"pipeline": 2, "context": 2}, {"pipeline": 2, "tensor": 2}, {"shard": 2, "context": 2}], ids=str)
def test_validation_on_four_processes_is_that_of_one(folder: Path, undisturbed: dict[int, float], layout: dict[str, int]) -> None:
    name = f"four-{'-'.join(layout)}"
    run_processes(on_ranks, 4, 400, recipe(folder, name, **layout), str(folder))
    assert_same_run(folder, name, undisturbed)
    found, want = (
        {e["step"]: e["loss"] for e in read_events(folder / n / "events.jsonl") if e["kind"] == "validate"} for n in (name, "alone")
    )
    assert found == pytest.approx(want, abs=1e-6)
    assert list(found) == [6, 12]


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes_and_other_layouts(folder: Path, undisturbed: dict[int, float]) -> None:
    name, root = "one-two-four-one", str(folder)
    assert "saved at step 3 of 12" in stage(recipe(folder, name), root, 3)
    for said in run_processes(on_ranks, 2, 400, recipe(folder, name, pipeline=2), root, 6):
        assert "saved at step 6 of 12" in said
    for said in run_processes(on_ranks, 4, 400, recipe(folder, name, shard=2, tensor=2), root, 9):
        assert "saved at step 9 of 12" in said
    assert stage(recipe(folder, name), root) == "done"
    assert_same_run(folder, name, undisturbed)
    state = json.loads((folder / name / "checkpoints" / "step-000012" / "state.json").read_text())
    assert (state["step"], state["examples"]) == (12, 96)


def refused(data: dict[str, Any], root: str, other_rank: dict[str, Any] | None = None) -> tuple[str, str]:
    """What a rank says when it cannot start: (class, message)."""
    if other_rank is not None and dist.get_rank() == 1:
        data = other_rank
    try:
        stage(data, root)
    except TauonError as err:
        return type(err).__name__, str(err)
    return "", ""


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a mesh that does not multiply": ({"parallel": {"tensor": 3}}, "tensor 3 needs 3 processes, but 2 are running"),
    "heads": (
        {"parallel": {"tensor": 2}, "model": {"kind": "gpt", "layers": 2, "width": 30, "heads": 3}},
        "which does not divide the model's 3 heads",
    ),
    "layers": (
        {"parallel": {"pipeline": 2}, "model": {"kind": "gpt", "layers": 1, "width": 32, "heads": 4}},
        "needs 2 stages, but the model has only 1 layers",
    ),
    "a batch smaller than the ranks": ({"train": {"steps": 2, "batch": 1}}, "is 1, but there are 2 data-parallel processes"),
    "a batch smaller than the stages": (
        {"parallel": {"pipeline": 2}, "train": {"steps": 2, "batch": 1}},
        "needs at least 2 microbatches per process, but got 1 examples",
    ),
    "microbatches of a pipeline": (
        {"parallel": {"pipeline": 2}, "train": {"steps": 2, "batch": 8, "microbatch": 2}},
        "set parallel.stage_microbatches, the number of microbatches",
    ),
    "no blocks to cut": (
        {
            "parallel": {"pipeline": 2},
            "task": "classification",
            "data": {"source": {"kind": "sklearn", "name": "iris"}},
            "model": {"kind": "mlp"},
        },
        "has no blocks to split",
    ),
    "tied head over stages": (
        {"parallel": {"pipeline": 2}, "model": {"kind": "gpt2", "layers": 2, "width": 32, "heads": 4}},
        "Set model.tied=false",
    ),
    "positions": (
        {"parallel": {"context": 2}, "model": {"kind": "gpt", "layers": 2, "width": 30, "heads": 3}},
        "does not divide the model's 3 heads",
    ),
}


def all_refused(cases: dict[str, dict[str, Any]], root: str) -> dict[str, tuple[str, str]]:
    return {name: refused(data, root) for name, data in cases.items()}


def test_what_cannot_work_is_refused_on_every_rank_at_the_start(folder: Path) -> None:
    cases = {name: recipe(folder, f"bad-{i}") | changes for i, (name, (changes, _)) in enumerate(BAD.items())}
    ranks = run_processes(all_refused, 2, 400, cases, str(folder))
    for name, (_, words) in BAD.items():
        for rank in ranks:
            assert rank[name][0] == RecipeError.__name__, name
            assert words in rank[name][1], name


def test_ranks_with_different_recipes_say_so(folder: Path) -> None:
    one, other = recipe(folder, "differs"), recipe(folder, "differs") | {"seed": 6}
    for kind, text in run_processes(refused, 2, 400, one, str(folder), other):
        assert kind == RunError.__name__
        assert "the recipe differs between ranks: rank 0 has" in text


def without_the_data(data: dict[str, Any], root: str) -> tuple[str, str]:
    if dist.get_rank() == 1:
        data["data"]["source"]["path"] = "/nowhere"
        root = root + "/another"  # a machine of its own, without the cache
        data = {**data, "name": data["name"]}
    from tauon.stages import engine

    engine.refuse_other_code = lambda recipe, world: None  # the paths differ only in where each machine keeps the files
    try:
        stage(data, root)
    except TauonError as err:
        return type(err).__name__, str(err)
    return "", ""


def test_a_rank_without_the_data_is_named_on_all(folder: Path) -> None:
    for kind, text in run_processes(without_the_data, 2, 400, recipe(folder, "elsewhere"), str(folder)):
        assert kind == "DataError"
        assert "rank 1 of 2" in text
        assert "/nowhere" in text


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"shard": 2, "tensor": 2}, {"pipeline": 2, "replicate": 2}], ids=["ddp", "fsdp-tensor", "pipeline"])
def test_a_run_that_goes_on_with_the_same_layout_differs_in_no_bit(folder: Path, layout: dict[str, int]) -> None:
    names = [f"{kind}-{'-'.join(layout) or 'ddp'}" for kind in ("calm", "halted")]
    run_processes(on_ranks, 4, 400, recipe(folder, names[0], **layout), str(folder))
    run_processes(on_ranks, 4, 400, recipe(folder, names[1], **layout), str(folder), 5)
    run_processes(on_ranks, 4, 400, recipe(folder, names[1], **layout), str(folder))
    for group in ("model", "ema", "optim"):
        files = [(folder / name / "checkpoints" / "step-000012" / f"{group}.safetensors").read_bytes() for name in names]
        assert files[0] == files[1], group
