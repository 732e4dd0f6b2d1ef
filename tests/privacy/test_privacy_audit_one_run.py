"""One-run auditing: the published numbers, SciPy's binomial, randomised response (where the bound is tight), and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tauon.privacy.audit import (
    audit_scores,
    binomial_pmf,
    binomial_tail,
    clopper_pearson,
    epsilon_lower_bound,
    guess,
    p_value,
    pairs_as_coins,
)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],  # arXiv:2305.08846, Appendix D and section 7
)
def test_the_bound_is_the_published_one(m: int, r: int, v: int, delta: float, published: float) -> None:
    assert epsilon_lower_bound(m, r, v, delta, confidence=0.95) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (37, 0.2), (1000, 0.999), (20_000, 0.731), (10, 0.0), (10, 1.0)])
def test_binomial_tails_are_scipys(n: int, p: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert binomial_pmf(n, p) == pytest.approx(stats.binom.pmf(np.arange(n + 1), n, p), rel=1e-7, abs=1e-300)
    for v in {0, 1, n // 2, n}:
        assert binomial_tail(v, n, p) == pytest.approx(stats.binom.sf(v - 1, n, p), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize(("k", "n"), [(0, 50), (50, 50), (1, 1000), (13, 40), (900, 1000), (0, 1), (2_000, 7_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_intervals_are_scipys_clopper_pearson(k: int, n: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    one_sided = stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, method="exact")
    assert clopper_pearson(k, n, confidence, sides=1)[0] == pytest.approx(one_sided.low, abs=1e-9)


def test_randomised_response_meets_the_bound_and_never_passes_it() -> None:
    """Each coin is told truly with probability e^eps / (1 + e^eps), which is eps-DP: the number of right guesses is that binomial, so that
    with delta 0 the p-value is its exact tail, and the bound is at most eps in 95% of runs."""
    epsilon, m, runs = 1.5, 300, 300
    rng = np.random.default_rng(7)
    above, bounds = 0, []
    for _ in range(runs):
        included = rng.random(m) < 0.5
        told = included ^ (rng.random(m) > 1 / (1 + math.exp(-epsilon)))
        found = guess(told.astype(float), included, most=m // 2, least=m - m // 2)
        bounds.append(epsilon_lower_bound(m, m, int((told == included).sum()), 0.0))
        above += bounds[-1] > epsilon
        assert found.guesses == m
    assert above / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.median(bounds) > 1.1  # and near: with 300 coins no more can be told
    q = 1 / (1 + math.exp(-epsilon))
    assert p_value(m, m, 250, epsilon, 0.0) == pytest.approx(binomial_tail(250, m, q))


def test_delta_weakens_the_bound_and_is_never_free() -> None:
    bounds = [epsilon_lower_bound(1000, 100, 80, delta) for delta in (0.0, 1e-6, 1e-4, 1e-3, 0.1)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2] > bounds[3] and bounds[-1] == 0.0


def test_p_value_with_delta_is_the_papers_loop() -> None:
    """Appendix D computes alpha by a loop over i; here it is one cumulative sum."""
    stats = pytest.importorskip("scipy.stats")
    for m, r, v, eps, delta in [(500, 60, 41, 0.3, 1e-3), (100, 100, 60, 0.0, 1e-2), (1000, 10, 10, 2.0, 1e-5), (50, 5, 0, 1.0, 1e-3)]:
        q = 1 / (1 + math.exp(-eps))
        best = total = 0.0
        for i in range(1, v + 1):
            total += stats.binom.pmf(v - i, r, q)
            best = max(best, total / i)
        assert p_value(m, r, v, eps, delta) == pytest.approx(min(1.0, stats.binom.sf(v - 1, r, q) + 2 * m * delta * best), rel=1e-9)


def test_no_luck_proves_nothing_and_all_right_proves_as_much_as_the_coins_allow() -> None:
    assert epsilon_lower_bound(100, 0, 0, 0.0) == 0.0
    assert epsilon_lower_bound(100, 100, 50, 0.0) == 0.0
    # All right: (e^eps / (1 + e^eps))^100 = 0.05
    q = 0.05 ** (1 / 100)
    assert epsilon_lower_bound(100, 100, 100, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_a_claim_is_refuted_by_what_is_impossible_under_it_and_by_nothing_else() -> None:
    rng = np.random.default_rng(3)
    included = rng.random(1000) < 0.5
    told = audit_scores(included.astype(float), included, delta=1e-5, claimed=3.0)
    assert told.contradicts and told.epsilon > 4.5 and told.p_of_claim is not None and told.p_of_claim < 0.01
    blind = audit_scores(rng.normal(size=1000), included, delta=1e-5, claimed=0.0)
    assert not blind.contradicts and blind.epsilon == 0.0


def test_trying_several_numbers_of_guesses_keeps_the_confidence() -> None:
    """Scores without knowledge, 600 times: a bound above 0 in at most 5%."""
    rng = np.random.default_rng(11)
    wrong = sum(audit_scores(rng.normal(size=200), rng.random(200) < 0.5, delta=0.0).epsilon > 0 for _ in range(600))
    assert wrong / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_pairs_of_a_random_split_are_fair_coins_within_their_groups() -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 3, 5000), rng.integers(1, 4, 8000)
    a, b, coins = pairs_as_coins(5000, 8000, seed=1, member_groups=groups[0], other_groups=groups[1])
    whole = np.concatenate(groups)
    assert (whole[a] == whole[b]).all() and set(whole[a]) == {1, 2}
    assert ((a < 5000) == coins).all() and ((b < 5000) == ~coins).all() and len(set(a) | set(b)) == 2 * len(a)
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(coins))
    for shift, proves in ((0.0, False), (2.0, True)):
        scores = rng.normal(size=13_000) + shift * (np.arange(13_000) < 5000)
        assert (audit_scores(scores[a] - scores[b], coins, delta=0.0).epsilon > 1) == proves


def test_a_coin_that_replaces_an_example_proves_half_as_much() -> None:
    one, two = (epsilon_lower_bound(1000, 100, 95, 0.0, examples=k) for k in (1, 2))
    assert two == pytest.approx(one / 2, abs=1e-6)
    assert epsilon_lower_bound(1000, 100, 95, 1e-4, examples=2) < epsilon_lower_bound(1000, 100, 95, 1e-4) / 2  # delta grows, too


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="right <= guesses"):
        p_value(10, 5, 6, 1.0, 0.0)
    with pytest.raises(ValueError, match="delta"):
        p_value(10, 5, 5, 1.0, 2.0)
    with pytest.raises(ValueError, match="not finite"):
        guess(np.array([1.0, math.nan]), np.array([True, False]), most=1, least=1)
