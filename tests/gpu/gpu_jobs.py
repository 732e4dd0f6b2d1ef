"""Small jobs on a device, and what must not happen on one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tauon.config import parse
from tauon.models import ModelConfig
from tauon.optim import OptimConfig
from tauon.plan import Plan
from tauon.tasks import Classification, LanguageModelling
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, job_state
from tauon.types import Batch, DataSpec

TABLE = DataSpec(input_shape=(6,), outputs=3)
IMAGES = DataSpec(input_shape=(3, 16, 16), outputs=3)
TEXT = DataSpec(vocab=64, seq_len=32)
MODELS: dict[DataSpec, dict[str, Any]] = {
    TABLE: {"kind": "mlp", "hidden": [16, 16]},
    IMAGES: {"kind": "resnet20"},
    TEXT: {"kind": "gpt", "layers": 2, "width": 32, "heads": 2},
}


class Batches:
    """Random batches; those of `nan` give no finite loss."""

    def __init__(self, spec: DataSpec, nan: tuple[int, ...] = (), rows: int = 8) -> None:
        self.spec, self.nan, self.rows = spec, nan, rows

    def batch_at(self, step: int) -> Batch:
        batch = tiny_batch(self.spec, rows=self.rows, seed=step)
        if step in self.nan:
            (batch.weights if self.spec.vocab else batch.inputs)[1] = math.nan
        return batch


def job_on(
    device: torch.device, spec: DataSpec = TEXT, *, optim: str = "adamw", steps: int = 20, precision: str = "fp32", compiled: bool = False,
    nan: tuple[int, ...] = (), model: dict[str, Any] | None = None, **train: Any,
) -> TrainJob:  # fmt: skip
    settings = {"steps": steps, "batch": 8} | train
    plan = Plan(steps, device, precision, compiled, settings.get("microbatch", 8), 1, 1, 1)
    task = LanguageModelling() if spec.vocab else Classification()
    resolved = parse(ModelConfig, model or MODELS[spec]).resolve(spec)
    config = JobConfig(resolved, parse(OptimConfig, {"kind": optim}), TrainConfig(**settings), task, spec, 3)
    job = build_job(config, Batches(spec, nan), plan)
    job.model.train()
    return job


def everything(job: TrainJob) -> dict[str, Any]:
    """All that a step may move, on the CPU."""
    groups, state = job_state(job)
    found: dict[str, Any] = {f"{g}/{k}": t.detach().cpu().clone() for g, ts in groups.items() for k, t in ts.items()}
    return found | {f"state/{k}": v for k, v in state.items()}


def differing(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """Names of what is not the same to the last bit."""
    assert a.keys() == b.keys()
    return {k for k, v in a.items() if not (torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k])}


@contextmanager
def no_waits() -> Iterator[None]:
    """Inside, whatever makes the host wait for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(a: Tensor, b: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.detach().cpu(), b.detach().cpu(), rtol=rtol, atol=atol)
