"""Epsilon: published tables, dp-accounting, Opacus, closed forms; that it only moves the way it must; what is refused."""

from __future__ import annotations

import json
import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("dp_accounting")

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.stats import norm

from tauon.errors import RecipeError
from tauon.privacy.accounting import (
    Guarantee,
    Release,
    calibrate,
    charge_search,
    compose_basic,
    composed_loss,
    delta_at,
    epsilon,
    epsilons,
    guarantee,
    refuse_delta,
    refuse_epsilon,
    relation_of,
    trade_off,
)
from tauon.privacy.accounting.loss import event_of, rounded
from tauon.privacy.accounting.release import grouped, plain
from tauon.privacy.accounting.spectral import connect_dots
from tauon.privacy.fitting import total_epsilon


def poisson(z: float, q: float, n: int = 1) -> Release:
    return Release(z, "poisson", q, n)


def library(*releases: Release, delta: float = 1e-5, rdp: bool = False) -> float:
    """dp-accounting's own figure."""
    accountant = RdpAccountant() if rdp else PLDAccountant()
    return float(accountant.compose(event_of(releases)).get_epsilon(delta))


# ---------------------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize(("z", "batch", "epochs", "published"), [(1.3, 256, 15, 1.19), (1.1, 256, 60, 3.01), (0.7, 256, 45, 7.10)])
def test_mnist_table_of_tensorflow_privacy(z: float, batch: int, epochs: int, published: float) -> None:
    """Its README, also table 1 of Bu et al. 2019 (arXiv:1911.11607), by moments: epsilon = RDP + log(1/delta) / (order - 1). What is
    known today about the same run is better, and never worse."""
    run = poisson(z, batch / 60000, epochs * 60000 // batch)
    moments = RdpAccountant().compose(event_of([run]))
    classic = min(r + math.log(1e5) / (a - 1) for a, r in zip(moments.orders, moments.rdp, strict=True) if a > 1)
    assert round(classic, 2) == pytest.approx(published, abs=1e-9)
    assert epsilon(run, 1e-5) < epsilon(run, 1e-5, accountant="rdp") < published


@pytest.mark.parametrize(("z", "epochs", "limit"), [(1.3, 15, 0.83), (1.1, 60, 2.32), (0.7, 45, 5.07)])
def test_central_limit_figures_of_gaussian_dp(z: float, epochs: int, limit: float) -> None:
    """Bu et al. 2019, table 1: the limit of infinitely many steps, which is known to be a little below the truth."""
    found = epsilon(poisson(z, 256 / 60000, epochs * 60000 // 256), 1e-5)
    assert limit < found < 1.12 * limit


def test_moments_accountant_of_abadi() -> None:
    """Abadi et al. 2016, section 4: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5: 1.26."""
    run = poisson(4.0, 0.01, 10_000)
    assert epsilon(run, 1e-5) == pytest.approx(0.948, abs=2e-3)
    assert epsilon(run, 1e-5, accountant="rdp") < 1.26


# ---------------------------------------------------------------------------------------------- other accountants, closed forms


@pytest.mark.parametrize(
    "run",
    [
        [poisson(1.1, 0.01, 1000)],
        [poisson(0.8, 0.004, 3000), poisson(1.2, 0.01, 500)],
        [poisson(4.0, 0.2, 300), Release(8.0, "full", count=3)],
        [poisson(0.6, 0.001, 500)],
        [poisson(1.0, 0.5, 3)],
        [Release(1.0, "full"), Release(3.0, "full", count=4)],
    ],
)
def test_epsilon_is_that_of_dp_accounting_to_half_a_percent_and_not_below(run: list[Release]) -> None:
    theirs = library(*run)
    ours = epsilon(run, 1e-5)
    assert -1e-4 <= ours / theirs - 1 < 5e-3
    assert epsilon(run, 1e-5, accountant="rdp") == pytest.approx(library(*run, rdp=True), rel=1e-9)
    assert ours < epsilon(run, 1e-5, accountant="rdp")


def test_many_different_steps_are_those_of_dp_accounting() -> None:
    run = [poisson(float(z), 0.02) for z in np.geomspace(2.0, 0.8, 12)]
    assert 0 <= epsilon(run, 1e-6) / library(*run, delta=1e-6) - 1 < 5e-3


def test_epsilon_is_that_of_opacus() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    theirs = accountants.PRVAccountant()
    theirs.history = [(1.1, 0.01, 1000), (0.8, 0.02, 500)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.get_epsilon(1e-5)  # within 0.01 above the truth
    assert epsilon([poisson(1.1, 0.01, 1000), poisson(0.8, 0.02, 500)], 1e-5) == pytest.approx(expected, rel=5e-3)


def gaussian_delta(mu: float, eps: float) -> float:
    """Balle & Wang 2018 (arXiv:1805.06530), theorem 8."""
    return float(norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * norm.cdf(-eps / mu - mu / 2))


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0])
def test_full_batches_are_the_closed_form_of_the_gaussian(z: float) -> None:
    steps = [Release(z, "full", count=4), Release(2 * z, "full", count=3)]
    mu = math.sqrt(4 / z**2 + 3 / (2 * z) ** 2)
    for eps in (0.2, 1.0, mu):
        assert delta_at(steps, eps) == pytest.approx(gaussian_delta(mu, eps), rel=1e-3)
    alphas = [0.0, 0.01, 0.1, 0.5, 0.9]
    betas = [float(norm.cdf(norm.ppf(1 - a) - mu)) for a in alphas]
    found = trade_off(steps, alphas)
    assert found == pytest.approx(betas, abs=2e-3)
    assert all(f <= b + 1e-9 for f, b in zip(found, betas, strict=True))  # a lower bound


def test_one_step_on_a_lattice_keeps_both_neighbours_mass() -> None:
    """Connecting the dots: mass 1 under the one, and e^-loss mass at most 1 under the other; delta is above the exact one, closely."""
    z, q = 0.9, 0.05
    loss = np.arange(-60, 12000) * 1e-3
    for adds in (False, True):
        (p,), (infinite,) = connect_dots(np.array([z]), np.array([q]), loss, adds=adds)
        at = -loss[::-1] if adds else loss
        assert p.sum() + infinite == pytest.approx(1, abs=1e-12)
        assert (p * np.exp(-at)).sum() == pytest.approx(1, abs=1e-9)
        exact = dp_accounting.pld.privacy_loss_mechanism.GaussianPrivacyLoss(
            z, sampling_prob=q, adjacency_type=dp_accounting.pld.privacy_loss_mechanism.AdjacencyType["ADD" if adds else "REMOVE"]
        )
        for eps in (0.01, 0.03, 0.2):
            ours = infinite + float((p * np.maximum(0, -np.expm1(eps - at))).sum())
            assert ours == pytest.approx(float(exact.get_delta_for_epsilon(eps)), rel=1e-3, abs=1e-12)
            assert ours >= float(exact.get_delta_for_epsilon(eps)) - 1e-13


def test_a_known_mechanism_counts_with_its_own_epsilon_and_delta() -> None:
    answer = Release(0.0, "known", known=(0.3, 1e-7))
    assert epsilon(answer, 1e-6) == pytest.approx(0.3, abs=2e-4)
    assert epsilon([answer] * 3, 1e-5) <= 0.9 + 1e-3
    assert 1.2 < epsilon([answer, Release(1.0, "full")], 1e-3) / epsilon(Release(1.0, "full"), 1e-3) * 1.2 < 1.4
    assert math.isinf(epsilon([Release(0.0, "known", known=(0.3, 1e-3))], 1e-5))
    assert epsilon([answer] * 3, 1e-5, accountant="rdp") >= epsilon([answer] * 3, 1e-5)


# ---------------------------------------------------------------------------------------------- how it must move


RUN = st.lists(st.tuples(st.floats(0.5, 4.0), st.sampled_from([0.003, 0.02, 0.1, 1.0]), st.integers(1, 200)), min_size=1, max_size=4)


def as_run(steps: list[tuple[float, float, int]]) -> list[Release]:
    return [poisson(z, q, n) for z, q, n in steps]


@settings(max_examples=15, deadline=None)
@example([(0.5, 0.003, 2)], 1.5)
@given(RUN, st.floats(1.05, 3.0))
def test_more_noise_fewer_steps_a_larger_delta_never_cost_more(steps: list[tuple[float, float, int]], more: float) -> None:
    base = epsilon(as_run(steps), 1e-5)
    room = 1 + 3e-3
    assert epsilon(as_run([(z * more, q, n) for z, q, n in steps]), 1e-5) <= base * room
    assert epsilon(as_run(steps[1:]), 1e-5) <= base * room
    assert epsilon(as_run(steps), 1e-4) <= base * room
    assert epsilon(as_run([(z, q / more, n) for z, q, n in steps]), 1e-5) <= base * room
    coarse = epsilon(rounded(as_run(steps), 0.01), 1e-5)
    assert (
        base <= coarse * 1.01 <= base * 1.12
    )  # both are upper bounds: for few steps with little sampling, the grid makes one too large by 0.6%


@settings(max_examples=15, deadline=None)
@given(RUN, st.randoms(use_true_random=False))
def test_order_and_grouping_change_nothing(steps: list[tuple[float, float, int]], random: object) -> None:
    run = as_run(steps)
    mixed = [poisson(r.noise_multiplier, r.rate) for r in run for _ in range(min(3, r.count))]
    same = list(mixed)
    random.shuffle(same)  # type: ignore[attr-defined]
    assert epsilon(mixed, 1e-5) == pytest.approx(epsilon(same, 1e-5), rel=1e-9)
    assert epsilon(grouped(mixed), 1e-5) == pytest.approx(epsilon(mixed, 1e-5), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(RUN)
def test_the_trade_off_curve_falls_convexly_below_guessing(steps: list[tuple[float, float, int]]) -> None:
    alphas = np.linspace(0, 1, 21)
    betas = np.array(trade_off(as_run(steps), alphas))
    assert np.all(betas <= 1 - alphas + 1e-9) and np.all(np.diff(betas) <= 1e-9) and np.all(np.diff(betas, 2) >= -1e-6)


def test_epsilon_and_delta_invert_each_other() -> None:
    run = [poisson(1.0, 0.01, 500), Release(5.0, "full")]
    found = epsilons(run, [1e-4, 1e-6, 1e-8])
    assert list(found.values()) == sorted(found.values())
    for delta, eps in found.items():
        assert delta_at(run, eps) == pytest.approx(delta, rel=1e-3)
    assert epsilons([], [1e-5]) == {1e-5: 0.0}
    assert delta_at([], 1.0) == 0.0


def test_different_steps_are_not_those_of_their_mean() -> None:
    """Why schedules are accounted step by step: the mean of the noise would promise too much."""
    run = [poisson(0.5, 0.01, 500), poisson(3.5, 0.01, 500)]
    assert epsilon(run, 1e-5) > 2 * epsilon(poisson(2.0, 0.01, 1000), 1e-5)


def test_ten_thousand_different_steps_are_quick() -> None:
    """The benchmark `accountant` measures it; here only that nobody made it quadratic."""
    run = [poisson(float(z), float(q)) for z, q in zip(np.linspace(2.0, 0.7, 10_000), np.geomspace(0.002, 0.01, 10_000), strict=True)]
    start = time.process_time()
    found = epsilon(run, 1e-5)
    assert time.process_time() - start < 10
    parts = [run[i : i + 100] for i in range(0, 10_000, 100)]
    above = [poisson(min(r.noise_multiplier for r in part), max(r.rate for r in part), 100) for part in parts]
    below = [poisson(max(r.noise_multiplier for r in part), min(r.rate for r in part), 100) for part in parts]
    assert epsilon(below, 1e-5) < found < epsilon(above, 1e-5) < 1.05 * found


# ---------------------------------------------------------------------------------------------- other ways to draw examples


def test_whole_passes_cost_one_gaussian_a_pass() -> None:
    assert epsilon(Release(4.0, "shuffled", 0.1, 50), 1e-5) == pytest.approx(epsilon(Release(4.0, "full", count=5), 1e-5))
    assert epsilon(Release(4.0, "shuffled", 0.1, 41), 1e-5) == pytest.approx(epsilon(Release(4.0, "full", count=5), 1e-5))
    # 3 batches in a pass of rate 0.3 where the last one is dropped, 4 where it is kept: the worse
    assert epsilon(Release(4.0, "shuffled", 0.3, 12), 1e-5) == pytest.approx(epsilon(Release(4.0, "full", count=4), 1e-5))


def test_whole_passes_of_changing_noise_cost_the_worst_place_an_example_can_have() -> None:
    """Against every order that 4 batches a pass can have: an example is in one step of each pass."""
    noise = [5.0, 3.0, 4.0, 2.0, 6.0, 2.5, 7.0, 4.5]
    worst = max(1 / noise[i] ** 2 + 1 / noise[4 + j] ** 2 for i in range(4) for j in range(4))
    steps = plain([Release(z, "shuffled", 0.25) for z in noise])
    assert sum(r.count / r.noise_multiplier**2 for r in steps) == pytest.approx(worst)
    rng = np.random.default_rng(0)
    for _ in range(50):  # a rate that does not divide the data: with the last batch dropped, or kept
        noise = list(rng.uniform(1, 5, 12))
        got = sum(r.count / r.noise_multiplier**2 for r in plain([Release(z, "shuffled", 0.3) for z in noise]))
        for pass_ in (3, 4):
            true = sum(max(1 / z**2 for z in noise[i : i + pass_]) for i in range(0, 12, pass_))
            assert got >= true - 1e-12


def test_fixed_batches_are_those_of_dp_accounting_for_a_replaced_example() -> None:
    run = Release(4.0, "fixed-size", 0.01, 200)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.SampledWithoutReplacementDpEvent(100, 1, dp_accounting.GaussianDpEvent(2.0)), 200
    )
    theirs = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE).compose(event).get_epsilon(1e-5)
    assert epsilon(run, 1e-5, accountant="rdp") == pytest.approx(theirs)
    with pytest.raises(RecipeError, match=r"accountant=rdp"):
        epsilon(run, 1e-5)


def test_fixed_batches_and_coins_are_one_sum_for_a_zeroed_out_example() -> None:
    """By hand: the Renyi divergences of both, order by order. Replacing one contains zeroing it out, so that the sum is for that."""
    fixed, coins, answer = Release(4.0, "fixed-size", 0.01, 1000), poisson(1.1, 0.01, 1000), Release(20.0, "full")
    rule = dp_accounting.rdp.rdp_privacy_accountant
    replaced = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE).compose(
        dp_accounting.SelfComposedDpEvent(dp_accounting.SampledWithoutReplacementDpEvent(100, 1, dp_accounting.GaussianDpEvent(2.0)), 1000)
    )
    zeroed = RdpAccountant().compose(
        dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.1)), 1000)
    )
    by_hand = rule.compute_epsilon(replaced.orders, replaced.rdp + zeroed.rdp, 1e-5)[0]
    assert epsilon([fixed, coins], 1e-5, accountant="rdp") == pytest.approx(by_hand)
    assert relation_of([fixed]) == "replace one"
    assert {relation_of([*many, answer]) for many in ([fixed], [coins], [fixed, coins], [])} == {"zero out one"}
    stated = guarantee([fixed, answer], 1e-5, accountant="rdp")
    assert stated.neighbouring == "zero out one" and "zeroed out" in stated.assumptions[0]
    assert delta_at([fixed, answer], stated.epsilon, accountant="rdp") == pytest.approx(1e-5, rel=1e-3)
    assert charge_search([fixed, answer], 1e-5, mean_trials=10) > stated.epsilon
    with pytest.raises(RecipeError, match=r"both poisson and fixed-size steps"):
        charge_search([fixed, coins], 1e-5, mean_trials=10)


def test_a_ledgers_total_is_for_one_relation_and_the_smaller_of_two_bounds() -> None:
    fixed, coins = Release(4.0, "fixed-size", 0.01, 1000), poisson(1.1, 0.01, 1000)
    summed = epsilon(fixed, 5e-6, accountant="rdp") + epsilon(coins, 5e-6)
    together = epsilon([fixed, coins], 1e-5, accountant="rdp")
    assert total_epsilon([fixed, coins], 1e-5, "rdp") == together
    assert total_epsilon([fixed, coins], 1e-5, "pld") == min(summed, together)
    assert total_epsilon([fixed], 1e-5, "pld") == epsilon(fixed, 1e-5, accountant="rdp")


# ---------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("target", [0.3, 3.0])
def test_calibrated_noise_meets_its_target_closely(target: float, accountant: str) -> None:
    def run(m: float) -> list[Release]:
        return [poisson(m * f, 0.02, 50) for f in (1.0, 0.8, 0.6)] + [Release(20 * m, "full")]

    z = calibrate(run, target_epsilon=target, delta=1e-5, accountant=accountant)  # type: ignore[arg-type]
    assert (1 - 2e-3) * target <= epsilon(run(z), 1e-5, accountant=accountant) <= target  # type: ignore[arg-type]


def test_calibration_of_one_gaussian_is_the_analytic_one() -> None:
    """Balle & Wang 2018: the exact sigma for (1, 1e-5) is 3.7306."""
    assert calibrate(lambda m: [Release(m, "full")], target_epsilon=1, delta=1e-5) == pytest.approx(3.7306, rel=2e-3)


def test_a_target_that_other_releases_have_spent_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"cannot be reached"):
        calibrate(lambda m: [poisson(m, 0.01), Release(0.5, "full")], target_epsilon=1, delta=1e-5)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"noise_multiplier": 0.0}, "epsilon is infinite"),
        ({"noise_multiplier": -1.0}, "epsilon is infinite"),
        ({"noise_multiplier": math.nan}, "epsilon is infinite"),
        ({"noise_multiplier": 1.0, "rate": 1.5}, "larger than the data"),
        ({"noise_multiplier": 1.0, "rate": 0.0}, "expected above 0 and at most 1"),
        ({"noise_multiplier": 1.0, "sampling": "full", "rate": 0.5}, "every example"),
        ({"noise_multiplier": 1.0, "count": 0}, "at least 1"),
        ({"noise_multiplier": 1.0, "sampling": "magic"}, "is not supported"),
        ({"noise_multiplier": 1.0, "sampling": "known"}, r"expected \(epsilon, delta\)"),
        ({"noise_multiplier": 1.0, "known": (1.0, 0.0)}, "needs sampling 'known'"),
    ],
)
def test_impossible_releases_are_refused(what: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Release(**what)  # type: ignore[arg-type]


def test_deltas_and_epsilons_out_of_range_are_refused() -> None:
    for delta in (0.0, 1.0, -1e-5, math.nan):
        with pytest.raises(RecipeError, match=r"expected above 0"):
            epsilon(poisson(1.0, 0.1), delta)
    refuse_delta(1e-5, 60_000)
    with pytest.raises(RecipeError, match=r"not below 1/N = 1e-05 \(N = 100,000\).*Set 1e-06"):
        refuse_delta(1e-5, 100_000)
    for eps in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RecipeError, match=r"expected a number above 0"):
            refuse_epsilon(eps)
    with pytest.raises(RecipeError, match=r"expected a number of at least 0"):
        delta_at(poisson(1.0, 0.1), -1.0)
    with pytest.raises(RecipeError, match=r"must be from 0 to 1"):
        trade_off(poisson(1.0, 0.1), [1.5])
    with pytest.raises(RecipeError, match=r"accountant=rdp"):
        epsilon(poisson(1.0, 0.1), 1e-13)


# ---------------------------------------------------------------------------------------------- the record


def test_a_guarantee_survives_json_and_says_what_it_assumes() -> None:
    run = [poisson(1.1, 0.01, 300), Release(30.0, "full")]
    stated = guarantee(run, 1e-5, unit="patient", examples=50_000, assumptions=["a", "b"])
    assert Guarantee.from_json(json.loads(json.dumps(stated.to_json()))) == stated
    assert stated.epsilon == pytest.approx(epsilon(run, 1e-5))
    assert max(stated.epsilons) <= 1e-5 and stated.epsilons[1e-6] > stated.epsilon
    assert "patient" in stated.sentence() and "zero out one" in stated.sentence()
    assert any("zeroed out" in a and "same number N" in a for a in stated.assumptions) and not any(
        "more or less" in a for a in stated.assumptions
    )
    assert any("in each step independently" in a for a in stated.assumptions) and stated.assumptions[-1] == "b"
    assert any("search" in n for n in stated.not_covered)
    assert stated.curve[0] == (0.0, pytest.approx(1.0, abs=1e-3)) and stated.curve[-1][0] == 1.0
    assert guarantee(Release(3.0, "shuffled", 0.1, 20), 1e-5).neighbouring == "zero out one"
    with pytest.raises(RecipeError, match=r"1/N"):
        guarantee(run, 1e-3, examples=1000)
    assert composed_loss(stated.releases).get_epsilon_for_delta(1e-5) == pytest.approx(stated.epsilon)


def test_a_search_costs_more_than_a_trial_and_less_than_all_of_them() -> None:
    one = poisson(2.0, 0.01, 1000)
    costs = [charge_search(one, 1e-5, mean_trials=k) for k in (2, 10, 50)]
    assert epsilon(one, 1e-5) < costs[0] < costs[1] < costs[2] < epsilon(poisson(2.0, 0.01, 50_000), 1e-5)
    # theorem 2 of the paper by hand, for a geometric number (shape 1, gamma = 1 / mean) of trials that are one Gaussian each
    z, k, delta = 5.0, 10.0, 1e-5
    orders = np.linspace(1.05, 200, 4000)
    rdp = orders / (2 * z**2)
    repeated = rdp + 2 * np.min((1 - 1 / orders) * rdp + math.log(k) / orders) + math.log(k) / (orders - 1)
    classic = float(np.min(repeated + math.log(1 / delta) / (orders - 1)))
    assert 0.6 * classic < charge_search(Release(z, "full"), delta, mean_trials=k) <= 1.001 * classic
    with pytest.raises(RecipeError, match=r"mean of at least 1"):
        charge_search(one, 1e-5, mean_trials=0.5)


def test_basic_composition_adds() -> None:
    assert compose_basic([(1.0, 1e-6), (0.5, 2e-6)]) == (1.5, pytest.approx(3e-6))
