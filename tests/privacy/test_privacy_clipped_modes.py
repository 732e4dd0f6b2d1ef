"""Clipping modes: what they bound, and the quantile that the adaptive one finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.privacy.clipped import ClippedSum, ClippingConfig


def kind(name: str, **more: object) -> ClippingConfig:
    return parse(ClippingConfig, {"kind": name, **more})


def norms(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"a": torch.rand(50, generator=g) * 9, "b": torch.rand(50, generator=g), "c": torch.zeros(50)}


def lengths(squared: dict[str, Tensor], factors: Tensor | dict[str, Tensor]) -> Tensor:
    each = [s * (factors[n] if isinstance(factors, dict) else factors) ** 2 for n, s in squared.items()]
    return torch.stack(each).sum(0).sqrt()


@pytest.mark.parametrize("name", ["flat", "per-layer", "automatic", "adaptive"])
def test_no_units_clipped_gradient_is_longer_than_the_sensitivity(name: str) -> None:
    config = kind(name, norm=0.7)
    squared = norms()
    state = config.start({"a": 10, "b": 5, "c": 1})
    found = lengths(squared, config.factors(squared, state))
    assert float(found.max()) <= config.sensitivity(state) * (1 + 1e-6)
    assert torch.isfinite(found).all()


def test_flat_leaves_short_gradients_alone() -> None:
    squared = {"a": torch.tensor([0.01, 4.0, 0.0])}
    factors = kind("flat").factors(squared, {})
    assert isinstance(factors, Tensor)
    torch.testing.assert_close(factors, torch.tensor([1.0, 0.5, 1.0]))


def test_automatic_is_the_papers_formula() -> None:
    squared = {"a": torch.tensor([0.25, 4.0])}
    torch.testing.assert_close(kind("automatic", norm=2.0).factors(squared, {}), 2.0 / (torch.tensor([0.5, 2.0]) + 0.01))


def test_per_layer_bounds_go_by_size() -> None:
    config = kind("per-layer", norm=2.0, shares="size")
    state = config.start({"a": 9, "b": 16})
    factors = config.factors({"a": torch.tensor([100.0]), "b": torch.tensor([100.0])}, state)
    assert isinstance(factors, dict)
    torch.testing.assert_close(factors["a"] * 10, torch.tensor([2.0 * 3 / 5]))
    torch.testing.assert_close(factors["b"] * 10, torch.tensor([2.0 * 4 / 5]))


def test_the_bound_goes_evenly_to_its_last_value() -> None:
    config = kind("flat", norm=2.0, final_norm=1.0)
    assert [config.sensitivity({}, p) for p in (0.0, 0.5, 1.0)] == [2.0, 1.5, 1.0]


def test_adaptive_finds_the_quantile_and_saves_it() -> None:
    config = kind("adaptive", norm=5.0, quantile=0.7, count_noise=2.0)
    state = config.start({"a": 1})
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        squared = {"a": torch.rand(200, generator=g).square()}
        counted = config.counted(squared, state, torch.ones(200))
        assert counted is not None
        state = config.moved(state, counted, torch.randn((), generator=g), 200.0)
    assert config.bound(state) == pytest.approx(0.7, abs=0.05)
    again = {k: v.clone() for k, v in state.items()}
    assert config.bound(again) == config.bound(state)


def test_padding_counts_for_neither_side() -> None:
    config = kind("adaptive")
    state = config.start({"a": 1})
    squared = {"a": torch.tensor([0.0, 4.0, 0.0])}
    assert config.counted(squared, state, torch.tensor([True, True, False])) == 0.0


def test_adaptives_count_is_charged() -> None:
    config = kind("adaptive", count_noise=2.0)
    assert config.spends(1.0) == pytest.approx((1 + 1 / 16) ** -0.5)
    assert config.spends(1e9) == pytest.approx(4.0)
    assert kind("flat").spends(1.3) == 1.3


def test_adaptive_with_a_fixed_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="final_norm"):
        kind("adaptive", final_norm=1.0)


@pytest.mark.parametrize("name", ["flat", "per-layer", "automatic", "adaptive"])
def test_one_unit_moves_the_sum_by_its_sensitivity_at_most(name: str) -> None:
    """Measured: the sum with a unit and without it, large and small gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    config = kind(name, norm=0.3)
    state = config.start({n: p.numel() for n, p in model.named_parameters()})
    clipped = ClippedSum(model)

    def summed(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        with clipped.recording():
            model(x).square().sum().backward()
        clipped.add(config.factors(clipped.squared_norms(), state))
        clipped.forget()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for size in (1e-3, 1.0, 1e3):
        x = torch.randn(6, 5) * size
        moved = (summed(x) - summed(x[:5])).norm()
        assert 0 < float(moved) <= config.sensitivity(state) * (1 + 1e-4), math.log10(size)
