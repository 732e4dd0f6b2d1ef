"""The surrogate tree against scikit-learn, shap, brute force and models that are trees themselves."""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, describe_features
from tauon.explain.trees import (
    Surrogate,
    SurrogateSettings,
    cohen_kappa,
    crossed_rows,
    draw_tree,
    fit_surrogate,
    fit_surrogate_of_answers,
    grow_tree,
    measure_fidelity,
    tree_shap,
)

QUICK = SurrogateSettings(samples=1500, max_depth=4)
PURPOSES = ("missing or unseen", "car", "furniture", "business", "repairs")


def table(rows: int = 400, seed: int = 0) -> np.ndarray:
    """Columns: age (whole numbers), amount, purpose (codes 1 to 4), owner (flag)."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(18, 80, rows), rng.normal(5000, 1500, rows), rng.integers(1, 5, rows), rng.integers(0, 2, rows)]
    return np.stack(columns, axis=1).astype(np.float64)


def described(X: np.ndarray) -> tuple[Feature, ...]:
    return describe_features(
        X, ["age", "amount", "purpose", "owner"], categories={"purpose": PURPOSES}, units={"age": "years"}, fixed=["age"]
    )


def by_rule(X: np.ndarray) -> np.ndarray:
    """A model that is a tree: refused if the purpose is car or business, and the age is at most 40."""
    bad = np.isin(X[:, 2], (1, 3)) & (X[:, 0] <= 40)
    p = np.where(bad, 0.9, 0.2)
    return np.stack([1 - p, p], axis=1)


def by_network(X: np.ndarray) -> np.ndarray:
    """A smooth model of every column, three classes."""
    z = np.stack([(X[:, 0] - 45) / 15, (X[:, 1] - 5000) / 1500, X[:, 2] - 2.5, X[:, 3]], axis=1)
    logits = z @ np.array([[1.0, -0.5, 0.2], [0.3, 1.0, -1.0], [0.6, -0.8, 0.1], [-0.5, 0.2, 1.0]]) + np.sin(z[:, :1] * z[:, 1:2])
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


def test_a_model_that_is_a_tree_is_recovered_with_its_thresholds_and_sets() -> None:
    X = table()
    s = fit_surrogate(by_rule, X, described(X), table(seed=1), outputs=("paid", "refused"), settings=QUICK)
    assert s.fidelity.agreement == 1 and s.fidelity.kappa == 1 and s.tree.depth == 2
    assert s.fidelity.r2 == pytest.approx(1)
    sentence = s.path_of(np.array([30.0, 5000, 1, 0])).sentence
    assert sentence.startswith("This case is predicted refused (0.90) because ")
    assert "purpose is one of {car, business}" in sentence and "age is at most 40 years" in sentence
    assert "amount" not in sentence and "owner" not in sentence
    assert len(s.rules()) == len(s.tree.leaves) and sum(r.training_rows for r in s.rules()) == len(X)


def test_the_tree_equals_scikit_learns_on_numbers() -> None:
    from sklearn.tree import DecisionTreeRegressor

    X = np.random.default_rng(0).normal(size=(300, 5))
    P = by_network(np.c_[45 + 15 * X[:, 0], 5000 + 1500 * X[:, 1], X[:, 2:4]])
    ours = grow_tree(X, P, describe_features(X, list("abcde")), depth=4, min_leaf=5)
    theirs = DecisionTreeRegressor(max_depth=4, min_samples_leaf=5, random_state=0).fit(X, P)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-12)
    assert len(ours.nodes) == theirs.tree_.node_count
    np.testing.assert_array_equal(ours.apply(X), theirs.apply(X))
    for node in ours.nodes:
        if node.threshold is not None:
            assert len(f"{abs(node.threshold):.12g}") <= 8, "thresholds are short decimals"


def test_sets_of_categories_are_as_good_as_the_best_set() -> None:
    """For two classes and one category column, the ordered split has the least impurity of all 2^(k-1) - 1 sets (Breiman et al. 1984)."""
    rng = np.random.default_rng(3)
    X, p = rng.integers(0, 6, (300, 1)).astype(float), rng.random(300)
    p = 0.5 * p + 0.5 * np.array([0.9, 0.1, 0.6, 0.2, 0.8, 0.4])[X[:, 0].astype(int)]
    tree = grow_tree(X, np.c_[1 - p, p], describe_features(X, ["c"], categories={"c": list("uvwxyz")}), depth=1, min_leaf=1)

    def loss(mask: np.ndarray) -> float:
        return sum(((p[m] - p[m].mean()) ** 2).sum() for m in (mask, ~mask) if m.any())

    best = min(loss(np.isin(X[:, 0], s)) for k in range(1, 6) for s in itertools.combinations(range(6), k))
    assert loss(np.isin(X[:, 0], tree.nodes[0].codes)) == pytest.approx(best)


@pytest.mark.parametrize("model", [by_rule, by_network])
def test_every_row_meets_the_conditions_of_its_own_leaf_alone(model) -> None:
    X = table()
    tree = fit_surrogate(model, X, described(X), X, settings=QUICK).tree
    leaf_N = tree.apply(X)
    masks = {leaf: np.logical_and.reduce([c.mask(X) for c in tree.conditions_to(leaf)]) for leaf in tree.leaves}
    assert all((masks[leaf] == (leaf_N == leaf)).all() for leaf in tree.leaves)
    for node in tree.nodes:
        if node.feature >= 0:
            children = tree.nodes[node.left], tree.nodes[node.right]
            assert sum(c.rows for c in children) == node.rows and sum(c.training_rows for c in children) == node.training_rows


def test_fidelity_equals_scikit_learns_figures_and_is_named_apart_from_accuracy() -> None:
    from sklearn.metrics import cohen_kappa_score, r2_score

    X, held = table(), table(seed=1)
    truth = np.random.default_rng(5).integers(0, 3, len(held))
    s = fit_surrogate(by_network, X, described(X), held, truth_M=truth, settings=QUICK)
    model, tree = by_network(held), s.predict(held)
    f = s.fidelity
    assert f.kappa == pytest.approx(cohen_kappa_score(tree.argmax(1), model.argmax(1)))
    assert f.r2 == pytest.approx(r2_score(model, tree, multioutput="variance_weighted"))
    assert f.agreement == pytest.approx((tree.argmax(1) == model.argmax(1)).mean())
    assert f.majority == pytest.approx((model.argmax(1) == np.bincount(by_network(X).argmax(1)).argmax()).mean())
    assert f.true_accuracy == pytest.approx((tree.argmax(1) == truth).mean()) and f.model_true_accuracy != f.true_accuracy
    for value, ends in ((f.agreement, f.agreement_interval), (f.kappa, f.kappa_interval), (f.r2, f.r2_interval)):
        assert ends is not None and ends[0] < value < ends[1]


def test_sampled_points_have_values_and_categories_that_occur() -> None:
    X = table(50)
    more = crossed_rows(X, 2000, np.random.default_rng(0))
    assert all(set(more[:, j]) <= set(X[:, j]) for j in range(X.shape[1]))
    assert len(np.unique(more, axis=0)) > 10 * len(X)


def test_the_depth_is_the_smallest_within_one_standard_error() -> None:
    X = table()
    s = fit_surrogate(by_network, X, described(X), X, settings=QUICK)
    best = max(s.depths, key=lambda d: d.fidelity)
    fine = [d.depth for d in s.depths if d.fidelity >= best.fidelity - best.standard_error]
    assert [d.depth for d in s.depths] == [1, 2, 3, 4] and s.tree.depth == min(fine)
    fixed = fit_surrogate(by_network, X, described(X), X, settings=SurrogateSettings(samples=1500, depth=2))
    assert fixed.tree.depth == 2 and not fixed.depths


def test_same_seed_same_tree_and_json_returns_it() -> None:
    X = table()
    one, two = (fit_surrogate(by_network, X, described(X), X, outputs=("a", "b", "c"), settings=QUICK) for _ in range(2))
    assert one == two
    again = Surrogate.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    assert again == one
    np.testing.assert_array_equal(again.predict(X), one.predict(X))


def test_values_are_imitated_too() -> None:
    X = table()

    def price(rows: np.ndarray) -> np.ndarray:
        return rows[:, [1]] * np.where(rows[:, [3]] > 0, 1.0, 0.5)

    s = fit_surrogate(price, X, described(X), table(seed=1), outputs=("price",), settings=SurrogateSettings("values", samples=2000))
    assert s.fidelity.r2 is not None and s.fidelity.r2 > 0.9 and s.fidelity.kappa is None
    assert re.match(r"This case is predicted to have price [\d,.]+ because ", s.path_of(X[0]).sentence)
    assert "owner is yes" in " ".join(rule.text for rule in s.rules())


def test_a_model_with_one_answer_has_no_tree_and_says_so() -> None:
    X = table()
    always = fit_surrogate(lambda r: np.tile([0.3, 0.7], (len(r), 1)), X, described(X), X, outputs=("no", "yes"))
    assert "answers yes for every one of 400 training rows" in always.note
    assert len(always.tree.nodes) == 1 and always.fidelity.kappa is None and always.fidelity.majority == 1
    assert always.note in draw_tree(always) and always.path_of(X[0]).sentence == "This case is predicted yes (0.70), as every case is."
    level = fit_surrogate(lambda r: np.full((len(r), 1), 2.5), X, described(X), X, settings=SurrogateSettings("values"))
    assert "value is 2.5" in level.note and level.fidelity.r2 is None


def test_answers_without_a_function_are_imitated() -> None:
    X, held = table(), table(seed=1)
    s = fit_surrogate_of_answers(X, by_rule(X), described(X), held, by_rule(held), settings=QUICK)
    assert s.sampled_rows == 0 and s.fidelity.agreement is not None and s.fidelity.agreement > 0.98


def test_a_case_says_where_the_model_disagrees_and_what_is_outside_the_training_range() -> None:
    X = table()
    s = fit_surrogate(by_rule, X, described(X), X, outputs=("paid", "refused"), settings=QUICK)
    path = s.path_of(np.array([30.0, 90_000, 0, 0]), np.array([0.8, 0.2]))
    assert [text.split(" is ")[0] for text in path.outside] == ["amount", "purpose"]
    assert "90,000, outside of what the training rows have" in path.outside[0]
    other = s.path_of(np.array([30.0, 5000, 1, 0]), np.array([0.8, 0.2]))
    assert other.agrees is False and other.sentence.startswith("The model answers paid (0.80), but the tree does not follow it here: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: np.where(np.arange(4) == 1, np.nan, X), r"column 'amount' is nan in row 0 \(400 such rows\)"),
        (lambda X: X[:, :3], r"expected \(rows, 4\)"),
        (lambda X: X + np.array([0, 0, 9, 0]), r"column 'purpose' has code 1\d, expected 0 to 4"),
        (lambda X: X[:1], "got 1 training"),
    ],
)
def test_bad_rows_are_refused_with_the_column(change, message: str) -> None:
    X = table()
    with pytest.raises(DataError, match=message):
        fit_surrogate(by_rule, change(X), described(X), X, settings=QUICK)


def test_a_model_that_answers_nan_or_with_one_column_is_refused() -> None:
    X = table()
    with pytest.raises(DataError, match=r"predict returned \[nan, nan\] for row 0"):
        fit_surrogate(lambda r: np.full((len(r), 2), np.nan), X, described(X), X)
    with pytest.raises(DataError, match="1 output, but classes need"):
        fit_surrogate(lambda r: np.zeros((len(r), 1)), X, described(X), X)
    with pytest.raises(DataError, match="3 names for 2 outputs"):
        fit_surrogate(by_rule, X, described(X), X, outputs=("a", "b", "c"))


def test_constant_columns_and_more_categories_than_rows_are_no_trouble() -> None:
    X = np.c_[np.ones(30), np.arange(30.0) % 29, np.arange(30.0)]
    features = describe_features(X, ["one", "id", "x"], categories={"id": [f"c{i}" for i in range(100)]})
    s = fit_surrogate(lambda r: np.c_[r[:, 2] < 15, r[:, 2] >= 15].astype(float), X, features, X, settings=QUICK)
    assert s.fidelity.agreement is not None and s.fidelity.agreement > 0.9


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(0, 2**31))
def test_kappa_equals_scikit_learns(one: list[int], seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    a, b = np.array(one), np.random.default_rng(seed).integers(0, 4, len(one))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cohen_kappa_score(a, b)
    ours = cohen_kappa(a, b)
    assert (ours is None and math.isnan(theirs)) or ours == pytest.approx(theirs)


def test_the_interval_of_kappa_covers() -> None:
    """Bootstrap intervals of 80% contain the true kappa in about 80% of repeated samples."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(120):
        model = rng.integers(0, 2, 150)
        tree = np.where(rng.random(150) < 0.8, model, rng.integers(0, 2, 150))  # kappa 0.8
        f = measure_fidelity(np.eye(2)[tree], np.eye(2)[model], classes=True, confidence=0.8, resamples=200)
        assert f.kappa_interval is not None
        inside += f.kappa_interval[0] <= 0.8 <= f.kappa_interval[1]
    assert 0.7 * 120 <= inside <= 0.9 * 120


# ---------------------------------------------------------------------------------------------- TreeSHAP


def brute_shapley(value, columns: int) -> np.ndarray:
    """Shapley values of a set function, (F, C), from all orders' definition."""
    found = []
    for j in range(columns):
        others = [k for k in range(columns) if k != j]
        total = 0.0
        for size in range(columns):
            weight = math.factorial(size) * math.factorial(columns - size - 1) / math.factorial(columns)
            total = total + weight * sum(value({*s, j}) - value(set(s)) for s in itertools.combinations(others, size))
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("interventional", [False, True])
def test_tree_shap_equals_shapley_values_by_brute_force(interventional: bool) -> None:
    X = table(200)
    tree = fit_surrogate(by_network, X, described(X), X, settings=SurrogateSettings(samples=500, depth=4)).tree
    rows, background = X[:5], X[20:40]
    found = tree_shap(tree, rows, background if interventional else None)
    assert found.sum_error < 1e-6  # with a background, shap sums in float32

    def by_path(row: np.ndarray, known: set[int], at: int = 0) -> np.ndarray:
        node = tree.nodes[at]
        if node.feature < 0:
            return np.array(node.value)
        if node.feature in known:
            return by_path(row, known, node.left if tree.goes_left(node, row[None])[0] else node.right)
        share = tree.nodes[node.left].rows / node.rows
        return share * by_path(row, known, node.left) + (1 - share) * by_path(row, known, node.right)

    def by_background(row: np.ndarray, known: set[int]) -> np.ndarray:
        mixed = background.copy()
        mixed[:, list(known)] = row[list(known)]
        return tree.predict(mixed).mean(0)

    value = by_background if interventional else by_path
    for i, row in enumerate(rows):
        np.testing.assert_allclose(
            found.values_NFC[i], brute_shapley(lambda s, row=row: value(row, s), 4), atol=1e-6 if interventional else 1e-12
        )
    np.testing.assert_allclose(found.base_C, value(rows[0], set()), atol=1e-6)


def test_tree_shap_equals_shap_on_scikit_learns_tree_and_ranks_columns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap
    from sklearn.tree import DecisionTreeRegressor

    X = np.random.default_rng(0).integers(0, 2, (300, 3)).astype(float)  # thresholds in [0, 1) part it alike, wherever they are
    p = 0.2 + 0.5 * (X[:, 0] * X[:, 2]) + 0.1 * X[:, 2]
    P = np.c_[1 - p, p]
    tree = grow_tree(X, P, describe_features(X, list("abc")), depth=4)
    found = tree_shap(tree, X)
    theirs = shap.TreeExplainer(DecisionTreeRegressor(max_depth=4, min_samples_leaf=5, random_state=0).fit(X, P)).shap_values(X)
    np.testing.assert_allclose(found.values_NFC, theirs, atol=1e-7)
    ranked = found.importance(1, resamples=100)
    assert {one["name"] for one in ranked[:2]} == {"a", "c"} and ranked[0]["low"] < ranked[0]["value"] < ranked[0]["high"]
    assert ranked[2]["value"] < 1e-12


# ---------------------------------------------------------------------------------------------- the drawing


class Texts(HTMLParser):
    """Checks that tags nest, and keeps texts and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag != "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_the_drawing_is_real_text_with_every_path_and_the_fidelity_beside_it() -> None:
    X = table()
    features = tuple(f if f.name != "age" else Feature('<b>age" & more</b>', "number", low=f.low, high=f.high) for f in described(X))
    s = fit_surrogate(by_rule, X, features, X, outputs=("paid", "<refused>"), truth_M=by_rule(X).argmax(1), settings=QUICK)
    html = draw_tree(s, np.array([30.0, 5000, 1, 0]))
    page = Texts()
    page.feed(html)
    text = "".join(page.texts)
    assert not page.open and "<b>age" not in html and "<refused>" not in html
    assert "purpose is one of {car, business}" in text and '<b>age" & more</b> is at most 40' in text
    assert (
        "Cohen's kappa" in text and "always giving the most common answer" in text and "Something else is how often the true label" in text
    )
    assert text.count("→") >= len(s.tree.leaves)
    marked = [a for tag, a in page.attributes if tag == "li" and a.get("class") == "on"]
    assert len(marked) == 1 + len(s.tree.conditions_to(int(s.tree.apply(np.array([[30.0, 5000, 1, 0]]))[0])))
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|http", html), "colours are the page's variables, nothing is loaded"
    assert not [a for tag, a in page.attributes if tag != "rect" and int(re.sub(r"\D", "", a.get("width") or "0")) > 300]
