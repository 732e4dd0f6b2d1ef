"""The reference of text classification gives what scikit-learn's TF-IDF and logistic regression give."""

from __future__ import annotations

import numpy as np
import pytest

from tauon.evaluate import text_baseline


def films(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    words = [
        [f"w{int(v)}" for v in rng.integers(0, 400, 12)] + [f"{'good' if k else 'bad'}{int(v)}" for v in rng.integers(0, 60, 2)] for k in y
    ]
    return [" ".join(w) for w in words], y


def test_it_is_as_good_as_scikit_learns() -> None:
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    (train, y), (test, truth) = films(400, 0), films(400, 1)
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    peer = LogisticRegression(C=8.0, max_iter=1000).fit(vectors.fit_transform(train), y).score(vectors.transform(test), truth)
    scores = text_baseline(train, y, test, classes=2)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    assert float((scores.argmax(1) == truth).mean()) >= peer - 0.02


def test_a_text_without_words_gets_the_share_of_the_classes() -> None:
    train, y = films(200, 0)
    assert np.isfinite(text_baseline(train, y, ["", "   "], classes=2)).all()
