"""Planned memory: what is predicted is what is measured, and the bound is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from explain.test_cases import made
from tauon.errors import DataError
from tauon.explain import METHODS, Cases, Work, cases_of
from tauon.explain.memory import peak_bytes, plan_memory


def some(kind: str, n: int = 24) -> Cases:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    again = torch.arange(n) % len(cases)
    return Cases(**{**vars(cases), "inputs": cases.inputs[again].clone(), "targets": cases.targets[again]})


def test_a_peak_counts_what_is_alive_at_the_same_time() -> None:
    def run() -> None:
        x = torch.ones(1000, dtype=torch.float64)
        for _ in range(3):
            x = x.add(1)

    assert 16000 <= peak_bytes(run, torch.device("cpu")) <= 16400


OPTIONS: dict[str, Any] = {
    "smoothgrad": {"samples": 8},
    "kernel_shap": {"evaluations": 140},
    "grad_cam": {},
    "occlusion": {},
    "integrated_gradients": {},
}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_prediction_is_the_measured_peak(method: str, kind: str) -> None:
    cases, options = some(kind), OPTIONS[method]
    roomy = plan_memory(cases, METHODS[method], 2**31, **options)
    plan = plan_memory(cases, METHODS[method], roomy.predicted_bytes * 2 // 3, **options)
    measured = peak_bytes(lambda: METHODS[method].run(cases, Work(at_once=plan.at_once), **options), torch.device("cpu"))
    assert measured <= plan.bound_bytes
    assert plan.predicted_bytes <= plan.bound_bytes
    assert 0.95 < plan.predicted_bytes / measured < 1.25
    assert f"{plan.at_once:,} rows at once" in str(plan) and plan.to_json()["method"] == method


def test_a_bound_that_is_too_small_is_refused() -> None:
    with pytest.raises(DataError, match=r"for one row at once, and the bound is 0\.0 MiB"):
        plan_memory(some("resnet"), METHODS["saliency"], 1000)


def test_planning_leaves_the_model_as_it_was() -> None:
    cases = some("resnet")
    before = {k: v.clone() for k, v in cases.model.state_dict().items()}
    state = torch.get_rng_state()
    plan_memory(cases, METHODS["saliency"], 2**30)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in cases.model.state_dict().items())
    assert not any(m._forward_hooks for m in cases.model.modules())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's own account of a process")
def test_the_operating_system_counts_what_was_predicted() -> None:
    command = ["-W", "ignore", "-m", "benchmarks.explain_memory", "vit", "--bound", "96", "--methods", "smoothgrad", "kernel_shap"]
    run = subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["over_the_bound"] == [] and len(found["predicted_by_measured"]) == 2
    assert found["ours"] <= 0.2
