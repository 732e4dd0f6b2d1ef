"""Counterfactuals against brute force and models whose nearest change is known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.errors import DataError
from tauon.explain.counterfactuals import CounterfactualSettings, find_counterfactuals
from tauon.explain.features import describe_features

PURPOSES = ["missing or unseen", "car", "tv", "house"]


def table(rows: int = 300, seed: int = 0):
    """age (fixed, whole), rooms (whole), amount, purpose (code 3 never seen), owner (flag)."""
    rng = np.random.default_rng(seed)
    X = np.c_[
        rng.integers(18, 80, rows), rng.integers(1, 6, rows), rng.normal(50, 12, rows), rng.integers(1, 3, rows), rng.integers(0, 2, rows)
    ]
    X = X.astype(np.float64)
    return X, describe_features(X, ["age", "rooms", "amount", "purpose", "owner"], categories={"purpose": PURPOSES}, fixed=["age"])


def logistic(weights: list[float], bias: float):
    def predict(X: np.ndarray) -> np.ndarray:
        z = (X - np.array([45, 3, 50, 1.5, 0.5])) / np.array([15, 1.4, 12, 1, 1]) @ np.array(weights) + bias
        p = 1 / (1 + np.exp(-z))
        return np.c_[1 - p, p]

    return predict


def test_one_number_moves_to_the_decision_boundary_and_no_further() -> None:
    X, features = table()
    predict = logistic([0, 0, 3, 0, 0], 0)  # class 1 above an amount of 50
    found = find_counterfactuals(predict, np.array([40.0, 3, 40, 1, 0]), X, features)
    best = found.found[0]
    assert [c.name for c in best.changes] == ["amount"] and 50 < best.changes[0].after < 50.6
    assert len(str(best.changes[0].after)) <= 5, "a short decimal"
    assert found.sentences(["bad", "good"])[0].startswith("The answer would be good (0.5") and "if amount were 50" in found.sentences()[0]
    json.dumps(found.to_json(), allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_counterfactual_keeps_the_rules_and_flips_the_models_answer(seed: int) -> None:
    X, features = table(120, seed % 7)
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(5, 8))
    out = rng.normal(size=(8, 3))

    def predict(rows: np.ndarray) -> np.ndarray:
        z = np.tanh((rows - X.mean(0)) / X.std(0) @ hidden) @ out
        p = np.exp(z - z.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    row = X[rng.integers(len(X))]
    found = find_counterfactuals(predict, row, X, features)
    own = predict(row[None]).argmax()
    for one in found.found:
        new = np.array(one.row)
        assert predict(new[None]).argmax() != own
        assert new[0] == row[0], "age is fixed"
        assert new[1] == round(new[1]) and 1 <= new[1] <= 5 and X[:, 2].min() <= new[2] <= X[:, 2].max()
        assert new[3] in (1, 2) and new[4] in (0, 1)
        assert {c.name for c in one.changes} == {f.name for f, a, b in zip(features, row, new, strict=True) if a != b}
    sets = [frozenset(c.name for c in one.changes) for one in found.found]
    assert not any(a <= b for a, b in itertools.combinations(sets, 2)), "each its own columns"
    assert found == find_counterfactuals(predict, row, X, features), "deterministic"
    if not found.found:
        assert found.note.startswith("No change that flips the decision was found among ")


@pytest.mark.parametrize("seed", range(6))
def test_the_fewest_columns_and_the_smallest_distance_by_brute_force(seed: int) -> None:
    """All-discrete columns: every combination can be tried."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 4, (200, 4)).astype(float)
    features = describe_features(X, list("abcd"), categories={"d": ["p", "q", "r", "s"]})
    scores = rng.normal(size=(4, 4))

    def predict(rows: np.ndarray) -> np.ndarray:
        z = sum(scores[j][rows[:, j].astype(int)] for j in range(4)) - 1.0
        p = 1 / (1 + np.exp(-4 * z))
        return np.c_[1 - p, p]

    grid = np.array(list(itertools.product(range(4), repeat=4)), float)
    answers = predict(grid).argmax(1)
    mad = [np.median(np.abs(X[:, j] - np.median(X[:, j]))) or X[:, j].std() for j in range(3)]
    for row in grid[::40]:
        flips = grid[answers != predict(row[None]).argmax()]
        if not len(flips):
            continue
        distance = sum(np.abs(flips[:, j] - row[j]) / mad[j] for j in range(3)) + (flips[:, 3] != row[3])
        changed = (flips != row).sum(1)
        best = min(zip(changed, distance, strict=True))
        ours = find_counterfactuals(predict, row, X, features).found[0]
        assert len(ours.changes) == best[0]
        assert ours.distance == pytest.approx(best[1]) if best[0] == 1 else ours.distance <= best[1] * 1.5 + 1e-9


def test_several_columns_are_changed_where_one_is_not_enough() -> None:
    X, features = table()

    def both(rows: np.ndarray) -> np.ndarray:
        good = (rows[:, 3] == 2) & (rows[:, 4] == 1) & (rows[:, 2] > 45)
        return np.c_[~good, good].astype(float)

    found = find_counterfactuals(both, np.array([40.0, 3, 30, 1, 0]), X, features)
    assert [[c.name for c in one.changes] for one in found.found] == [["amount", "purpose", "owner"]]
    assert found.found[0].changes[1].text == "purpose were tv instead of car"
    assert "Only 1 of 3" in found.note


def test_none_is_said_plainly() -> None:
    X, features = table()
    by_age = logistic([5, 0, 0, 0, 0], 0)
    found = find_counterfactuals(by_age, np.array([30.0, 3, 50, 1, 0]), X, features)
    assert found.found == () and "No change that flips the decision was found among" in found.note and found.sentences() == [found.note]
    fixed = describe_features(X, [f.name for f in features], fixed=[f.name for f in features])
    assert "No column of this table may change" in find_counterfactuals(by_age, X[0], X, fixed).note
    unseen = find_counterfactuals(lambda r: np.c_[r[:, 3] != 3, r[:, 3] == 3].astype(float), X[0], X, features)
    assert unseen.found == (), "house is a category that no training row has"


def test_a_target_class_a_margin_and_a_range_of_values() -> None:
    X, features = table()

    def three(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 1] <= 2, (rows[:, 1] > 2) & (rows[:, 1] <= 3), rows[:, 1] > 3], axis=1).astype(float)

    row = np.array([40.0, 1, 50, 1, 0])
    to_last = find_counterfactuals(three, row, X, features, settings=CounterfactualSettings(target=2))
    assert to_last.found[0].changes[0].after == 4
    predict = logistic([0, 0, 3, 0, 0], 0)
    sure = find_counterfactuals(predict, row, X, features, settings=CounterfactualSettings(margin=0.6))
    assert abs(sure.found[0].outputs[1] - sure.found[0].outputs[0]) > 0.6
    value = find_counterfactuals(lambda r: r[:, [2]] * 2, row, X, features, settings=CounterfactualSettings(interval=(120.0, 130.0)))
    assert 120 <= value.found[0].outputs[0] <= 130 and value.sentences()[0].startswith("The value would be 120")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (CounterfactualSettings(target=7), "no class 7: the model has classes 0 to 1"),
        (CounterfactualSettings(target=0), "answers class 0 already"),
    ],
)
def test_impossible_targets_are_refused(how: CounterfactualSettings, message: str) -> None:
    X, features = table()
    with pytest.raises(DataError, match=message):
        find_counterfactuals(logistic([0, 0, 3, 0, 0], 0), np.array([40.0, 3, 30, 1, 0]), X, features, settings=how)


def test_a_value_needs_a_range_that_it_is_not_in() -> None:
    X, features = table()
    with pytest.raises(DataError, match="name the range"):
        find_counterfactuals(lambda r: r[:, [2]], X[0], X, features)
    with pytest.raises(DataError, match="already"):
        find_counterfactuals(lambda r: r[:, [2]], X[0], X, features, settings=CounterfactualSettings(interval=(-1e9, 1e9)))
    with pytest.raises(DataError, match="nan"):
        find_counterfactuals(lambda r: r[:, [2]], np.full(5, np.nan), X, features)


def test_a_row_outside_the_training_range_is_brought_inside() -> None:
    X, features = table()
    row = np.array([40.0, 3, 500, 1, 0])
    best = find_counterfactuals(logistic([0, 0, 3, 0, 0], 0), row, X, features).found[0]
    assert X[:, 2].min() <= best.row[2] <= X[:, 2].max() and best.row[2] <= 50
