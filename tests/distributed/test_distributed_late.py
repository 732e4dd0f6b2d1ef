"""Steps that are read late, over processes: what the device skips is what the host skips, bit for bit, in every layout."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from layouts import GPT, TEXT, make_job, whole

from tauon.distributed import reshard
from tauon.testing.processes import run_processes
from tauon.train import launch_step, watch_layers

pytestmark = pytest.mark.distributed
BAD = 3


def trained(sizes: dict[str, int], optim: str, late: bool) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """(what came of each step, weights and their average) of five steps, one of which has no finite loss."""
    job = watch_layers(make_job(sizes, {"kind": "mesh"}, GPT, {"kind": optim}, TEXT, ema=0.9), 2)
    job.model.train()
    job.policy = replace(job.policy, reads_late=late)
    seen = []
    for step in range(5):
        batch = job.loader.batch_at(step)
        if step == BAD:
            batch = replace(batch, weights=batch.weights * math.nan)
        launched = launch_step(job, batch)
        assert launched.late == late
        metrics = launched.read()
        seen.append((str(metrics["loss"]), str(metrics["grad_norm"]), metrics.get("skipped"), str(metrics.get("layers"))))
    reshard(job.model)
    assert job.ema is not None
    held = {f"weights/{n}": whole(p) for n, p in job.model.named_parameters()}
    return seen, held | {f"average/{n}": whole(t) for n, t in job.ema.shadow.items()}


def both(optims: list[str]) -> dict[str, Any]:
    found = {}
    for sizes in ({"replicate": 2}, {"shard": 2}, {"tensor": 2}):
        for optim in optims:
            found[f"{sizes} {optim}"] = [trained(sizes, optim, late) for late in (False, True)]
    return found


def test_the_device_decides_as_the_host_does_in_every_layout() -> None:
    for case, ((seen, held), (seen_late, held_late)) in run_processes(both, 2, 400, ["adamw", "muon", "lion"])[0].items():
        assert seen == seen_late, case
        assert [s is not None for _, _, s, _ in seen] == [step == BAD for step in range(5)], case
        assert all(torch.equal(t, held_late[k]) for k, t in held.items()), case
