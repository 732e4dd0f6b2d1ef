"""Every registered model with its task: the clipped sum equals the loop over single examples, or the model is refused for a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import Model, ModelConfig, materialize
from tauon.models.norm import BatchNorm
from tauon.privacy.clipped import ClippedSum
from tauon.tasks import Task
from tauon.testing import check_clipping, tiny_batch
from tauon.types import Batch, DataSpec
from test_contracts import MODELS, TASKS

ALL = [
    pytest.param({"kind": kind, **settings}, None, spec, None, id=f"{kind}-{i}")
    for kind, cases in MODELS.items()
    for i, (settings, spec) in enumerate(cases)
] + [
    pytest.param(model, {"kind": kind, **settings}, spec, batch[0] if batch else None, id=f"{kind}-{i}")
    for kind, cases in TASKS.items()
    for i, (settings, model, spec, *batch) in enumerate(cases)
]


def built(config: dict[str, Any], spec: DataSpec) -> Model:
    """The model with weights that are nowhere zero, and without draws, which batches and single examples would not share."""
    model = materialize(parse(ModelConfig, config).resolve(spec), seed=0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.05)
    for module in model.modules():
        for name in (
            "dropout",
            "drop",
            "drop_path",
            "head_dropout",
            "number_dropout",
            "attention_dropout",
            "mlp_dropout",
            "residual_dropout",
        ):
            if isinstance(module.__dict__.get(name), float):
                module.__dict__[name] = 0.0
    return model.train()


def task_of(spec: DataSpec, config: dict[str, Any]) -> tuple[Task, bool]:
    from tauon.testing.contracts import _task

    masked = config["kind"] == "bert" and spec.outputs is None
    return _task(spec, masked), masked


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("config", "task", "spec", "batch"), ALL)
def test_a_models_clipped_sum_equals_the_loop(
    config: dict[str, Any], task: dict[str, Any] | None, spec: DataSpec, batch: Batch | None
) -> None:
    found, masked = task_of(spec, config)
    if task is not None:
        found, masked = parse(Task, task), task["kind"] == "masked-language-modelling"
        spec = found.shape(spec)
    model = built(config, spec)
    n = 6 if batch is None or len(batch) >= 6 else 4
    rows = batch.rows(0, n) if batch is not None else tiny_batch(spec, 6, masked=masked)
    rows = replace(rows, weights=rows.weights.clone())  # the batch is shared by tests
    rows.weights[1] = 0  # padding of a Poisson batch
    if any(isinstance(m, BatchNorm) for m in model.modules()):
        with pytest.raises(RecipeError, match="Set model.norm=group"):
            ClippedSum(model)
        model = built({**config, "norm": "group", "groups": 8}, spec)

    def loss(model: nn.Module, start: int, stop: int) -> Tensor:
        return found.loss(model, rows.rows(start, stop))[0]

    check_clipping(model, loss, n, tolerance=3e-5)
    check_clipping(model, loss, n, tolerance=3e-5, rows_per_unit=2, microbatch=4)
