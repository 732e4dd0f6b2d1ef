"""Private steps on every layout: clipping, noise and sums of several processes give the weights of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from private_layouts import CNN, GPT, GPT2, IMAGES, SGD, TEXT, run_case, run_cases

from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed


def case(sizes: dict[str, int], model: dict[str, Any] = GPT, **more: Any) -> dict[str, Any]:
    spec = more.pop("spec", TEXT)
    return {"sizes": sizes, "parallel": {"kind": "mesh", **sizes}, "model": model, "optim": SGD, "spec": spec, "packed": False, **more}


TWO = {
    "ddp": case({"replicate": 2}),
    "fsdp": case({"shard": 2}),
    "tensor": case({"tensor": 2}),
    "tensor, gpt2": case({"tensor": 2}, GPT2),
    "tensor, per-layer": case({"tensor": 2}, how={"clipping": "per-layer"}),
    "tensor, untied": case({"tensor": 2}, {**GPT, "tied": False}, micro=4),
    "ddp, accumulation": case({"replicate": 2}, micro=4),
    "fsdp, accumulation": case({"shard": 2}, micro=4),
    "fsdp, checkpointing": case({"shard": 2}, checkpointing=True),
    "fsdp, logits formed again": case({"shard": 2}, {**GPT, "tied": True}, kept=0),
    "fsdp, gpt2": case({"shard": 2}, GPT2),
    "fsdp, frozen": case({"shard": 2}, freeze=("embed.*", "blocks.0.*")),
    "ddp, cnn": case({"replicate": 2}, CNN, spec=IMAGES),
    "fsdp, cnn": case({"shard": 2}, CNN, spec=IMAGES),
    "fsdp, automatic": case({"shard": 2}, how={"clipping": "automatic"}),
    "fsdp, correlated": case({"shard": 2}, how={"noise": "correlated"}),
    "fsdp, gradient-norm": case({"shard": 2}, how={"noise": "gradient-norm"}),
    "ddp, units": case({"replicate": 2}, how={"rows_per_unit": 2}),
    "fsdp, units, accumulation": case({"shard": 2}, micro=4, how={"rows_per_unit": 2}),
    "tensor, units": case({"tensor": 2}, how={"rows_per_unit": 4}),
}
BERT = {"kind": "bert", "layers": 2, "width": 32, "heads": 4, "dropout": 0.3}
LORA = {**GPT, "adapt": {"kind": "lora", "rank": 4, "dropout": 0.5}}
DROPS = {**GPT, "dropout": 0.3}
TWO |= {
    "ddp, dropout": case({"replicate": 2}, DROPS),
    "fsdp, dropout, accumulation": case({"shard": 2}, DROPS, micro=4),
    "fsdp, dropout, checkpointing": case({"shard": 2}, DROPS, checkpointing=True),
    "tensor, dropout": case({"tensor": 2}, DROPS),
    "ddp, bert": case({"replicate": 2}, BERT),
    "fsdp, bert, accumulation": case({"shard": 2}, BERT, micro=4),
    "ddp, lora": case({"replicate": 2}, LORA),
    "fsdp, lora": case({"shard": 2}, LORA),
    "fsdp, lora, checkpointing": case({"shard": 2}, LORA, micro=4, checkpointing=True),
    "ddp, ema": case({"replicate": 2}, DROPS, ema=0.9),
}  # fmt: skip
REFUSED = {"tensor, bert": case({"tensor": 2}, BERT)}
FOUR = {
    "fsdp and tensor": case({"shard": 2, "tensor": 2}),
    "ddp and tensor": case({"replicate": 2, "tensor": 2}),
    "hybrid": case({"replicate": 2, "shard": 2}),
}


def one(case: dict[str, Any]) -> dict[str, Any]:
    sizes = dict.fromkeys(case["sizes"], 1)
    return run_case(case | {"sizes": sizes, "parallel": {"kind": "mesh", **sizes}})


def compare(found: Any, case: dict[str, Any]) -> None:
    assert not isinstance(found, str), found
    expected = one(case)
    for (loss, norm), (loss_1, norm_1) in zip(found["steps"], expected["steps"], strict=True):
        assert loss == pytest.approx(loss_1, rel=2e-5) and norm == pytest.approx(norm_1, rel=2e-5)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    return run_processes(run_cases, 2, 300, TWO | REFUSED)[0]


@pytest.fixture(scope="module")
def four() -> dict[str, Any]:
    return run_processes(run_cases, 4, 300, FOUR)[0]


@pytest.mark.parametrize("name", TWO)
def test_two_processes_compute_what_one_does(two: dict[str, Any], name: str) -> None:
    compare(two[name], TWO[name])


def test_a_head_in_parts_whose_loss_is_of_some_positions_is_refused_with_the_way_out(two: dict[str, Any]) -> None:
    said = two["tensor, bert"]
    assert isinstance(said, str) and "RecipeError" in said and "parallel.tensor" in said and "Set parallel.shard" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_compute_what_one_does(four: dict[str, Any], name: str) -> None:
    compare(four[name], FOUR[name])
