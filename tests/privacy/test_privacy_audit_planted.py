"""Bugs that make a mechanism less private than it says are caught; the right mechanism passes. `planted.py` has the mechanism."""

from __future__ import annotations

import numpy as np
import pytest
from planted import BUGS, Mechanism, canaries, white_box

from tauon.privacy.audit import audit_curve, audit_scores, epsilon_of_rates, gaussian_curve, gaussian_epsilon, judge

M, DELTA, SEED = 1500, 1e-5, 11


def planted(mechanism: Mechanism, seed: int = SEED, m: int = M) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(statistics, coins) of one run."""
    included = np.random.default_rng([seed, 0]).random(m) < 0.5
    _, seen = mechanism.train(*canaries(m, included, 200, seed), seed)
    return white_box(seen, m), included


def sampled_epsilon(mechanism: Mechanism) -> float:
    """What dp-accounting's PLD says of it."""
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    one = pld.from_gaussian_mechanism(mechanism.sigma, sampling_prob=mechanism.rate, value_discretization_interval=1e-3)
    return float(one.self_compose(mechanism.steps).get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_right_mechanism_passes_and_the_bound_is_no_empty_one(seed: int) -> None:
    full = Mechanism(sigma=4.0, rate=1.0, steps=16)  # 16 steps of 1/4: exactly 1-GDP
    found = judge(*planted(full, seed), delta=DELTA, claimed=gaussian_epsilon(1.0, DELTA), curve=gaussian_curve(1.0))
    assert not found.contradicts and found.curve.mu < 1 and found.bound.epsilon < gaussian_epsilon(1.0, DELTA)
    assert found.curve.mu > 0.3 and found.bound.epsilon > 0.1
    sampled = Mechanism(sigma=3.0, rate=0.25, steps=20)
    assert not judge(*planted(sampled, seed), delta=DELTA, claimed=sampled_epsilon(sampled)).contradicts


@pytest.mark.parametrize("bug", ["no-noise", "half-sensitivity", "clipped-mean"])
def test_a_bug_of_noise_or_clipping_is_caught(bug: str) -> None:
    scores, included = planted(Mechanism(sigma=4.0, rate=1.0, steps=16, bug=bug))  # type: ignore[arg-type]
    found = judge(scores, included, delta=DELTA, claimed=gaussian_epsilon(1.0, DELTA), curve=gaussian_curve(1.0))
    assert found.contradicts and found.curve.mu > 1


@pytest.mark.parametrize("bug", ["no-noise", "reused-noise", "clipped-mean"])
def test_a_bug_is_caught_under_sampling_by_epsilon_and_delta_alone(bug: str) -> None:
    mechanism = Mechanism(sigma=3.0, rate=0.25, steps=20, bug=bug)  # type: ignore[arg-type]
    found = judge(*planted(mechanism), delta=DELTA, claimed=sampled_epsilon(mechanism))
    assert found.contradicts and found.bound.epsilon > sampled_epsilon(mechanism)
    assert bug != "reused-noise" or found.statistic == "change"  # differences from step to step give it away


def test_the_final_weights_alone_give_the_worst_bugs_away() -> None:
    """Black box: the weight at each canary's coordinate, at the end."""
    for bug in ("", "no-noise", "clipped-mean"):
        mechanism = Mechanism(sigma=3.0, rate=0.25, steps=20, bug=bug)  # type: ignore[arg-type]
        included = np.random.default_rng([SEED, 0]).random(M) < 0.5
        weights, _ = mechanism.train(*canaries(M, included, 200, SEED), SEED)
        found = judge({"weight": -weights[-M:]}, included, delta=DELTA, claimed=sampled_epsilon(mechanism))
        assert found.contradicts == bool(bug), bug


def test_many_runs_of_one_canary_catch_half_the_sensitivity() -> None:
    """The other way of auditing: one example, in or out, many runs; rates with exact intervals."""
    one = np.ones(1, bool)
    bounds = {}
    for bug in ("", "half-sensitivity"):
        mechanism = Mechanism(sigma=4.0, rate=1.0, steps=16, lr=0.02, bug=bug)  # type: ignore[arg-type]
        scores = {
            inside: np.array([white_box(mechanism.train(*canaries(1, one & inside, 20, s), s)[1], 1)["sum"][0] for s in range(400)])
            for inside in (True, False)
        }
        middle = (scores[True].mean() + scores[False].mean()) / 2
        sign = np.sign(scores[True].mean() - scores[False].mean())
        hits, false = int((sign * (scores[True] - middle) > 0).sum()), int((sign * (scores[False] - middle) > 0).sum())
        bounds[bug] = epsilon_of_rates(hits, 400, false, 400, delta=DELTA)
    assert bounds[""] < gaussian_epsilon(1.0, DELTA) and bounds["half-sensitivity"] > bounds[""] + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["", *BUGS])
def test_with_many_canaries_the_same_verdicts_are_sure(bug: str) -> None:
    """5,000 coins, three seeds. Half the noise is noticed, but hardly: the noise itself shows it better (noise_level)."""
    for seed in range(3):
        mechanism = Mechanism(sigma=4.0, rate=1.0 if bug != "reused-noise" else 0.5, steps=16, bug=bug)  # type: ignore[arg-type]
        scores, included = planted(mechanism, seed, m=5000)
        found = judge(scores, included, delta=DELTA, claimed=gaussian_epsilon(1.0, DELTA), curve=gaussian_curve(1.0))
        assert found.contradicts == bool(bug) and (bug in ("", "half-sensitivity") or (found.p_of_claim or 0) < 1e-4)


def test_audits_of_statistics_are_the_ones_alone() -> None:
    scores, included = planted(Mechanism(sigma=4.0, rate=1.0, steps=4), m=200)
    found = judge({"sum": scores["sum"]}, included, delta=DELTA, claimed=2.0, curve=gaussian_curve(0.5))
    alone = (
        audit_scores(scores["sum"], included, delta=DELTA, claimed=2.0),
        audit_curve(scores["sum"], included, delta=DELTA, claimed=gaussian_curve(0.5)),
    )
    assert (found.bound, found.curve) == alone
    assert found.p_of_claim == pytest.approx(min(1.0, 2 * min(alone[0].p_of_claim or 1, alone[1].p_of_claim or 1)))
