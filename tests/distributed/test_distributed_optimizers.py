"""Optimizers, clipping by layer and unit, and the look at every layer: the same on layouts as in one process; refused where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layouts import GPT, TEXT, make_job, run_case, run_cases

from tauon.errors import RecipeError
from tauon.testing.processes import run_processes
from tauon.train import train_step, watch_layers

pytestmark = pytest.mark.distributed

EPS = {"eps": 1e-6}
OPTIMIZERS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "shard, adagrad": ({"shard": 2}, {"kind": "adagrad", "lr": 0.01, "initial_sum": 0.1}),
    "shard, rmsprop": ({"shard": 2}, {"kind": "rmsprop", "lr": 1e-3, "momentum": 0.5, "eps": 1e-3}),
    "tensor, rmsprop": ({"tensor": 2}, {"kind": "rmsprop", "lr": 1e-3, "eps": 1e-3}),
    "shard, schedule-free": ({"shard": 2}, {"kind": "schedule-free", "lr": 1e-3, **EPS}),
    "replicate, soap": ({"replicate": 2}, {"kind": "soap", "lr": 1e-4, "eps": 1e-3}),
    "replicate, adafactor": ({"replicate": 2}, {"kind": "adafactor", "lr": 1e-3}),
    "shard, clipped by layer": ({"shard": 2}, {"kind": "adamw", "lr": 1e-3, "clip_layer": 0.02, "clip_value": 0.01, **EPS}),
    "tensor, clipped by unit": ({"tensor": 2}, {"kind": "adamw", "lr": 1e-3, "clip_adaptive": 0.01, **EPS}),
    "shard, clipped by unit": ({"shard": 2}, {"kind": "adamw", "lr": 1e-3, "clip_adaptive": 0.01, **EPS}),
    "pipeline, clipped by layer": ({"pipeline": 2}, {"kind": "adamw", "lr": 1e-3, "clip_layer": 0.02, **EPS}),
}


def case(sizes: dict[str, int], optim: dict[str, Any]) -> dict[str, Any]:
    return {"sizes": sizes, "parallel": {"kind": "mesh", **sizes}, "model": GPT, "optim": optim, "spec": TEXT, "steps": 5}


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, dict[str, Any]]]:
    return run_processes(run_cases, 2, 240, {name: case(*of) for name, of in OPTIMIZERS.items()})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_compute_what_one_does(on_two: list[dict[str, dict[str, Any]]], name: str) -> None:
    alone = run_case(case({}, OPTIMIZERS[name][1]))
    seen: set[str] = set()
    for rank in on_two:
        made = rank[name]
        assert made["steps"][-1] == pytest.approx(alone["steps"][-1], rel=1e-4)
        for weight, value in made["weights"].items():
            seen.add(weight)
            torch.testing.assert_close(value, alone["weights"][weight], rtol=0, atol=1e-5, msg=lambda m, w=weight: f"{w}: {m}")
    assert seen == set(alone["weights"])


def looks(sizes: dict[str, int]) -> dict[str, tuple[float, float, float | None]]:
    """Three steps, the third looked at."""
    torch.set_num_threads(1)
    optim = {"kind": "sgd", "lr": 0.1}
    job = watch_layers(make_job(sizes, {"kind": "mesh", **sizes}, GPT, optim, TEXT, steps=3), every=3)
    job.model.train()
    found: Any = None
    for step in range(3):
        found = train_step(job, job.loader.batch_at(step)).get("layers", None)
        assert (found is not None) == (step in (0, 2))
    return {name: (x.gradient, x.weight, x.update) for name, x in found.items()}


@pytest.mark.parametrize("sizes", [{"shard": 2}, {"tensor": 2}, {"replicate": 2}])
def test_every_layer_looks_the_same_in_pieces(sizes: dict[str, int]) -> None:
    alone = looks({})
    for rank in run_processes(looks, 2, 400, sizes):
        assert rank.keys() == alone.keys()
        for name, numbers in rank.items():
            assert numbers == pytest.approx(alone[name], rel=2e-3, abs=1e-6), name


def refused(kind: str) -> str:
    try:
        make_job({"shard": 2}, {"kind": "mesh", "shard": 2}, GPT, {"kind": kind}, TEXT)
    except RecipeError as err:
        return str(err)
    return ""


@pytest.mark.parametrize("kind", ["soap", "adafactor"])
def test_what_needs_whole_weights_is_refused_in_pieces(kind: str) -> None:
    for said in run_processes(refused, 2, 400, kind):
        assert f"optim.kind: {kind}" in said and "does not support sharded weights" in said
