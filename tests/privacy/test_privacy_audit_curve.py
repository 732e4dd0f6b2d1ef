"""Auditing a whole curve: closed forms of Gaussian DP, validity under the true curve, power against half the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tauon.privacy.audit import (
    audit_curve,
    audit_scores,
    binomial_tail,
    curve_p_value,
    epsilon_delta_curve,
    gaussian_curve,
    gaussian_epsilon,
    points_curve,
)


def gaussian_run(m: int, mu: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """m coins, each told through noise that makes it exactly mu-GDP."""
    included = rng.random(m) < 0.5
    return included * mu + rng.normal(size=m), included


@pytest.mark.parametrize(("mu", "delta"), [(0.5, 1e-6), (1.0, 1e-5), (2.0, 1e-5), (6.0, 1e-7)])
def test_epsilon_of_gaussian_dp_is_the_analytic_mechanisms(mu: float, delta: float) -> None:
    """dp-accounting's analytic Gaussian mechanism of noise 1 / mu."""
    accounting = pytest.importorskip("dp_accounting")
    assert gaussian_epsilon(mu, delta) == pytest.approx(accounting.get_epsilon_gaussian(1 / mu, delta), rel=1e-6)


def test_curves_are_those_of_their_definitions() -> None:
    alphas = np.linspace(0, 1, 201)
    blind = [gaussian_curve(0.0)(a) for a in alphas]
    assert blind == pytest.approx(1 - alphas, abs=1e-12)
    assert [epsilon_delta_curve(0.0, 0.0)(a) for a in alphas] == pytest.approx(1 - alphas)
    mu, delta = 1.3, 1e-3
    line = epsilon_delta_curve(gaussian_epsilon(mu, delta), delta)
    gaps = [gaussian_curve(mu)(a) - line(a) for a in np.linspace(1e-4, 1, 20_001)]
    assert min(gaps) > -1e-9 and min(gaps) < 1e-3  # the curve lies above its tangents, and touches them
    for points in (9, 50, 2001):
        grid = np.linspace(0, 1, points)
        curve = points_curve(grid, [gaussian_curve(mu)(a) for a in grid])
        off = [gaussian_curve(mu)(a) - curve(a) for a in np.linspace(0, 1, 777)]
        assert min(off) > -1e-9 and max(off) < 5 / points  # never above what it goes through, and near it where points are many


def test_a_blind_guess_is_judged_nearly_as_by_its_binomial() -> None:
    """Under the curve of perfect privacy the number of right guesses is Binomial(r, 1/2); the bound may be larger, by little, never smaller."""
    for r, v in [(50, 35), (200, 120), (1000, 540), (1000, 600)]:
        exact, bound = binomial_tail(v, r, 0.5), curve_p_value(gaussian_curve(0.0), r, r, v)
        assert exact <= bound * (1 + 1e-4) and bound < 12 * exact


def test_the_true_curve_is_seldom_refuted() -> None:
    rng = np.random.default_rng(5)
    runs = 150
    refuted = sum(audit_curve(*gaussian_run(400, 1.0, rng), delta=1e-5, claimed=gaussian_curve(1.0)).contradicts for _ in range(runs))
    assert refuted / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_half_the_noise_is_refuted_where_epsilon_and_delta_alone_are_not() -> None:
    """Noise for half the sensitivity: 1-GDP was claimed, (4.38, 1e-5), and 2-GDP is true."""
    rng = np.random.default_rng(5)
    scores, included = gaussian_run(2000, 2.0, rng)
    found = audit_curve(scores, included, delta=1e-5, claimed=gaussian_curve(1.0))
    assert found.contradicts and 1.0 < found.mu < 2.0 and found.epsilon <= gaussian_epsilon(2.0, 1e-5)
    assert not audit_scores(scores, included, delta=1e-5, claimed=gaussian_epsilon(1.0, 1e-5)).contradicts


def test_the_bound_on_mu_holds() -> None:
    rng = np.random.default_rng(6)
    above = sum(audit_curve(*gaussian_run(300, 0.8, rng), delta=1e-5).mu > 0.8 for _ in range(100))
    assert above <= 5 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_all_right_refutes_every_curve_that_hides_anything() -> None:
    assert curve_p_value(gaussian_curve(1.0), 1000, 1000, 1000) < 1e-6
    assert curve_p_value(gaussian_curve(1.0), 1000, 1000, 500) == 1.0
    with pytest.raises(ValueError, match="right <= guesses"):
        curve_p_value(gaussian_curve(1.0), 10, 11, 5)
