"""Wrong labels: the same as cleanlab finds, and most of those that were planted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tauon.data.quality import find_label_errors, out_of_fold
from tauon.errors import DataError


def example(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    true = draw.integers(0, k, n)
    logits = draw.normal(0, 1, (n, k))
    logits[np.arange(n), true] += draw.uniform(0, 4, n)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.where(draw.random(n) < 0.2, draw.integers(0, k, n), true)
    labels[:k] = np.arange(k)
    return labels, p


@pytest.mark.parametrize(("n", "k"), [(20, 2), (60, 3), (300, 2), (300, 10), (1000, 5), (80, 40), (2000, 3)])
def test_the_same_as_cleanlab(n: int, k: int) -> None:
    filters, counts = pytest.importorskip("cleanlab.filter"), pytest.importorskip("cleanlab.count")
    for seed in range(10):
        labels, p = example(seed, n, k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = filters.find_label_issues(labels, p, n_jobs=1, return_indices_ranked_by="self_confidence")
            joint = counts.compute_confident_joint(labels, p)
        found = find_label_errors(labels, p)
        assert found.joint.tolist() == joint.tolist()
        assert found.examples.tolist() == expected.tolist()
        assert np.array_equal(found.suggested, p[found.examples].argmax(1))


def test_a_class_that_no_example_has() -> None:
    filters = pytest.importorskip("cleanlab.filter")
    labels, p = example(0, 200, 4)
    labels[labels == 2] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = filters.find_label_issues(labels, p, n_jobs=1)
    assert np.flatnonzero(expected).tolist() == sorted(find_label_errors(labels, p).examples.tolist())


def planted(labels: np.ndarray, share: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    wrong = draw.choice(len(labels), int(share * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + draw.integers(1, labels.max() + 1, len(wrong))) % (labels.max() + 1)
    return noisy, wrong


def scores(found: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    both = len(np.intersect1d(found, wrong))
    return both / len(wrong), both / len(found)


def test_flipped_digits_are_found() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    noisy, wrong = planted(digits.target)
    pictures = digits.images[:, None] * 15.0
    recall, precision = scores(find_label_errors(noisy, out_of_fold(pictures, noisy)).examples, wrong)
    assert recall > 0.8 and precision > 0.85


def test_flipped_texts_are_found() -> None:
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(0)
    common = [f"w{i}" for i in range(300)]
    own = [[f"{c}{i}" for i in range(60)] for c in "abc"]
    labels = np.arange(900) % 3
    texts = [" ".join([*draw.choice(common, 30), *draw.choice(own[c], 6)]) for c in labels]
    noisy, wrong = planted(labels)
    recall, precision = scores(find_label_errors(noisy, out_of_fold(texts, noisy)).examples, wrong)
    assert recall > 0.9 and precision > 0.8


def test_no_model_sees_its_example_or_its_group() -> None:
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(0)
    groups = np.arange(200) // 2
    features = np.repeat(draw.normal(size=(100, 50)), 2, axis=0)  # pairs of equal rows with labels by chance
    labels = np.repeat(draw.integers(0, 2, 100), 2)
    alone = out_of_fold(features, labels, groups=groups)
    leaked = out_of_fold(features, labels)
    assert (alone.argmax(1) == labels).mean() < 0.65 < 0.75 < (leaked.argmax(1) == labels).mean()
    assert np.array_equal(alone, out_of_fold(features, labels, groups=groups))
    assert alone.sum(1) == pytest.approx(1)
    features[0, 0] = np.nan
    assert np.isfinite(out_of_fold(features, labels)).all()


def test_bad_input_is_refused() -> None:
    p = np.full((4, 2), 0.5)
    for labels, values, message in (
        (np.zeros(3, int), p, "shape"), (np.array([0, 1, 2, 0]), p, "from 0 to 2"), (np.array([0, 1, 0, 1]), p * 3, "from 0 to 1"),
        (np.zeros(4, int), p, "one class"), (np.array([0.0, 1, 0, 1]), p, "float64"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            find_label_errors(labels, values)
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match="one fold only"):
        out_of_fold(np.random.default_rng(0).normal(size=(20, 2)), np.array([0] * 10 + [1] * 9 + [2]))
