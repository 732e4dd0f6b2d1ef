"""The equivalence matrix: on every layout, ten steps in fp32 give the weights of one process to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
from layouts import ADAMW, CNN, GPT, GPT2, IMAGES, MUON, RESNET, SGD, TEXT, VIT, run_case, run_cases

from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed


def case(sizes: dict[str, int], model: dict[str, Any] = GPT, optim: dict[str, Any] = ADAMW, **more: Any) -> dict[str, Any]:
    spec = IMAGES if model in (CNN, RESNET, VIT) else TEXT
    parallel = {"kind": "mesh", **sizes, **more.pop("parallel", {})}
    return {"sizes": sizes, "parallel": parallel, "model": model, "optim": optim, "spec": spec, **more}


TWO = {
    "ddp": case({"replicate": 2}),
    "ddp, accumulation": case({"replicate": 2}, micro=4),
    "ddp, cnn": case({"replicate": 2}, CNN, SGD),
    "ddp, muon": case({"replicate": 2}, optim=MUON),
    "fsdp, muon": case({"shard": 2}, optim=MUON),
    "tensor, muon": case({"tensor": 2}, optim=MUON),
    "fsdp": case({"shard": 2}),
    "fsdp, whole after forward, accumulation": case({"shard": 2}, micro=2, parallel={"reshard_after_forward": False}),
    "fsdp, averaged weights": case({"shard": 2}, ema=0.9),
    "fsdp, cnn": case({"shard": 2}, CNN, SGD),
    "ddp, batch norm": case({"replicate": 2}, RESNET, SGD, ema=0.9),
    "fsdp, batch norm, checkpointing": case({"shard": 2}, RESNET, SGD, checkpointing=True),
    "fsdp, vit": case({"shard": 2}, VIT),
    "tensor, vit": case({"tensor": 2}, VIT),
    "fsdp, checkpointing": case({"shard": 2}, checkpointing=True),
    "tensor": case({"tensor": 2}),
    "tensor, gpt2, tied": case({"tensor": 2}, GPT2, SGD),
    "sequence": case({"tensor": 2}, parallel={"sequence_parallel": True}),
    "context": case({"context": 2}),
    "context, unpacked": case({"context": 2}, packed=False),
    "pipeline": case({"pipeline": 2}),
    "pipeline, muon": case({"pipeline": 2}, optim=MUON | {"embed_lr": 1e-3, "lr_scale": {"head.*": 0.5}}),
    "pipeline, gpipe": case({"pipeline": 2}, parallel={"schedule": "gpipe", "stage_microbatches": 4}),
    "pipeline, interleaved": case({"pipeline": 2}, parallel={"schedule": "interleaved-1f1b"}),
    "pipeline, zero-bubble": case({"pipeline": 2}, parallel={"schedule": "zero-bubble"}),
}
FOUR = {
    "ddp": case({"replicate": 4}),
    "fsdp": case({"shard": 4}),
    "hybrid": case({"replicate": 2, "shard": 2}),
    "fsdp x tensor": case({"shard": 2, "tensor": 2}),
    "fsdp x sequence": case({"shard": 2, "tensor": 2}, parallel={"sequence_parallel": True}),
    "ddp x tensor": case({"replicate": 2, "tensor": 2}, micro=4),
    "fsdp x context": case({"shard": 2, "context": 2}),
    "ddp x context": case({"replicate": 2, "context": 2}),
    "context x tensor": case({"context": 2, "tensor": 2}),
    "pipeline x fsdp": case({"pipeline": 2, "shard": 2}),
    "pipeline x ddp": case({"pipeline": 2, "replicate": 2}),
    "pipeline x tensor": case({"pipeline": 2, "tensor": 2}),
    "pipeline x context": case({"pipeline": 2, "context": 2}),
    "pipeline of four": case({"pipeline": 4}),
    "interleaved x fsdp": case({"pipeline": 2, "shard": 2}, parallel={"schedule": "interleaved-1f1b"}),
    "interleaved x sequence": case({"pipeline": 2, "tensor": 2}, parallel={"schedule": "interleaved-1f1b", "sequence_parallel": True}),
    "interleaved x context": case({"pipeline": 2, "context": 2}, parallel={"schedule": "interleaved-1f1b"}),
}


def alone(one: dict[str, Any]) -> dict[str, Any]:
    """The same case in one process."""
    return run_case({**one, "sizes": {}, "parallel": {"kind": "mesh"}})


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, dict[str, Any]]]:
    return run_processes(run_cases, 2, 400, TWO)


@pytest.fixture(scope="module")
def on_four() -> list[dict[str, dict[str, Any]]]:
    return run_processes(run_cases, 4, 400, FOUR)


def assert_equal(ranks: list[dict[str, dict[str, Any]]], name: str, one: dict[str, Any]) -> None:
    expected = alone(one)
    seen: set[str] = set()
    for rank in ranks:
        found = rank[name]
        for step, (got, want) in enumerate(zip(found["steps"], expected["steps"], strict=True)):
            assert got == pytest.approx(want, abs=2e-5), f"loss and gradient norm of step {step + 1}"
        for parameter, weights in found["weights"].items():
            worst = (weights - expected["weights"][parameter]).abs().max().item()
            assert worst < 1e-5, f"{parameter} differs by {worst:g}"
        assert found["examples"] == expected["examples"]
        seen |= set(found["weights"])
    assert seen == set(expected["weights"])


@pytest.mark.parametrize("name", TWO)
def test_two_processes_compute_what_one_does(on_two: list[dict[str, dict[str, Any]]], name: str) -> None:
    assert_equal(on_two, name, TWO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_compute_what_one_does(on_four: list[dict[str, dict[str, Any]]], name: str) -> None:
    assert_equal(on_four, name, FOUR[name])
