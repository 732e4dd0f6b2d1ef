"""Metrics of forecasts and quantiles equal scikit-learn's and closed forms; sums do not depend on tiles; memory does not grow."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauon.errors import DataError
from tauon.evaluate import EvaluateConfig, Evaluation, evaluate
from tauon.metrics.forecasting import ForecastSums, intervals_of
from tauon.tasks import Forecasting, QuantileRegression
from tauon.types import Batch, DataSpec

K, H, T = 3, 5, 8
FACTS = {"seasonal_naive_mae": [0.5, 2.0, 1.0], "season": 24, "scale": [10.0, 1.0, 0.1], "every": 1}


class Windows:
    """N windows of noise; the model below predicts the last value and a drift."""

    def __init__(self, n: int, facts: dict[str, Any] | None = None) -> None:
        self.spec = DataSpec(input_shape=(T, K), outputs=K, labels=("a", "b", "c"), horizon=H)
        self.facts, self.n = FACTS if facts is None else facts, n

    def __len__(self) -> int:
        return self.n

    def origin(self, i: int) -> str:
        return f"moment {i}"

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        rows = [np.random.default_rng(int(i)).normal(size=(T + H, K)).astype(np.float32) for i in index]
        x = torch.from_numpy(np.stack(rows))
        return Batch(x[:, :T], x[:, T:], torch.ones(len(index)), None, torch.from_numpy(np.asarray(index)))


class Last(nn.Module):
    def __init__(self, quantiles: int = 1) -> None:
        super().__init__()
        self.spread = torch.linspace(-1, 1, quantiles) if quantiles > 1 else torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        point = x[:, -1:, :].expand(-1, H, -1)
        return (point[..., None] + self.spread).flatten(2)


def measured(n: int = 400, **settings: Any) -> tuple[Evaluation, np.ndarray, np.ndarray]:
    data = Windows(n)
    whole = data.batch(np.arange(n))
    task = Forecasting(**settings)
    model = Last(len(task.levels) or 1)
    found = evaluate(model, task, data, EvaluateConfig(resamples=200), seed=0, split="test")
    return found, model(whole.inputs).detach().numpy(), whole.targets.numpy()


def test_mse_mae_and_mase_are_scikit_learns_and_the_definition() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found, p, y = measured()
    flat = (y.reshape(-1, K), p.reshape(-1, K))
    mae = metrics.mean_absolute_error(*flat, multioutput="raw_values")
    assert found.metrics["mse"].value == pytest.approx(metrics.mean_squared_error(*flat), rel=1e-6)
    assert found.metrics["mae"].value == pytest.approx(metrics.mean_absolute_error(*flat), rel=1e-6)
    assert found.metrics["mase"].value == pytest.approx((mae / [0.5, 2.0, 1.0]).mean(), rel=1e-6)
    for k, row in enumerate(found.per_class):
        assert row["label"] == "abc"[k]
        assert row["mae"].value == pytest.approx(mae[k], rel=1e-6)
        assert row["mae_in_units"] == pytest.approx(mae[k] * FACTS["scale"][k], rel=1e-6)  # type: ignore[index]
    assert found.counts == {"windows": 400, "steps": 2000, "targets": 3}
    again = Evaluation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.metrics == found.metrics
    assert again.forecasts == found.forecasts


def test_pinball_and_coverage_are_scikit_learns_and_counted() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    levels = (0.1, 0.25, 0.5, 0.75, 0.9)
    found, out, y = measured(loss_kind="quantile", quantiles=levels)
    q = out.reshape(400, H, K, 5)
    theirs = [metrics.mean_pinball_loss(y.ravel(), q[..., i].ravel(), alpha=level) for i, level in enumerate(levels)]
    assert found.metrics["pinball"].value == pytest.approx(np.mean(theirs), rel=1e-6)
    assert found.primary == "pinball"
    for name, a, b in (("coverage_80", 0, 4), ("coverage_50", 1, 3)):
        inside = ((y >= q[..., a]) & (y <= q[..., b])).mean()
        assert found.metrics[name].value == pytest.approx(inside)
        assert f"should be {name[-2:]}%" in found.metrics[name].reason
    assert found.metrics["mae"].value == pytest.approx(np.abs(y - q[..., 2]).mean(), rel=1e-6)
    assert intervals_of(levels) == [(0, 4, 0.8), (1, 3, 0.5)]
    assert intervals_of((0.5,)) == []


@pytest.mark.parametrize("batch", [1, 7, 400])
def test_values_do_not_depend_on_the_batch(batch: int) -> None:
    def of(batch: int) -> dict[str, Any]:
        return evaluate(Last(), Forecasting(), Windows(100), EvaluateConfig(batch=batch, resamples=100), seed=0, split="test").to_json()

    assert of(batch) == of(64)


def test_intervals_come_from_blocks_of_windows_and_hold_the_value() -> None:
    found, _, _ = measured(400)
    metric = found.metrics["mse"]
    assert metric.method == "percentile bootstrap over 31 blocks of 13 windows"  # 400 / (8 + 5)
    assert metric.low is not None and metric.value is not None and metric.high is not None
    assert metric.low < metric.value < metric.high
    few, _, _ = measured(60)
    assert few.metrics["mse"].low is None
    assert "60 windows make 5 blocks that do not overlap, too few" in few.metrics["mse"].reason


def test_memory_does_not_grow_with_the_windows() -> None:
    sums = ForecastSums(("a",), {}, length=1)
    rng = np.random.default_rng(0)
    total, peaks = 0.0, []
    tracemalloc.start()
    for i in range(200):
        p, t = rng.normal(size=(128, 2, 1)), rng.normal(size=(128, 2, 1))
        total += np.square(p - t).sum()
        sums.add({"predictions": p, "targets": t})
        if i in (70, 199):
            peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len(sums.blocks) <= 4096  # 25,600 windows
    assert peaks[1] < 1.5 * peaks[0]
    found = sums.finish(confidence=0.9, resamples=100, seed=0)
    assert found["metrics"]["mse"].value == pytest.approx(total / (200 * 128 * 2), rel=1e-9)


def test_what_is_undefined_says_why() -> None:
    data = Windows(200, {"seasonal_naive_mae": [None, 1.0, 1.0], "season": 24})
    found = evaluate(Last(), Forecasting(), data, EvaluateConfig(resamples=100), seed=0, split="test")
    assert found.metrics["mase"].value is None
    assert "no longer than a season" in found.metrics["mase"].reason
    assert found.per_class[1]["mase"].value is not None

    class Broken(Last):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0

    found = evaluate(Broken(), Forecasting(), Windows(70), EvaluateConfig(resamples=100), seed=0, split="test")
    assert found.metrics["mse"].value is None
    assert "70 of 70 windows have forecasts that are not finite" in found.metrics["mse"].reason
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(DataError, match="the model predicts"):
        ForecastSums(("a",), {}, length=1).add({"predictions": np.zeros((2, 3, 1)), "targets": np.zeros((2, 4, 1))})


def test_a_few_windows_are_kept_to_be_drawn() -> None:
    found, p, y = measured(100, loss_kind="quantile")
    assert [w["origin"] for w in found.forecasts] == ["moment 0", "moment 50", "moment 99"]
    one = found.forecasts[2]["targets"][1]
    assert one["label"] == "b"
    assert one["truth"] == pytest.approx(y[99, :, 1])
    q = p.reshape(100, H, K, 3)
    assert (one["forecast"], one["low"], one["high"]) == tuple(pytest.approx(q[99, :, 1, i]) for i in (1, 0, 2))
    assert one["levels"] == [0.1, 0.9]
    assert len(one["context"]) == T


# ------------------------------------------------------------------------------------------------ tables


class Rows:
    def __init__(self, outputs: int = 1) -> None:
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(300, 4, generator=g), torch.randn(300, outputs, generator=g)
        self.spec, self.facts = DataSpec(input_shape=(4,), outputs=outputs, labels=tuple("yz"[:outputs])), {}

    def __len__(self) -> int:
        return 300

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        return Batch(self.x[index], self.y[index], torch.ones(len(index)))


@pytest.mark.parametrize("outputs", [1, 2])
def test_quantiles_of_tables_are_measured_as_scikit_learn_measures_them(outputs: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, levels = Rows(outputs), (0.1, 0.5, 0.9)
    offsets = torch.tensor([-1.0, 0.1, 1.2]).repeat(outputs)

    class Fan(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 0.1 + offsets

    found = evaluate(Fan(), QuantileRegression(quantiles=levels), data, EvaluateConfig(resamples=200), seed=0, split="test")
    q = (data.x[:, :1] * 0.1 + offsets).view(300, outputs, 3).numpy()
    y = data.y.numpy()
    losses = [metrics.mean_pinball_loss(y, q[:, :, i], alpha=level) for i, level in enumerate(levels)]
    assert found.metrics["pinball"].value == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.metrics["pinball_0.9"].value == pytest.approx(losses[2], rel=1e-6)
    assert found.metrics["mae"].value == pytest.approx(metrics.mean_absolute_error(y, q[:, :, 1]), rel=1e-6)
    inside = ((y >= q[:, :, 0]) & (y <= q[:, :, 2])).mean()
    assert found.metrics["coverage_80"].value == pytest.approx(inside)
    assert len(found.per_class) == (0 if outputs == 1 else 2)
    assert "crossed and were sorted" in found.notes[0]
    json.dumps(found.to_json(), allow_nan=False)
