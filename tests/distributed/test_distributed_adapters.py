"""Adapters, frozen layers, rates by layer and the shapes of published models, on every layout: ten steps give the weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import ADAMW, GPT, GPT2, SGD, TEXT, run_case, run_cases

from tauon.artifacts import save_checkpoint
from tauon.config import dump, parse
from tauon.models import ModelConfig, materialize
from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed

LORA = {"kind": "lora", "rank": 3}  # a rank that two processes cannot share
DORA = {"kind": "dora", "rank": 3, "also": ["*norm*"]}
QWEN = {"kind": "qwen2", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 6, "window": 5}
BERT = {"kind": "bert", "layers": 2, "width": 32, "heads": 4, "dropout": 0.0}
FROZEN = {"freeze": ("embed.*", "blocks.0.*")}
BY_LAYER = {**ADAMW, "layer_decay": 0.5, "lr_scale": {"*norm*": 3.0}}


def case(sizes: dict[str, int], model: dict[str, Any], optim: dict[str, Any] = ADAMW, **more: Any) -> dict[str, Any]:
    return {
        "sizes": sizes,
        "parallel": {"kind": "mesh", **sizes, **more.pop("parallel", {})},
        "model": model,
        "optim": optim,
        "spec": TEXT,
        **more,
    }


CASES: dict[str, Any] = {
    "lora, ddp": ({"replicate": 2}, GPT, LORA, {}),
    "lora, fsdp": ({"shard": 2}, GPT, LORA, {"ema": 0.9}),
    "lora, tensor": ({"tensor": 2}, GPT, LORA, {}),
    "lora, sequence": ({"tensor": 2}, GPT, LORA, {"parallel": {"sequence_parallel": True}}),
    "lora, context": ({"context": 2}, GPT, LORA, {}),
    "lora, pipeline": ({"pipeline": 2}, GPT, LORA, {}),
    "lora, interleaved": ({"pipeline": 2}, GPT, LORA, {"parallel": {"schedule": "interleaved-1f1b"}}),
    "lora, zero-bubble": ({"pipeline": 2}, GPT, LORA, {"parallel": {"schedule": "zero-bubble"}}),
    "lora, checkpointing, accumulation": ({"shard": 2}, GPT, LORA, {"checkpointing": True, "micro": 4}),
    "lora, gpt2, tensor": ({"tensor": 2}, GPT2, LORA, {"optim": SGD}),
    "dora, ddp": ({"replicate": 2}, GPT, DORA, {}),
    "dora, fsdp": ({"shard": 2}, GPT, DORA, {}),
    "dora, tensor": ({"tensor": 2}, GPT, DORA, {}),
    "frozen, ddp": ({"replicate": 2}, GPT, None, FROZEN),
    "frozen, fsdp": ({"shard": 2}, GPT, None, FROZEN),
    "frozen, tensor": ({"tensor": 2}, GPT, None, FROZEN),
    "frozen, pipeline": ({"pipeline": 2}, GPT, None, FROZEN),
    "by layer, fsdp": ({"shard": 2}, GPT, None, {"optim": BY_LAYER}),
    "by layer, pipeline": ({"pipeline": 2}, GPT, None, {"optim": BY_LAYER}),
    "qwen2, fsdp": ({"shard": 2}, QWEN, None, {}),
    "qwen2, tensor": ({"tensor": 2}, QWEN, None, {}),
    "qwen2, context": ({"context": 2}, QWEN, None, {}),
    "qwen2, pipeline": ({"pipeline": 2}, QWEN, None, {}),
    "bert, ddp": ({"replicate": 2}, BERT, None, {}),
    "bert, fsdp": ({"shard": 2}, BERT, None, {}),
    "bert, tensor": ({"tensor": 2}, BERT, None, {}),
    "bert, context": ({"context": 2}, BERT, None, {}),
}


QUICK = ("lora, fsdp", "dora, tensor", "lora, pipeline", "frozen, fsdp", "qwen2, tensor", "bert, tensor")


def base(folder: Path, record: dict[str, Any]) -> str:
    """A checkpoint of this architecture in which the head is not zero."""
    config = parse(ModelConfig, record).resolve(TEXT)
    model = materialize(config, seed=8)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))  # type: ignore[union-attr,operator]
    return str(save_checkpoint(folder, 0, {"model": dict(model.state_dict())}, {"model": dump(config)}).path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folders = {id(m): base(tmp_path_factory.mktemp("base"), m) for m in (GPT, GPT2)}
    made = {}
    for name, (sizes, model, adapt, more) in CASES.items():
        model = model if adapt is None else {**model, "from": folders[id(model)], "adapt": adapt}
        made[name] = case(sizes, model, **more)
    return made


@pytest.fixture(scope="module")
def on_two(cases: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    return run_processes(run_cases, 2, 400, {name: cases[name] for name in QUICK})


@pytest.fixture(scope="module")
def on_two_slowly(cases: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    return run_processes(run_cases, 2, 400, {name: cases[name] for name in CASES if name not in QUICK})


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_compute_what_one_does(on_two: list[dict[str, dict[str, Any]]], cases: dict[str, dict[str, Any]], name: str) -> None:
    assert_equal(on_two, cases, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_and_so_they_do_on_every_other_layout(
    on_two_slowly: list[dict[str, dict[str, Any]]], cases: dict[str, dict[str, Any]], name: str
) -> None:
    assert_equal(on_two_slowly, cases, name)


def assert_equal(ranks: list[dict[str, dict[str, Any]]], cases: dict[str, dict[str, Any]], name: str) -> None:
    expected = run_case({**cases[name], "sizes": {}, "parallel": {"kind": "mesh"}})
    seen: set[str] = set()
    for rank in ranks:
        found = rank[name]
        for step, (got, want) in enumerate(zip(found["steps"], expected["steps"], strict=True)):
            assert got == pytest.approx(want, abs=2e-5), f"loss and gradient norm of step {step + 1}"
        for parameter, weights in found["weights"].items():
            worst = (weights - expected["weights"][parameter]).abs().max().item()
            assert worst < 1e-5, f"{parameter} differs by {worst:g}"
        seen |= set(found["weights"])
    assert seen == set(expected["weights"])
