"""Contract of a task: its loss, predictions and metrics are consistent. Public, as the others in `contracts.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.config import dump, parse
from tauon.evaluate import EvaluateConfig, evaluate
from tauon.models import Model, ModelConfig, materialize
from tauon.tasks import CountingBytes, LanguageModelling, Task
from tauon.tasks.answers import OutputMeaning
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


def check_task(
    task: Task, model: ModelConfig, spec: DataSpec, batch: Batch | None = None, *, reference: Callable[[Model, Batch], Tensor] | None = None
) -> None:
    """Check a task: its record round-trips; the loss of a batch is the sum over its examples, each the same as alone, and rows of weight zero
    do not count; every parameter gets a gradient; predictions have one row per example and do not read targets; metrics are computed from
    them, with intervals or the reason why there is none, independent of the batch size.

    Args:
        task: with its settings.
        model: one that it can train.
        spec: of the data, from the source; the model gets the task's `shape` of it.
        batch: examples, where random ones (`tiny_batch`) make no sense.
        reference: the loss of each example by another way, from the model in evaluation mode.
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
    _check_loss(task, net, batch)
    net.eval()
    with torch.no_grad():
        loss_B = task.losses(net, batch)[0]
        for i in range(min(4, len(batch))):
            alone = task.losses(net, batch.rows(i, i + 1))[0]
            torch.testing.assert_close(
                alone[0], loss_B[i], rtol=1e-3, atol=1e-4, msg=lambda m: f"an example's loss depends on others in the batch: {m}"
            )
        if reference is not None:
            torch.testing.assert_close(loss_B, reference(net, batch).float() * _weights(batch), rtol=1e-4, atol=1e-5)
        _check_predictions(task, net, batch, spec)
    _check_metrics(task, net, batch, spec)


def _weights(batch: Batch) -> Tensor:
    return batch.weights if batch.weights.ndim == 1 else torch.ones(len(batch))


def _check_predictions(task: Task, net: Model, batch: Batch, spec: DataSpec) -> None:
    rows = len(batch)
    said = task.predict(net, batch)
    for name, value in said.items():
        assert value.shape[:1] == (rows,), f"predict gave {name!r} of shape {tuple(value.shape)} for {rows} examples"
        assert torch.isfinite(value).all(), f"predict gave {name!r} that is not finite"
    if task.input_kind in ("tokens", "masked-tokens", "chat", "pairs"):
        return  # targets are the inputs, moved: there is nothing to predict of others
    moved = replace(batch, targets=batch.targets.roll(1, 0))
    inferred, elsewhere = task.infer(net, batch), task.infer(net, moved)
    assert "targets" not in inferred, "infer returns targets, which are not known at inference"
    for name, value in inferred.items():
        assert torch.equal(value, elsewhere[name]), f"infer: {name!r} depends on the targets"
    outputs = {name: value.numpy() for name, value in inferred.items()}
    columns = task.answers(outputs, OutputMeaning(spec.labels))
    assert columns, "answers gave no column"
    for name, column in columns.items():
        assert len(column) == rows, f"answers gave {len(column)} values of {name!r} for {rows} examples"


def _check_metrics(task: Task, net: Model, batch: Batch, spec: DataSpec) -> None:
    scored: Any = CountingBytes(task, torch.ones(spec.vocab or 1)) if isinstance(task, LanguageModelling) else task
    first: dict[str, Any] | None = None
    for size in (64, 7, 1):
        found = evaluate(net, scored, _Few(batch, spec), EvaluateConfig(resamples=100, batch=size), seed=0, split="test")
        record = found.to_json() | {"notes": []}  # a note may say how long it took
        json.dumps(record, allow_nan=False)
        first = first or record
        assert record == first, "metrics depend on how many examples are read at a time"
    primary = found.metrics[found.primary]
    assert primary.value is not None, f"{found.primary}: {primary.reason}"
    assert math.isfinite(primary.value)
    for name, metric in found.metrics.items():
        assert metric.about, f"{name} does not say what it is"
        assert metric.low is not None or metric.reason, f"{name} has neither an interval nor a reason why"
        if metric.low is not None and metric.value is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high or "bootstrap" in metric.method, f"{name} lies outside its interval"


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
