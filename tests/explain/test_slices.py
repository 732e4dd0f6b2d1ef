"""Slices against planted faults, pure noise and SciPy's tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tauon.errors import DataError
from tauon.explain.features import describe_features
from tauon.explain.slices import SliceSettings, benjamini_hochberg, find_slices, fisher_p, welch_p

COLOURS = ["missing", "red", "blue", "green"]


def table(rows: int, seed: int):
    rng = np.random.default_rng(seed)
    X = np.c_[rng.normal(50, 10, rows), rng.integers(1, 4, rows), rng.integers(0, 2, rows), rng.exponential(1, rows)]
    return X, describe_features(X, ["age", "colour", "owner", "wait"], categories={"colour": COLOURS})


def test_a_planted_pair_of_conditions_is_found_and_named() -> None:
    X, features = table(3000, 0)
    bad = (X[:, 1] == 2) & (X[:, 0] > np.quantile(X[:, 0], 0.75))
    errors = (np.random.default_rng(1).random(3000) < np.where(bad, 0.6, 0.1)).astype(float)
    report = find_slices(X, errors, features)
    worst = report.slices[0]
    assert worst.text.startswith("age is above 5") and worst.text.endswith("and colour is blue")
    assert worst.error_interval[0] < 0.6 < worst.error_interval[1] and worst.error_outside == pytest.approx(0.1, abs=0.02)
    assert worst.p <= worst.p_corrected < 1e-6 and worst.rows + worst.rows_outside == 1500
    assert report.searched > report.tested > 1 and report.error == pytest.approx(errors.mean())
    json.dumps(report.to_json(), allow_nan=False)


def test_a_planted_triple_is_found_where_three_conditions_are_allowed() -> None:
    X, features = table(6000, 0)
    bad = (X[:, 1] == 2) & (X[:, 0] > np.quantile(X[:, 0], 0.5)) & (X[:, 2] == 1)
    losses = np.random.default_rng(1).exponential(np.where(bad, 3.0, 1.0))
    report = find_slices(X, losses, features, settings=SliceSettings(max_conditions=3))
    best = max(report.slices, key=lambda s: s.error)
    assert len(best.conditions) == 3 and "colour is blue" in best.text and "owner is yes" in best.text


@pytest.mark.parametrize("noise", ["errors", "losses"])
def test_pure_noise_is_reported_no_more_often_than_the_rate(noise: str) -> None:
    """Under noise every report is false: the share of data sets with any is at most the rate (0.1), tested with a binomial margin."""
    runs, any_found = 200, 0
    for seed in range(runs):
        X, features = table(400, seed)
        rng = np.random.default_rng(10_000 + seed)
        errors = (rng.random(400) < 0.2).astype(float) if noise == "errors" else rng.exponential(1.0, 400)
        any_found += bool(find_slices(X, errors, features, settings=SliceSettings(rate=0.1, seed=seed)).slices)
    assert any_found <= stats.binom.ppf(0.999, runs, 0.1)


def test_on_the_searching_half_alone_noise_would_look_like_slices() -> None:
    """Why there are two halves: tested on the rows that chose them, slices of noise are found far more often than the rate."""
    wrong = 0
    for seed in range(40):
        X, features = table(400, seed)
        errors = (np.random.default_rng(10_000 + seed).random(400) < 0.2).astype(float)
        twice = find_slices(np.r_[X, X], np.r_[errors, errors], features, settings=SliceSettings(rate=0.1))
        wrong += bool(twice.slices)
    assert wrong >= 10


def test_an_empty_result_and_constant_errors_say_so() -> None:
    X, features = table(400, 0)
    report = find_slices(X, (np.random.default_rng(5).random(400) < 0.2).astype(float), features)
    assert report.slices == () and report.note.startswith("No slice has a larger error beyond chance (")
    same = find_slices(X, np.zeros(400), features)
    assert same.slices == () and "Every one of 400 rows has the error 0" in same.note and same.tested == 0
    constant = np.ones((400, 1))
    none = find_slices(constant, np.arange(400.0), describe_features(constant, ["one"]))
    assert none.slices == () and none.searched == 0


def test_too_few_rows_and_errors_that_are_not_finite_are_refused() -> None:
    X, features = table(400, 0)
    with pytest.raises(DataError, match="got 60 rows, need at least 80"):
        find_slices(X[:60], np.arange(60.0), features)
    with pytest.raises(DataError, match="399 finite errors for 400 rows"):
        find_slices(X, np.where(np.arange(400) == 3, np.nan, 1.0), features)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 300), st.data())
def test_fishers_p_equals_scipys(rows_in: int, rows_out: int, data) -> None:
    a, b = data.draw(st.integers(0, rows_in)), data.draw(st.integers(0, rows_out))
    theirs = stats.hypergeom.sf(a - 1, rows_in + rows_out, a + b, rows_in)
    assert fisher_p(a, rows_in, b, rows_out) == pytest.approx(theirs, rel=1e-8, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(2, 400), st.integers(0, 2**31), st.floats(-3, 3))
def test_welchs_p_equals_scipys(n: int, m: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(shift, 2, n), rng.normal(0, 1, m)
    theirs = stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue
    assert welch_p(a, b) == pytest.approx(theirs, rel=1e-7, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_correction_equals_scipys(ps: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(ps), stats.false_discovery_control(ps), atol=1e-12)
