"""Jobs whose replicas compress gradients or share Muon's work: near one process, counted, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import ADAMW, GPT, SGD, TEXT, make_job, whole
from torch import Tensor

from tauon.testing import run_processes
from tauon.train import TrainJob, job_state, restore, train_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MUON = {"kind": "muon", "lr": 0.01, "adamw_lr": 1e-3, "eps": 1e-6, "clip_norm": 0.5}
STEPS = 6


class Saved:
    """A checkpoint in memory: what `restore` asks of one."""

    path = Path("memory")

    def __init__(self, job: TrainJob) -> None:
        groups, self.state = job_state(job)
        self.held = {g: {n: t.detach().clone() for n, t in ts.items()} for g, ts in groups.items()}

    def groups(self) -> list[str]:
        return list(self.held)

    def tensors(self, group: str) -> dict[str, Tensor]:
        return self.held[group]

    lazy = tensors


def build(sizes: dict[str, int], optim: dict[str, Any], micro: int = 8, **parallel: Any) -> TrainJob:
    job = make_job(sizes, {"kind": "mesh", **sizes, **parallel}, GPT, optim, TEXT, steps=STEPS, micro=micro)
    if "compression" in job.extra and parallel["compression"] == "powersgd":
        job.extra["compression"].torchs.start_powerSGD_iter = 2  # type: ignore[attr-defined]
    return job


def steps(job: TrainJob, upto: int) -> TrainJob:
    job.model.train()
    while job.step < upto:
        train_step(job, job.loader.batch_at(job.step))
    return job


def weights(job: TrainJob) -> dict[str, Tensor]:
    return {k: whole(v) for k, v in job.model.state_dict().items()}


def on_two_ranks() -> dict[str, Any]:
    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    for name in ("none", "bf16", "int8", "powersgd"):
        job = steps(build({"replicate": 2}, SGD, compression=name), STEPS)
        out[name] = {"weights": weights(job), "sent": sum(job.traffic.total.values())}
        if name in ("int8", "powersgd"):
            first = steps(build({"replicate": 2}, SGD, compression=name), 4)
            second = build({"replicate": 2}, SGD, compression=name)
            checkpoint: Any = Saved(first)
            restore(second, checkpoint)
            out[name]["resumed"] = weights(steps(second, STEPS))
    for layout, sizes in {"ddp": {"replicate": 2}, "fsdp": {"shard": 2}, "tensor": {"tensor": 2}}.items():
        job = steps(build(sizes, MUON), STEPS)
        out[f"muon, {layout}"] = {"weights": weights(job), "sent": dict(job.traffic.total)}
    return out


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(on_two_ranks, 2, 400)


def moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """How far two trainings ended from each other, as a share of the way that the second went."""
    begun = weights(build({}, ADAMW))
    apart = sum((a[k] - b[k]).square().sum().item() for k in b)
    return float((apart / sum((b[k] - begun[k]).square().sum().item() for k in b)) ** 0.5)


def off(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


@pytest.mark.parametrize(("name", "most"), [("none", 1e-5), ("bf16", 0.01), ("int8", 0.02), ("powersgd", 0.5)])
def test_compressed_gradients_train_nearly_as_one_process(ranks: list[dict[str, Any]], name: str, most: float) -> None:
    alone = weights(steps(build({}, SGD), STEPS))
    for rank in ranks:
        assert moved(rank[name]["weights"], alone) < most
    assert off(ranks[0][name]["weights"], ranks[1][name]["weights"]) == 0


def test_bytes_fall_as_compression_rises(ranks: list[dict[str, Any]]) -> None:
    sent = {name: ranks[0][name]["sent"] for name in ("none", "bf16", "int8")}
    size = sum(w.numel() for w in ranks[0]["none"]["weights"].values())
    assert sent["none"] == 4 * size * STEPS
    assert sent["bf16"] == sent["none"] / 2
    assert sent["int8"] < sent["none"] / 3  # small vectors fill a block each


@pytest.mark.parametrize("name", ["int8", "powersgd"])
def test_a_resume_carries_what_is_owed(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert off(rank[name]["resumed"], rank[name]["weights"]) == 0


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tensor"])
def test_muon_trains_on_a_mesh_as_in_one_process(ranks: list[dict[str, Any]], layout: str) -> None:
    """Sums of gradients in another order differ in their last bits. Newton-Schulz in bfloat16 makes small singular values as large
    as the others, and with them such differences. So the measure is what that does in one process, with halves of the batch.
    """
    alone, halves = weights(steps(build({}, MUON), STEPS)), weights(steps(build({}, MUON, micro=4), STEPS))
    by_order = moved(halves, alone)
    assert 0 < by_order < 0.03
    for rank in ranks:
        assert moved(rank[f"muon, {layout}"]["weights"], alone) < 2 * by_order
    assert ranks[0]["muon, ddp"]["sent"]["all-gather"] > 0


def test_sgd_with_powersgd_of_full_rank_is_sgd() -> None:
    """Where factors would be larger than the matrix, it goes whole."""
    alone = weights(steps(build({}, SGD), STEPS))
    for found in run_processes(full_rank, 2, 400):
        assert off(found, alone) < 1e-5


def full_rank() -> dict[str, Tensor]:
    return weights(steps(build({"replicate": 2}, SGD, compression="powersgd", powersgd_rank=64), STEPS))
