"""Metric values against scikit-learn and closed forms; what is undefined says so."""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest

from tauon.errors import DataError
from tauon.evaluate.evaluation import Evaluation, compare
from tauon.metrics import Metric
from tauon.metrics.classification import classification
from tauon.metrics.language import language_modelling
from tauon.metrics.regression import regression

HOW = {"confidence": 0.95, "resamples": 200, "seed": 3}


def simulated(n, classes, seed=0, skill=1.0, ties=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes))
    targets = rng.integers(0, classes, n)
    logits[np.arange(n), targets] += skill
    if ties:
        logits = np.round(logits)
    p = np.exp(logits)
    p = (p / p.sum(1, keepdims=True)).astype(np.float32)
    return p, targets


@pytest.mark.parametrize(("n", "classes", "ties"), [(200, 2, False), (301, 2, True), (500, 5, False), (400, 7, True)])
def test_classification_metrics_equal_scikit_learn(n, classes, ties):
    sk = pytest.importorskip("sklearn.metrics")
    p, t = simulated(n, classes, seed=n, ties=ties)
    found = classification(p, t, (), **HOW)
    guess = p.argmax(1)
    got = {k: m.value for k, m in found["metrics"].items()}
    want = {"accuracy": sk.accuracy_score(t, guess)}
    for how in ("macro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            want[f"{name}_{how}"] = score(t, guess, average=how, zero_division=0)
    assert np.isclose(want.pop("recall_weighted"), want["accuracy"])  # which is why it is not a row of its own
    p64 = p.astype(np.float64)
    p64 /= p64.sum(1, keepdims=True)  # scikit-learn normalises rows, at float32's rounding
    want["log_loss"] = sk.log_loss(t, p64)
    want["brier"] = sk.brier_score_loss(t, p64[:, 1] if classes == 2 else p64)
    if classes == 2:
        want["roc_auc"] = sk.roc_auc_score(t, p[:, 1])
        want["average_precision"] = sk.average_precision_score(t, p[:, 1])
    else:
        want["roc_auc"] = np.mean([sk.roc_auc_score(t == c, p[:, c]) for c in range(classes)])
    assert set(want) | {"ece"} == set(got)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=2e-6, abs=1e-9), name
    assert found["confusion"]["counts"] == sk.confusion_matrix(t, guess).tolist()
    each = sk.precision_recall_fscore_support(t, guess, zero_division=0)
    for c, row in enumerate(found["per_class"]):
        assert (row["precision"].value, row["recall"].value, row["f1"].value) == pytest.approx([each[i][c] for i in range(3)])
        assert row["support"] == each[3][c]
        assert row["roc_auc"].value == pytest.approx(sk.roc_auc_score(t == c, p[:, c]))


def test_of_many_classes_only_what_was_counted_is_kept():
    """A whole matrix of 10,000 classes would have 1e8 cells, 300 MB of JSON."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    n, classes = 400, 10_000
    t, guess = rng.integers(0, 40, n) * 7, rng.integers(0, 40, n) * 7
    p = np.full((n, classes), 0.5 / (classes - 1), np.float32)
    p[np.arange(n), guess] = 0.5
    tracemalloc.start()
    found = classification(p, t, (), **HOW)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4e8  # the whole matrix alone would be 8e8 bytes
    confusion = found["confusion"]
    assert len(confusion["labels"]) == classes and "counts" not in confusion and len(json.dumps(confusion)) < 250_000
    dense = sk.confusion_matrix(t, guess, labels=np.arange(280))
    assert sorted(map(tuple, confusion["cells"])) == [(i, j, dense[i, j]) for i, j in np.argwhere(dense).tolist()]
    assert found["metrics"]["f1_weighted"].value == pytest.approx(sk.f1_score(t, guess, average="weighted", zero_division=0))


def test_averages_do_not_depend_on_how_many_draws_are_held_at_a_time(monkeypatch):
    p, t = simulated(200, 5, seed=4)
    whole = classification(p, t, (), **HOW)["metrics"]
    monkeypatch.setattr("tauon.metrics.classification._AT_ONCE", 100)
    assert classification(p, t, (), **HOW)["metrics"] == whole


def test_every_interval_holds_its_value():
    for seed in range(5):
        p, t = simulated(80, 3, seed=seed)
        found = classification(p, t, (), **HOW)
        for m in [*found["metrics"].values(), *(v for r in found["per_class"] for v in r.values() if isinstance(v, Metric))]:
            if m.low is not None:
                assert m.low <= m.value <= m.high, m


def test_ece_equals_a_direct_sum_over_bins():
    p, t = simulated(1000, 4, seed=8)
    found = classification(p, t, (), **HOW)
    top, right = p.astype(np.float64).max(1), p.argmax(1) == t
    want = 0.0
    for b in range(15):
        inside = (top > b / 15) & (top <= (b + 1) / 15)
        if inside.any():
            want += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert found["metrics"]["ece"].value == pytest.approx(want, abs=1e-12)
    bins = found["calibration"]["bins"]
    assert sum(b["n"] for b in bins) == 1000
    assert all((b["accuracy"] is None) == (b["n"] == 0) for b in bins)


def test_a_calibrated_model_has_small_ece_and_an_overconfident_one_has_not():
    rng = np.random.default_rng(1)
    q = rng.dirichlet([1, 1, 1], 20_000)
    t = (q.cumsum(1) > rng.random((len(q), 1))).argmax(1)
    sharp = q**4 / (q**4).sum(1, keepdims=True)
    good, bad = (classification(x.astype(np.float32), t, (), **HOW)["metrics"]["ece"] for x in (q, sharp))
    assert good.value < 0.015
    assert good.low == 0.0
    assert bad.low > 0.1


def test_a_class_without_examples_and_one_never_predicted_are_said_not_zero():
    p = np.array([[0.7, 0.2, 0.05, 0.05], [0.6, 0.3, 0.05, 0.05], [0.2, 0.7, 0.05, 0.05], [0.6, 0.1, 0.25, 0.05]], dtype=np.float32)
    t = np.array([0, 0, 1, 2])  # 2 is never predicted, 3 has no example
    found = classification(p, t, ("a", "b", "c", "d"), **HOW)
    c, d = found["per_class"][2], found["per_class"][3]
    assert c["precision"].value is None
    assert "never predicted" in c["precision"].reason
    assert c["recall"].value == 0.0
    for name in ("recall", "f1", "roc_auc"):
        assert d[name].value is None
        assert "no example" in d[name].reason
    macro = found["metrics"]["precision_macro"]
    assert macro.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert "never predicted" in macro.reason
    assert "left out" in macro.reason
    assert found["metrics"]["recall_macro"].value == pytest.approx((1 + 1 + 0) / 3)


def test_one_class_only_leaves_auc_undefined_with_a_reason():
    p, _ = simulated(20, 2)
    auc = classification(p, np.ones(20, dtype=np.int64), (), **HOW)["metrics"]["roc_auc"]
    assert (auc.value, auc.low, auc.high) == (None, None, None)
    assert "one class" in auc.reason


def test_perfect_separation_still_has_an_interval_below_one():
    p = np.array([[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 12, dtype=np.float32)
    auc = classification(p, np.array([0] * 10 + [1] * 12), (), **HOW)["metrics"]["roc_auc"]
    assert (auc.value, auc.high) == (1.0, 1.0)
    assert 0.6 < auc.low < 1
    assert "Wilson" in auc.method


def test_probabilities_that_are_not_finite_leave_no_number():
    p, t = simulated(10, 3)
    p[4, 1] = np.nan
    found = classification(p, t, (), **HOW)
    assert all(m.value is None and "1 of 10" in m.reason for m in found["metrics"].values())


def test_scores_that_are_no_probabilities_and_labels_out_of_range_are_refused():
    p, t = simulated(10, 3)
    with pytest.raises(DataError, match="not probabilities"):
        classification(p * 5, t, (), **HOW)
    with pytest.raises(DataError, match="3 classes"):
        classification(p, t + 1, (), **HOW)


def test_a_probability_of_zero_for_the_truth_gives_a_finite_loss_that_is_explained():
    p = np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    loss = classification(p, np.array([1, 0]), (), **HOW)["metrics"]["log_loss"]
    assert math.isfinite(loss.value)
    assert "count as that" in loss.reason


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_metrics_equal_scikit_learn(outputs):
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    t = rng.normal(size=(300, outputs)) * 5 + 100
    p = t + rng.normal(size=t.shape)
    found = regression(p.astype(np.float32), t.astype(np.float32), (), **HOW)
    t, p = t.astype(np.float32).astype(np.float64), p.astype(np.float32).astype(np.float64)
    got = {k: m.value for k, m in found["metrics"].items()}
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(t, p))
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(t, p))
    assert got["r2"] == pytest.approx(sk.r2_score(t, p))
    assert len(found["per_class"]) == (outputs if outputs > 1 else 0)
    for m in found["metrics"].values():
        assert m.low < m.value < m.high


def test_r2_of_a_constant_target_is_undefined():
    found = regression(np.arange(5.0), np.full(5, 2.0), (), **HOW)["metrics"]
    assert found["r2"].value is None
    assert "all the same" in found["r2"].reason
    assert found["mae"].value == pytest.approx(1.2)


def test_language_metrics_equal_their_closed_forms():
    nll = np.array([10.0, 20.0, 33.0])
    tokens, size = np.array([8, 8, 4]), np.array([30, 25, 18])
    found = language_modelling(nll, tokens, size, {"n_words": 12, "n_bytes": 73}, **HOW)["metrics"]
    assert found["loss"].value == pytest.approx(63 / 20)
    assert found["perplexity"].value == pytest.approx(math.exp(63 / 20))
    assert found["bits_per_byte"].value == pytest.approx(63 / math.log(2) / 73)
    assert found["word_perplexity"].value == pytest.approx(math.exp(63 / 12))
    assert all(m.low < m.value < m.high for m in found.values())


def test_a_uniform_model_over_256_bytes_has_eight_bits_per_byte():
    n = np.full(50, 16)
    found = language_modelling(n * math.log(256), n, n, {}, **HOW)["metrics"]
    assert found["bits_per_byte"].value == pytest.approx(8, abs=1e-12)
    assert found["perplexity"].value == pytest.approx(256)
    assert "word_perplexity" not in found


def test_word_perplexity_of_half_a_text_is_undefined():
    found = language_modelling(np.ones(4), np.ones(4), np.full(4, 5), {"n_words": 8, "n_bytes": 40}, **HOW)["metrics"]
    assert found["word_perplexity"].value is None
    assert "50.0%" in found["word_perplexity"].reason


def test_a_loss_too_large_for_exp_is_said():
    found = language_modelling(np.array([9000.0, 8000.0]), np.array([10, 10]), np.array([9, 9]), {}, **HOW)["metrics"]
    assert found["perplexity"].value is None
    assert found["loss"].value == 850


def test_random_cases_never_warn_and_always_survive_json():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(30):
            rng = np.random.default_rng(seed)
            n, classes = int(rng.integers(1, 12)), int(rng.integers(2, 5))
            p, t = simulated(n, classes, seed=seed, ties=True, skill=float(rng.integers(0, 9)))
            found = classification(p, t, (), **HOW)
            e = Evaluation(family="classification", split="test", n=n, **HOW, **found)
            text = json.dumps(e.to_json(), allow_nan=False)
            assert Evaluation.from_json(json.loads(text)) == e
            regression(rng.normal(size=n), np.round(rng.normal(size=n)), (), **HOW)
            language_modelling(rng.random(n), np.ones(n), np.ones(n), {"n_words": 3}, **HOW)


def test_a_record_that_is_none_is_refused():
    with pytest.raises(DataError, match="evaluation record"):
        Evaluation.from_json({"metrics": 3})
    with pytest.raises(DataError, match="evaluation record"):
        Evaluation.from_json([1])


def test_compare_knows_which_direction_is_better():
    def one(acc, loss):
        metrics = {
            "accuracy": Metric(acc, acc - 0.01, acc + 0.01, 100, "", "higher", ""),
            "log_loss": Metric(loss, loss - 0.01, loss + 0.01, 100, "", "lower", ""),
        }
        return Evaluation("classification", "test", 100, "accuracy", metrics, 0.95, 100, 0)

    by = {d.name: d for d in compare(one(0.8, 0.5), one(0.9, 0.505))}
    assert by["accuracy"].difference == pytest.approx(0.1)
    assert (by["accuracy"].winner, by["accuracy"].overlap) == ("b", False)
    assert (by["log_loss"].winner, by["log_loss"].overlap) == ("even", True)
    assert {d.name: d.winner for d in compare(one(0.8, 0.4), one(0.8, 0.5))} == {"accuracy": "even", "log_loss": "a"}
    with pytest.raises(DataError, match="cannot compare"):
        compare(one(0.8, 0.5), Evaluation("regression", "test", 1, "r2", {}, 0.95, 100, 0))
