"""Forecasting and quantile regression: losses equal torch's and scikit-learn's, gradients lead to quantiles, crossings are sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.tasks import Forecasting, QuantileRegression, Task, pinball
from tauon.types import Batch, DataSpec


class Says(nn.Module):
    """A model whose outputs are given."""

    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.out


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(targets: torch.Tensor) -> Batch:
    weights = torch.ones(len(targets))
    weights[-1] = 0
    return Batch(torch.zeros(len(targets), 2, 2), targets, weights)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.8])
def test_pinball_is_scikit_learns(alpha: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    y, p = drawn(50), drawn(50, seed=1)
    assert pinball(p[:, None], y, (alpha,)).mean().item() == pytest.approx(
        metrics.mean_pinball_loss(y.numpy(), p.numpy(), alpha=alpha), rel=1e-6
    )


def test_the_least_pinball_loss_is_at_the_quantile() -> None:
    y = drawn(999).double()
    levels = (0.1, 0.5, 0.9)
    q = torch.zeros(3, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([q], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        pinball(q.expand(999, 3), y, levels).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(q.detach(), np.quantile(y, levels), atol=0.03)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, nn.MSELoss()),
        ({"loss_kind": "mae"}, nn.L1Loss()),
        ({"loss_kind": "huber"}, nn.HuberLoss()),
        ({"loss_kind": "huber", "delta": 0.3}, nn.HuberLoss(delta=0.3)),
    ],
)
def test_losses_are_torchs_mean_over_windows_steps_and_targets(settings: dict[str, Any], expected: nn.Module) -> None:
    task, out, y = parse(Task, {"kind": "forecasting"} | settings), drawn(5, 4, 3), drawn(5, 4, 3, seed=1)
    total, weight = task.loss(Says(out), batch(y))
    assert weight.item() == 4
    torch.testing.assert_close(total / weight, expected(out[:4], y[:4]))


def test_quantile_forecasts_are_laid_out_target_by_target() -> None:
    task = Forecasting(loss_kind="quantile", quantiles=(0.2, 0.5, 0.8))
    spec = DataSpec(input_shape=(2, 2), outputs=2, labels=("a", "b"), horizon=4)
    assert task.shape(spec).outputs == 6
    assert Forecasting(loss_kind="quantile").levels == (0.1, 0.5, 0.9)
    assert Forecasting().shape(spec) == spec
    y = drawn(5, 4, 2)
    out = torch.stack([y - 1, y + 0.5, y + 2], dim=3).flatten(2)  # B H (K Q)
    total, weight = task.loss(Says(out), batch(y))
    assert (total / weight).item() == pytest.approx((0.2 * 1 + 0.5 * 0.5 + 0.2 * 2) / 3, rel=1e-5)
    said = task.predict(Says(out), batch(y))
    torch.testing.assert_close(said["predictions"], y + 0.5)
    torch.testing.assert_close(said["quantiles"], torch.stack([y - 1, y + 0.5, y + 2], dim=3))
    assert said["crossed"].sum() == 0
    assert said["levels"].tolist() == [pytest.approx([0.2, 0.5, 0.8])] * 5


def test_crossing_quantiles_are_sorted_and_counted() -> None:
    y = drawn(4, 3, 1)
    out = torch.stack([y + 1, y, y + 2], dim=3)
    said = Forecasting(loss_kind="quantile").predict(Says(out.flatten(2)), batch(y))
    assert (said["quantiles"].diff(dim=3) >= 0).all()
    assert said["crossed"].tolist() == [0.5] * 4
    arrays = QuantileRegression().predict(Says(out[:, 0].flatten(1)), batch(y[:, 0, 0]))
    assert (arrays["quantiles"].diff(dim=2) >= 0).all()
    assert arrays["crossed"].tolist() == [0.5] * 4
    # sorting never makes the loss worse (Chernozhukov et al. 2010)
    levels = (0.1, 0.5, 0.9)
    assert pinball(arrays["quantiles"], y[:, 0], levels).mean() <= pinball(out[:, 0], y[:, 0], levels).mean()


def test_quantile_regression_is_the_mean_over_quantiles_and_the_sum_over_targets() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    task = QuantileRegression(quantiles=(0.25, 0.75))
    assert task.shape(DataSpec(input_shape=(2,), outputs=2)).outputs == 4
    out, y = drawn(6, 4), drawn(6, 2, seed=1)
    total, weight = task.loss(Says(out), batch(y))
    theirs = sum(
        metrics.mean_pinball_loss(y[:5, k].numpy(), out[:5, 2 * k + i].numpy(), alpha=q)
        for k in range(2)
        for i, q in enumerate((0.25, 0.75))
    )
    assert (total / weight).item() == pytest.approx(theirs / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "quantile-regression", "quantiles": []}, "quantiles: is empty"),
        ({"kind": "quantile-regression", "quantiles": [0.5, 0.1]}, "must be ascending without duplicates"),
        ({"kind": "quantile-regression", "quantiles": [0.0, 0.5]}, "0 is not between 0 and 1"),
        ({"kind": "forecasting", "quantiles": [0.5]}, "quantiles: has no effect with loss_kind: .*set loss_kind: quantile"),
        ({"kind": "forecasting", "loss_kind": "quantile", "quantiles": [0.1, 0.9]}, "has no 0.5: the median is the forecast"),
        ({"kind": "forecasting", "delta": 2}, "delta: has no effect with loss_kind: .*set loss_kind: huber"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(Task, settings)
