"""Metrics of several labels, of ordered classes and of the ranking of classes, against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tauon.errors import DataError
from tauon.metrics.classification import classification
from tauon.metrics.multilabel import average_precision, multi_label
from tauon.metrics.ordinal import ordinal

metrics = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn")

HOW: dict[str, Any] = {"confidence": 0.9, "resamples": 200, "seed": 3}
RNG = np.random.default_rng(1)


def labelled(n: int = 300, labels: int = 4, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    truth = (RNG.random((n, labels)) < [0.5, 0.3, 0.1, 0.03][:labels]).astype(np.float32)
    scores = 1 / (1 + np.exp(-(3 * truth - 1.5 + RNG.normal(size=truth.shape))))
    return (scores.round(1) if coarse else scores).astype(np.float32), truth


@pytest.mark.parametrize("coarse", [False, True])  # with many equal scores, too
def test_multi_label_metrics_are_scikit_learns(coarse: bool) -> None:
    scores, truth = labelled(coarse=coarse)
    found = multi_label(scores, truth, tuple("abcd"), **HOW)
    guess = scores >= 0.5
    m = {k: v.value for k, v in found["metrics"].items()}
    assert m["map"] == pytest.approx(metrics.average_precision_score(truth, scores, average="macro"), rel=1e-9)
    assert m["f1_micro"] == pytest.approx(metrics.f1_score(truth, guess, average="micro"), rel=1e-12)
    assert m["f1_macro"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"), rel=1e-12)
    assert m["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert m["hamming_loss"] == pytest.approx(metrics.hamming_loss(truth, guess))
    p, r, f, s = metrics.precision_recall_fscore_support(truth, guess, average=None)
    for k, row in enumerate(found["per_class"]):
        assert (row["label"], row["support"]) == ("abcd"[k], s[k])
        assert (row["precision"].value, row["recall"].value, row["f1"].value) == pytest.approx((p[k], r[k], f[k]))
        assert row["roc_auc"].value == pytest.approx(metrics.roc_auc_score(truth[:, k], scores[:, k]))
        assert row["average_precision"].value == pytest.approx(metrics.average_precision_score(truth[:, k], scores[:, k]))
    for metric in found["metrics"].values():
        assert metric.low <= metric.value <= metric.high


def test_average_precision_by_hand() -> None:
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)


def test_a_label_without_examples_is_left_out_and_said() -> None:
    scores, truth = labelled()
    truth[:, 2] = 0
    found = multi_label(scores, truth, (), **HOW)
    kept = [0, 1, 3]
    assert found["metrics"]["map"].value == pytest.approx(metrics.average_precision_score(truth[:, kept], scores[:, kept]))
    assert "1 labels without examples" in found["metrics"]["map"].reason
    assert found["per_class"][2]["average_precision"].value is None and found["per_class"][2]["roc_auc"].value is None
    nothing = multi_label(scores, np.zeros_like(truth), (), **HOW)
    assert nothing["metrics"]["map"].value is None and nothing["metrics"]["f1_macro"].value is None


def test_intervals_of_mean_average_precision_cover_the_truth() -> None:
    """Many samples of one model: the 90% interval holds the value of a very large sample about as often as it says."""
    rng = np.random.default_rng(0)

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        truth = (rng.random((n, 2)) < 0.3).astype(np.float32)
        return truth * 1.2 + rng.normal(size=(n, 2)), truth

    scores, truth = sample(200_000)
    real = metrics.average_precision_score(truth, scores)
    hits = 0
    for _ in range(60):
        s, t = sample(200)
        metric = multi_label(s, t, (), confidence=0.9, resamples=120, seed=0)["metrics"]["map"]
        hits += metric.low <= real <= metric.high
    assert 46 <= hits <= 60


def test_multi_label_refuses_targets_that_are_no_labels_and_scores_that_are_no_numbers() -> None:
    scores, truth = labelled()
    with pytest.raises(DataError, match="not all 0 or 1"):
        multi_label(scores, truth * 0.5, (), **HOW)
    scores[3, 1] = np.nan
    found = multi_label(scores, truth, (), **HOW)
    assert found["metrics"]["map"].value is None and "1 of 300" in found["notes"][0]


def ordered(n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    truth = RNG.integers(0, classes, n)
    logits = -((np.arange(classes) - truth[:, None] - RNG.normal(0, 1, (n, 1))) ** 2)
    p = np.exp(logits)
    return (p / p.sum(1, keepdims=True)).astype(np.float32), truth


def test_ordinal_metrics_are_scikit_learns() -> None:
    scores, truth = ordered()
    found = ordinal(scores, truth, tuple("abcde"), **HOW)
    median = (scores.astype(np.float64).cumsum(1) < 0.5).sum(1)
    m = {k: v.value for k, v in found["metrics"].items()}
    assert m["rank_mae"] == pytest.approx(metrics.mean_absolute_error(truth, median))
    assert m["kappa_quadratic"] == pytest.approx(metrics.cohen_kappa_score(truth, median, weights="quadratic"))
    assert m["accuracy"] == pytest.approx(metrics.accuracy_score(truth, median))
    assert m["within_one"] == pytest.approx((np.abs(truth - median) <= 1).mean())
    assert m["rank_mae_macro"] == pytest.approx(np.mean([np.abs(median[truth == c] - c).mean() for c in range(5)]))
    assert found["confusion"]["counts"] == metrics.confusion_matrix(truth, median).tolist()
    for metric in found["metrics"].values():
        assert metric.low <= metric.value <= metric.high
    assert found["primary"] == "rank_mae"


def test_kappa_is_undefined_where_all_agree_on_one_class() -> None:
    found = ordinal(np.tile([1.0, 0.0], (5, 1)), np.zeros(5, np.int64), (), **HOW)
    assert found["metrics"]["kappa_quadratic"].value is None
    assert found["metrics"]["rank_mae"].value == 0


def test_the_ranking_of_classes_is_scikit_learns() -> None:
    truth = RNG.integers(0, 30, 500)
    p = RNG.random((500, 30)) + 0.3 * (np.arange(30) == truth[:, None])
    p /= p.sum(1, keepdims=True)
    found = classification(p, truth, (), **HOW)["metrics"]
    assert found["top_5_accuracy"].value == pytest.approx(metrics.top_k_accuracy_score(truth, p, k=5))
    asked = classification(p, truth, (), **HOW, top_k=(1, 3))["metrics"]
    assert asked["top_3_accuracy"].value == pytest.approx(metrics.top_k_accuracy_score(truth, p, k=3))
    assert asked["top_1_accuracy"].value == pytest.approx(asked["accuracy"].value)
    assert "top_5_accuracy" not in asked
    reciprocal = metrics.label_ranking_average_precision_score(np.eye(30)[truth], p)  # one true label: 1 / its place
    assert asked["reciprocal_rank"].value == pytest.approx(reciprocal)
    assert "top_5_accuracy" not in classification(p[:, :4] / p[:, :4].sum(1, keepdims=True), truth % 4, (), **HOW)["metrics"]


def test_of_equal_probabilities_the_first_class_is_ahead() -> None:
    p = np.full((2, 4), 0.25)
    found = classification(p, np.array([0, 3]), (), **HOW, top_k=(1, 3, 4))["metrics"]
    assert [found[f"top_{k}_accuracy"].value for k in (1, 3, 4)] == [0.5, 0.5, 1.0]
    assert found["accuracy"].value == 0.5
