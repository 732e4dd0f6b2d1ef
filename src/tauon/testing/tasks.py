"""The contract of a task: its loss, its predictions and its metrics fit together. Public, as the others in `contracts.py`."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from tauon.config import dump, parse
from tauon.evaluate import EvaluateConfig, evaluate
from tauon.models import Model, ModelConfig, materialize
from tauon.tasks import Task
from tauon.testing.contracts import tiny_batch
from tauon.types import Batch, DataSpec

__all__ = ["check_task"]


class _Few:
    """A data set of the rows of one batch."""

    def __init__(self, batch: Batch, spec: DataSpec) -> None:
        self.whole, self.spec = batch, spec
        self.facts: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = torch.from_numpy(np.asarray(index))
        values: dict[str, Any] = {f.name: getattr(self.whole, f.name) for f in fields(Batch)}
        return replace(self.whole, **{k: v[rows] for k, v in values.items() if v is not None})


def check_task(task: Task, model: ModelConfig, spec: DataSpec, batch: Batch | None = None) -> None:
    """A task: comes back from its record; the loss of a batch is the sum of its examples' and takes rows of weight zero for nothing;
    every parameter gets a gradient; predictions have one row an example, and metrics follow from them.

    `spec` is the data's, as the source tells it; what the model is told of it is the task's `shape`. `batch`: examples, where random
    ones (`tiny_batch`) make no sense.
    """
    again = parse(Task, json.loads(json.dumps(dump(task))))
    assert again == task, "the record does not come back"
    assert not list(task.fits(spec)), f"the task does not fit its own data: {list(task.fits(spec))}"
    net = materialize(model.resolve(task.shape(spec)), seed=0)
    with torch.no_grad():  # heads that start at zero would hide what is behind them
        for i, p in enumerate(net.parameters()):
            if p.ndim >= 2 and not p.any():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    batch = tiny_batch(spec, 40) if batch is None else batch
    rows = len(batch)
    _check_loss(task, net, batch)
    net.eval()
    with torch.no_grad():
        said = task.predict(net, batch)
    for name, value in said.items():
        assert value.shape[:1] == (rows,), f"predict gave {name!r} of shape {tuple(value.shape)} for {rows} examples"
        assert torch.isfinite(value).all(), f"predict gave {name!r} that is not finite"
    if task.family == "language-modelling":
        return  # bits per byte need a tokenizer
    predictor: Any = task
    found = evaluate(net, predictor, _Few(batch, spec), EvaluateConfig(resamples=100), seed=0, split="test")
    json.dumps(found.to_json(), allow_nan=False)
    primary = found.metrics[found.primary]
    assert primary.value is not None, f"{found.primary}: {primary.reason}"
    assert math.isfinite(primary.value)


def _check_loss(task: Task, net: Model, batch: Batch) -> None:
    net.train()
    torch.manual_seed(0)
    loss_B, weight_B = task.losses(net, batch)
    torch.manual_seed(0)
    total, weight = task.loss(net, batch)
    assert loss_B.shape == weight_B.shape == (len(batch),), "losses gives one loss and one weight for each example"
    assert loss_B.dtype == torch.float32, f"losses are {loss_B.dtype}, expected float32"
    torch.testing.assert_close(total, loss_B.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight, weight_B.sum())
    torch.testing.assert_close(task.weight(batch).to(weight.dtype), weight)
    (total / weight).backward()
    still = [n for n, p in net.named_parameters() if p.grad is None]
    assert not still, f"no gradient reaches {still}"

    weights = batch.weights.clone()
    weights[1:] = 0
    only = replace(batch, weights=weights)
    torch.manual_seed(0)
    one, one_weight = task.loss(net, only)
    torch.testing.assert_close(one, loss_B[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one_weight, weight_B[0])
