"""Small jobs and data for the tests of federated training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.models import LogisticConfig, MLPConfig, ModelConfig
from tauon.optim import Constant, OptimConfig, SGDConfig
from tauon.plan import make_plan
from tauon.tasks import Classification
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job
from tauon.types import Batch, DataSpec

SPEC = DataSpec(input_shape=(5,), outputs=3, labels=("a", "b", "c"))
SGD = SGDConfig(lr=0.1, momentum=0.0, schedule=Constant(warmup=0))


class Points:
    """Points around three centres, with their class."""

    def __init__(self, n: int = 60, seed: int = 0, spec: DataSpec = SPEC) -> None:
        g = torch.Generator().manual_seed(seed)
        shape = spec.input_shape or (5,)
        self.y = torch.randint(0, 3, (n,), generator=g)
        centres = torch.randn(3, *shape, generator=torch.Generator().manual_seed(9))
        self.x = centres[self.y] + torch.randn(n, *shape, generator=g)
        self.spec = spec
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = torch.as_tensor(np.asarray(index))
        return Batch(self.x[rows], self.y[rows], torch.ones(len(rows)), index=rows)


class Everything:
    """The whole data set at each step."""

    def __init__(self, dataset: Points) -> None:
        self.dataset = dataset

    def batch_at(self, step: int) -> Batch:
        return self.dataset.batch(np.arange(len(self.dataset)))

    def steps_for(self, epochs: float) -> int:
        return max(1, round(epochs))


def make_job(
    loader: Any, *, model: ModelConfig | None = None, optim: OptimConfig = SGD, steps: int = 5, spec: DataSpec = SPEC, **more: Any
) -> TrainJob:
    settings = TrainConfig(**({"steps": steps, "batch": 8, "precision": "fp32", "compile": False, "device": "cpu"} | more))
    config = JobConfig((model or MLPConfig(hidden=(6,))).resolve(spec), optim, settings, Classification(), spec, 3)
    return build_job(config, loader, make_plan(config, examples=60))


def logistic(loader: Any, **more: Any) -> TrainJob:
    return make_job(loader, model=LogisticConfig(), **more)


def weights(job: TrainJob) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in job.model.named_parameters()}


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=atol)
