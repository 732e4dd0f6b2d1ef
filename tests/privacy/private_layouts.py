"""A tiny private job on any layout: the jobs of `layouts.py`, made private."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

from layouts import CNN, GPT, GPT2, IMAGES, SGD, TEXT, make_job, whole

from tauon.config import parse
from tauon.distributed import reshard
from tauon.privacy import make_private
from tauon.privacy.clipped.modes import ClippingConfig
from tauon.privacy.clipped.rules import head
from tauon.privacy.noise import NoiseConfig, NoisePlan, NoiseSource
from tauon.train import TrainJob, train_step

__all__ = ["CNN", "GPT", "GPT2", "IMAGES", "SGD", "TEXT", "make_job", "private", "run_case", "run_cases", "whole"]


def private(
    job: TrainJob, *, rows: int = 8, clipping: str = "flat", noise: str = "constant", multiplier: float = 0.5, seed: int = 0,
    rows_per_unit: int = 1,
) -> TrainJob:  # fmt: skip
    """The job, private, with noise that can be drawn again."""
    plan = NoisePlan(parse(NoiseConfig, {"kind": noise}), multiplier, job.policy.total_steps)
    plan.releases(rows / 64, "shuffled" if plan.correlated else "poisson")
    return make_private(
        job, parse(ClippingConfig, {"kind": clipping}), plan, NoiseSource.seeded(seed), expected=lambda step: rows / rows_per_unit,
        rows_per_unit=rows_per_unit,
    )  # fmt: skip


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """A few private steps; losses, gradient norms, and the weights."""
    case = dict(case)
    steps = case.pop("steps", 4)
    how = case.pop("how", {})
    head.KEPT = case.pop("kept", 2**23)  # probabilities of a chunked loss: none are kept where a case says so
    job = make_job(case.pop("sizes"), case.pop("parallel"), case.pop("model"), case.pop("optim"), case.pop("spec"), steps=steps, **case)
    job = private(job, **how)
    job.model.train()
    seen = []
    for step in range(steps):
        metrics = train_step(job, job.loader.batch_at(step))
        seen.append((metrics["loss"], metrics["grad_norm"]))
    reshard(job.model)
    return {"steps": seen, "weights": {k: whole(v) for k, v in job.model.state_dict().items()}}


def run_cases(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            found[name] = run_case(case)
        except Exception as err:  # a case that fails must not hide the others
            import traceback

            found[name] = "".join(traceback.format_exception(err))[-1500:]
    return found
