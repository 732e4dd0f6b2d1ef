"""Quality with its interval, measuring, and the search, on small models."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from compress_models import CONFIGS, TABLE, batch_of, calibration, model_of, task_of
from torch import nn

from tauon.compress import (
    Calibration,
    Candidate,
    Int8,
    Int8Graph,
    Point,
    Quality,
    SearchSettings,
    calibration_from,
    candidates,
    compress_model,
    layer_sensitivity,
    measure,
    model_bytes,
    paired_drop,
    quality_of,
    search,
)
from tauon.compress.measure import Cost, batch_of_size
from tauon.compress.search import _choose
from tauon.config import parse
from tauon.errors import DataError
from tauon.models import ModelConfig, materialize
from tauon.tasks import Regression
from tauon.types import Batch


class Rows:
    """Batches as a data set."""

    def __init__(self, batch: Batch, spec: Any = TABLE) -> None:
        self.all, self.spec = batch, spec
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = torch.as_tensor(index)
        return Batch(self.all.inputs[rows], self.all.targets[rows], self.all.weights[rows])


def labelled(kind: str, n: int) -> Batch:
    """Examples whose labels are the model's own answers."""
    batch = batch_of(kind, n, seed=5)
    with torch.no_grad():
        return Batch(batch.inputs, model_of(kind)(batch.inputs).argmax(1), batch.weights)


def test_quality_is_the_metric_of_the_task() -> None:
    batch, model = batch_of("mlp", 40), model_of("mlp")
    with torch.no_grad():
        expected = (model(batch.inputs).argmax(1) == batch.targets).double().mean().item()
    assert quality_of(model, task_of("mlp"), Rows(batch)).value == pytest.approx(expected)
    text, gpt = batch_of("gpt", 8), model_of("gpt")
    with torch.no_grad():
        loss, weight = task_of("gpt").loss(gpt, text)
    found = quality_of(gpt, task_of("gpt"), Rows(text))
    assert found.metric == "perplexity" and found.value == pytest.approx(math.exp(loss / weight), rel=1e-4)
    numbers = Batch(batch.inputs, torch.randn(40, 4), batch.weights)
    with torch.no_grad():
        mean = (model(batch.inputs) - numbers.targets).abs().mean().item()
    assert quality_of(model, Regression(), Rows(numbers)).value == pytest.approx(mean, rel=1e-5)


def test_the_interval_of_a_drop_covers_the_truth() -> None:
    g = np.random.default_rng(0)
    covered = {"accuracy": 0, "perplexity": 0}
    for _ in range(200):
        a = g.random(400) < 0.9
        b = np.where(g.random(400) < 0.03, g.random(400) < 0.5, a)  # 3% of the answers are drawn anew: truth 0.97 0.9 + 0.03 0.5
        drop = paired_drop(Quality("accuracy", a * 1.0, np.ones(400)), Quality("accuracy", b * 1.0, np.ones(400)), seed=1)
        covered["accuracy"] += drop.low <= (0.9 - (0.97 * 0.9 + 0.015)) / 0.9 <= drop.high
        nats = g.gamma(2.0, 1.0, 400)
        other = nats + g.normal(0.02, 0.1, 400)
        weights = np.full(400, 1.0)
        found = paired_drop(Quality("perplexity", nats, weights), Quality("perplexity", other, weights), resamples=300, seed=1)
        covered["perplexity"] += found.low <= math.exp(0.02) - 1 <= found.high
    assert all(180 <= n <= 199 for n in covered.values()), covered


def test_two_equal_models_do_not_have_an_empty_interval() -> None:
    same = Quality("accuracy", np.ones(100), np.ones(100))
    drop = paired_drop(same, same)
    assert drop.value == 0 and 0.01 < drop.high < 0.05 and not drop.keeps(0.01)
    with pytest.raises(DataError, match="same examples"):
        paired_drop(same, Quality("accuracy", np.ones(99), np.ones(99)))


def test_measure_takes_turns_and_counts_memory() -> None:
    model = model_of("mlp")
    costs = measure({"a": model, "b": model}, task_of("mlp"), [batch_of("mlp")], {"a": 1, "b": 2}, batch_sizes=(1, 4), seconds=0.01)
    assert costs["a"].latency_ms.keys() == {1, 4} and costs["b"].size_bytes == 2 and all(v > 0 for v in costs["a"].latency_ms.values())
    assert costs["a"].memory_bytes is not None and costs["a"].memory_bytes >= 4 * 32 * 4  # the first hidden layer of four rows
    assert len(batch_of_size([batch_of("mlp", 3)], 8)) == 8
    with pytest.raises(DataError, match="no examples"):
        batch_of_size([], 1)


def test_sensitivity_finds_the_layer_with_outliers() -> None:
    model = model_of("mlp")
    with torch.no_grad():
        model.layers[1].weight[0, 0] = 200.0  # one weight takes the whole range of its row
        model.layers[1].weight[1:, 0] = 0.0
        model.layers[2].weight[:, 1:] *= 20
    found = layer_sensitivity(model, task_of("mlp"), calibration("mlp"))
    assert set(found) == {"layers.0", "layers.1", "layers.2"} and list(found.values()) == sorted(found.values(), reverse=True)


def test_a_choice_is_never_larger_or_slower_than_the_model() -> None:
    def point(name: str, ms: float, size: int, why: str = "") -> Point:
        drop = paired_drop(Quality("accuracy", np.ones(9), np.ones(9)), Quality("accuracy", np.ones(9), np.ones(9)))
        return Point(name, "eager", cost=Cost({1: ms, 8: ms}, size, 0), drop=drop, why_not=why)

    own = [point("as trained, eager", 2.0, 100), point("as trained, compiled", 1.0, 100)]
    best, reason = _choose(
        [*own, point("fast", 0.5, 50), point("faster", 0.4, 101), point("bad", 0.1, 10, "drops"), point("slow", 1.5, 10)], 0.01
    )
    assert best is not None and best.name == "fast" and "2.0 times as fast" in reason
    none, why = _choose([*own, point("slow", 1.5, 10), point("large", 0.5, 101)], 0.01)
    assert none is None and "slower" in why and "larger" in why


def test_search_returns_the_best_or_says_why_none() -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("onnxruntime")
    held_out = Rows(labelled("mlp", 300))
    model = model_of("mlp").train()
    tries = (candidates(model)[0], Candidate("int8 dynamic", (Int8(),), "eager"), Candidate("a graph in torch", (Int8Graph(),), "eager"))
    settings = SearchSettings(batch_sizes=(1,), seconds=0.05, compiled=False, floats=(1,), candidates=tries)
    result = search(model, task_of("mlp"), calibration("mlp"), held_out, max_drop=0.2, config=CONFIGS["mlp"], settings=settings)
    assert model.training and result.points[0].name == "as trained, eager" and result.reason
    points = {p["name"]: p for p in result.to_json()["points"]}
    assert points[tries[0].name]["keeps_promise"] and "only imitates" in points["a graph in torch"]["why_not"]
    if result.best is not None:
        assert result.module is not None and result.compressed is not None and result.best.drop is not None
        assert result.best.drop.high <= 0.2 and result.compressed.size_bytes < model_bytes(model)
    strict = search(model, task_of("mlp"), calibration("mlp"), held_out, max_drop=0.0, config=CONFIGS["mlp"], settings=settings)
    assert strict.best is None and "promised 0.00%" in strict.reason and strict.sensitivity


def test_targets_and_models_that_cannot_be_compressed_are_refused() -> None:
    assert all(isinstance(c, Candidate) for c in candidates(model_of("gpt")))
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="no GPU"):
            candidates(model_of("mlp"), target="gpu")
    with pytest.raises(DataError, match="LSTM"):
        candidates(nn.LSTM(2, 2))
    with pytest.raises(DataError, match="max_drop"):
        search(model_of("mlp"), task_of("mlp"), calibration("mlp"), Rows(batch_of("mlp")), max_drop=1.5)
    sample = calibration_from(Rows(batch_of("mlp", 20)), examples=10, batch=4)
    assert len(sample) == 10 and isinstance(sample, Calibration)
    assert compress_model(model_of("mlp"), task_of("mlp"), sample, [Int8()]).size_bytes < model_bytes(model_of("mlp"))


def test_a_runtime_that_fails_is_a_reason_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sys.modules["tauon.compress.search"], "serve", broken)  # the package has a function of this name
    settings = SearchSettings(batch_sizes=(1,), seconds=0.01, compiled=False, candidates=(Candidate("int8 dynamic", (Int8(),), "eager"),))
    result = search(model_of("mlp"), task_of("mlp"), calibration("mlp"), Rows(labelled("mlp", 30)), max_drop=0.2, settings=settings)
    assert result.best is None and result.points[-1].why_not == "RuntimeError: no such kernel"


def test_only_what_can_change_a_model_is_tried() -> None:
    logistic = materialize(parse(ModelConfig, {"kind": "logistic"}).resolve(TABLE), seed=0)
    assert not any("structured" in c.name for c in candidates(logistic))
    assert {c.runtime for c in candidates(model_of("mlp")) if "structured" in c.name} == {"onnx", "openvino"}
