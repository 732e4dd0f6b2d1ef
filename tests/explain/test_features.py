"""Importance, dependence and interactions against scikit-learn and closed forms; ranges, texts and bad input of columns."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.errors import DataError
from tauon.explain.features import (
    DependenceSettings,
    ShuffleSettings,
    accumulated_local_effects,
    describe_features,
    interactions,
    outside_range,
    partial_dependence,
    permutation_importance,
)
from tauon.explain.features.columns import Condition, Feature, number_text, shortest_between


def table(rows: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.c_[rng.normal(size=(rows, 3)), rng.integers(0, 3, rows)]


def described(X: np.ndarray) -> tuple[Feature, ...]:
    return describe_features(X, ["a", "b", "c", "d"], categories={"d": ["missing", "red", "blue"]})


def value(X: np.ndarray) -> np.ndarray:
    """a and b act together, c by itself, d by a shift of blue."""
    return (np.sin(X[:, 0]) * X[:, 1] + 0.5 * X[:, 2] + (X[:, 3] == 2))[:, None]


def mse(targets: np.ndarray, outputs: np.ndarray) -> float:
    return float(((targets - outputs[:, 0]) ** 2).mean())


# ---------------------------------------------------------------------------------------------- importance


def test_importance_equals_its_closed_form_for_squared_error() -> None:
    """The mean over all permutations replaces a column by that of each row alike (e_orig and e_switch of Fisher et al. 2019)."""
    X = table(60)
    y = value(X)[:, 0] + np.random.default_rng(1).normal(size=60) * 0.1
    how = ShuffleSettings(repeats=600, resamples=2, higher_is_better=False)
    found = {one.name: one for one in permutation_importance(value, X, y, mse, described(X), settings=how)}
    for j, name in enumerate("abcd"):
        mixed = np.tile(X, (60, 1))
        mixed[:, j] = np.repeat(X[:, j], 60)
        exact = mse(np.tile(y, 60), value(mixed)) - mse(y, value(X))
        assert found[name].value == pytest.approx(exact, rel=0.06), name


def test_importance_agrees_with_scikit_learns_and_ranks_as_it_does() -> None:
    from sklearn.inspection import permutation_importance as theirs_of
    from sklearn.linear_model import LogisticRegression

    X = table(400)
    y = (value(X)[:, 0] > 0.3).astype(int)
    model = LogisticRegression().fit(X, y)
    theirs = theirs_of(model, X, y, n_repeats=100, random_state=0).importances_mean

    def accuracy(targets: np.ndarray, outputs: np.ndarray) -> float:
        return float((outputs.argmax(1) == targets).mean())

    ours = permutation_importance(model.predict_proba, X, y, accuracy, described(X), settings=ShuffleSettings(100, resamples=20))
    for one in ours:
        assert one.value == pytest.approx(theirs["abcd".index(one.name)], abs=0.006)
        assert one.low <= one.value <= one.high and len(one.shuffles) == 100
    assert ours == sorted(ours, key=lambda one: -one.value)


def test_the_interval_of_importance_covers_the_importance_of_the_population() -> None:
    """80% intervals, 60 data sets: the importance over a large sample is inside about 80% of them."""
    how = ShuffleSettings(repeats=5, resamples=60, confidence=0.8, higher_is_better=False)

    def importance(rows: int, seed: int):
        X = table(rows, seed)
        return next(one for one in permutation_importance(value, X, value(X)[:, 0], mse, described(X), settings=how, groups={"c": ["c"]}))

    true = 2 * 0.25  # twice the variance of 0.5 c
    inside = sum(one.low <= true <= one.high for one in (importance(150, seed) for seed in range(60)))
    assert 0.65 * 60 <= inside <= 0.93 * 60


def test_copies_of_a_column_share_their_importance_and_a_group_shows_it() -> None:
    X = table()
    X[:, 1] = X[:, 0]

    def either(rows: np.ndarray) -> np.ndarray:
        return (rows[:, 0] + rows[:, 1])[:, None] / 2

    how = ShuffleSettings(higher_is_better=False, resamples=20)
    alone = permutation_importance(either, X, X[:, 0], mse, described(X), settings=how)
    group = permutation_importance(either, X, X[:, 0], mse, described(X), groups={"both": ["a", "b"]}, settings=how)
    assert group[0].value > 3 * alone[0].value and group[0].columns == ("a", "b")
    assert group[0].value == pytest.approx(2 * X[:, 0].var(), rel=0.15)
    assert {one.name for one in alone if one.value == 0} == {"c", "d"}
    json.dumps([one.to_json() for one in group], allow_nan=False)


def test_importance_refuses_what_has_no_meaning() -> None:
    X = table()
    with pytest.raises(DataError, match="at least 2"):
        permutation_importance(value, X[:1], X[:1, 0], mse, described(X))
    with pytest.raises(DataError, match="which is not a column"):
        permutation_importance(value, X, X[:, 0], mse, described(X), groups={"g": ["age"]})
    with pytest.raises(DataError, match="299 targets for 300 rows"):
        permutation_importance(value, X, X[:-1, 0], mse, described(X))


# ---------------------------------------------------------------------------------------------- dependence


@pytest.mark.parametrize("column", ["a", "d"])
def test_partial_dependence_and_ice_equal_scikit_learns(column: str) -> None:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.inspection import partial_dependence as theirs_of

    class Model(RegressorMixin, BaseEstimator):
        def fit(self, X, y):
            self.fitted_ = True
            return self

        def predict(self, X):
            return value(X)[:, 0]

    X = table()
    ours = partial_dependence(value, X, described(X), column, settings=DependenceSettings(curves=300))
    at = "abcd".index(column)
    theirs = theirs_of(Model().fit(X, 0), X, [at], kind="both", custom_values={at: np.array(ours.grid)})
    np.testing.assert_allclose(ours.average, theirs["average"][0], atol=1e-12)
    np.testing.assert_allclose(np.array(ours.ice), theirs["individual"][0], atol=1e-12)
    assert all(low <= mean <= high for low, mean, high in zip(ours.low, ours.average, ours.high, strict=True))
    assert ours.labels == (("missing", "red", "blue") if column == "d" else ())
    json.dumps(ours.to_json(), allow_nan=False)


def test_effects_of_an_additive_model_are_its_terms() -> None:
    """f = a^2 + b + noise-free rest: ALE of a is a^2 - E a^2 up to the bins' width."""
    X = table(2000)
    X[:, 1] = X[:, 0] + 0.1 * X[:, 1]  # a and b go together

    def f(rows: np.ndarray) -> np.ndarray:
        return (rows[:, 0] ** 2 + rows[:, 1])[:, None]

    how = DependenceSettings(rows=2000, grid=40, resamples=50)
    ale = accumulated_local_effects(f, X, described(X), "a", settings=how)
    grid = np.array(ale.grid)
    inner = slice(2, -2)
    np.testing.assert_allclose(np.array(ale.average)[inner], (grid**2 - (X[:, 0] ** 2).mean())[inner], atol=0.05)
    assert ale.low[0] <= ale.average[0] <= ale.high[0] and ale.grid[0] == X[:, 0].min() and ale.grid[-1] == X[:, 0].max()


def test_local_effects_see_no_rows_that_do_not_exist_where_partial_dependence_does() -> None:
    """f is 100 where a and b differ by more than 2, which no row does: partial dependence shows that, accumulated local effects do not."""
    X = table(1000)
    X[:, 1] = X[:, 0] + 0.01 * X[:, 1]

    def f(rows: np.ndarray) -> np.ndarray:
        return (100.0 * (np.abs(rows[:, 0] - rows[:, 1]) > 2))[:, None]

    how = DependenceSettings(rows=1000, resamples=20)
    assert max(partial_dependence(f, X, described(X), "a", settings=how).average) > 40
    assert max(np.abs(accumulated_local_effects(f, X, described(X), "a", settings=how).average)) < 10


def test_interactions_equal_the_definition_and_find_the_pair() -> None:
    X = table(40)
    found = interactions(value, X, described(X), rows=40, settings=DependenceSettings(resamples=30))
    assert {found[0].first, found[0].second} == {"a", "b"} and len(found) == 6
    assert all(one.size < 1e-9 for one in found[1:])

    def mean_at(columns: list[int]) -> np.ndarray:
        means = []
        for row in X:
            mixed = X.copy()
            mixed[:, columns] = row[columns]
            means.append(value(mixed)[:, 0].mean())
        return np.array(means) - np.mean(means)

    rest = mean_at([0, 1]) - mean_at([0]) - mean_at([1])
    assert found[0].h == pytest.approx(np.sqrt((rest**2).sum() / (mean_at([0, 1]) ** 2).sum()))
    assert found[0].size == pytest.approx(np.sqrt((rest**2).mean()))
    assert found[0].h_low < found[0].h_high and found[0].size_low < found[0].size < found[0].size_high


def test_a_constant_model_and_a_constant_column_have_flat_curves() -> None:
    X = table()
    X[:, 2] = 4.0
    features = described(X)
    flat = partial_dependence(lambda r: np.full((len(r), 1), 2.0), X, features, "a")
    assert set(flat.average) == set(flat.low) == set(flat.high) == {2.0}
    one = partial_dependence(value, X, features, "c")
    assert one.grid == (4.0,)
    with pytest.raises(DataError, match="'c' is constant"):
        accumulated_local_effects(value, X, features, "c")
    with pytest.raises(DataError, match="'d' is a category"):
        accumulated_local_effects(value, X, features, "d")
    with pytest.raises(DataError, match="no column 'age'"):
        partial_dependence(value, X, features, "age")
    assert all(
        one.h == 0 for one in interactions(lambda r: np.zeros((len(r), 1)), X, features, rows=5, settings=DependenceSettings(resamples=2))
    )
    assert partial_dependence(value, X[:1], features, "a").low == partial_dependence(value, X[:1], features, "a").high


# ---------------------------------------------------------------------------------------------- columns


def test_columns_are_described_from_the_training_rows() -> None:
    X = np.array([[1.5, 3.0, 0.0, 2.0], [2.0, 4.0, 1.0, 2.0]])
    size, rooms, paid, colour = describe_features(
        X, ["size", "rooms", "paid", "colour"], categories={"colour": ["missing", "red", "blue"]}, units={"size": "m"}, fixed=["rooms"]
    )
    assert (size.kind, size.integer, size.low, size.high, size.unit) == ("number", False, 1.5, 2.0, "m")
    assert rooms.integer and not rooms.changeable and paid.kind == "flag"
    assert colour.seen == (2,) and colour.possible_codes() == (2,)
    for feature in (size, rooms, paid, colour, Feature("x")):
        assert Feature.from_json(json.loads(json.dumps(feature.to_json(), allow_nan=False))) == feature


def test_values_outside_of_the_training_range_are_named() -> None:
    X = table()
    features = described(X)
    assert outside_range(X[0], features) == []
    found = outside_range(np.array([100.0, 0, X[:, 2].min() - 1, 1]), features)
    assert [one.name for one in found] == ["a", "c"] and found[0].text.startswith("a is 100, outside of what the training rows have (-")
    only_red = describe_features(np.c_[X[:, :3], np.ones(len(X))], list("abcd"), categories={"d": ["missing", "red", "blue"]})
    assert outside_range(np.array([0.0, 0, 0, 2]), only_red)[0].expected == "red"


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (np.zeros((2, 2)), ["a"], "1 names"),
        (np.zeros((0, 1)), ["a"], "no row"),
        (np.array([[1.0], [np.inf]]), ["a"], "column 'a' is inf in row 1"),
        (np.array([[1.0], [np.nan]]), ["a"], "column 'a' is nan in row 1"),
    ],
)
def test_a_matrix_that_is_not_rows_of_finite_numbers_is_refused(rows: np.ndarray, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        describe_features(rows, names)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_short_threshold_is_between_its_neighbours(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = shortest_between(low, high)
    assert low <= found < high or found == low == high or high == low
    if high - low > 1e-3 * max(abs(low), abs(high), 1e-3):
        assert len(f"{abs(found):.15g}".replace(".", "").strip("0")) <= 5


def test_conditions_in_words() -> None:
    features = (
        Feature("age", integer=True, unit="years"),
        Feature("purpose", "category", ("missing", "car", "tv", "house"), seen=(1, 2, 3)),
        Feature("owner", "flag"),
        Feature('"good"', "flag", ("is not in the text", "is in the text")),
    )
    said = [
        Condition(0, 25, 40), Condition(0, low=25), Condition(1, codes=(1,)), Condition(1, codes=(0, 1, 3)), Condition(2, low=0.4),
        Condition(2, high=0.4), Condition(3, low=0.0), Condition(0),
    ]  # fmt: skip
    assert [c.text(features) for c in said] == [
        "age is above 25 years and at most 40 years", "age is above 25 years", "purpose is car", "purpose is not tv", "owner is yes",
        "owner is no", '"good" is in the text', "age is any number",
    ]  # fmt: skip
    assert [number_text(v) for v in (0.0, -3.0, 1234.5678, 1e-7)] == ["0", "-3", "1,235", "1.000e-7"]
