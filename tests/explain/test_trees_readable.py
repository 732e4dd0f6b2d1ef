"""Readable features against numpy, polyfit and scikit-learn; trees over them imitate models of the original examples."""

from __future__ import annotations

import numpy as np
import pytest

from tauon.errors import DataError
from tauon.explain.trees import (
    SurrogateSettings,
    band_time_means,
    choose_ngrams,
    fit_surrogate_of_answers,
    grid_cells,
    ngram_presence,
    ngrams_of,
    window_statistics,
)


def test_grid_cells_are_means_of_their_pixels() -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 12, 9))
    X, features = grid_cells(images, 4, 3)
    assert X.shape == (3, 36) and len(features) == 36
    names = [f.name for f in features]
    assert X[1, names.index("green of row 2, column 3 of the 4 x 3 grid")] == pytest.approx(images[1, 1, 3:6, 6:9].mean())
    np.testing.assert_allclose(X.reshape(3, 3, 12).mean(2), images.mean((2, 3)))
    uneven, _ = grid_cells(images, 5, 2)
    assert uneven.shape == (3, 30) and np.isfinite(uneven).all()


def test_a_tree_over_cells_imitates_a_model_of_images() -> None:
    images = np.random.default_rng(0).random((400, 1, 8, 8))
    bright = images[:, 0, :4, :4].mean((1, 2)) > 0.5
    answers = np.c_[~bright, bright].astype(float)
    X, features = grid_cells(images, 2, 2)
    s = fit_surrogate_of_answers(X[:300], answers[:300], features, X[300:], answers[300:], outputs=("dark", "bright"))
    assert s.fidelity.agreement is not None and s.fidelity.agreement > 0.95
    assert "brightness of row 1, column 1 of the 2 x 2 grid is" in s.path_of(X[0]).sentence


def test_bands_and_times_are_means_with_their_hertz_and_seconds() -> None:
    spectrograms = np.random.default_rng(0).normal(size=(2, 6, 10))
    X, features = band_time_means(spectrograms, 3, 2, hertz=[100, 200, 300, 400, 500, 600], seconds=1.0)
    assert features[3].name == "level at 300 to 400 Hz, 0.50 to 1.00 s"
    assert X[0, 3] == pytest.approx(spectrograms[0, 2:4, 5:].mean())
    assert band_time_means(spectrograms, 3, 2)[1][0].name == "level at band 1 of 3, part 1 of 2"


def test_window_statistics_equal_numpy_and_polyfit() -> None:
    series = np.random.default_rng(0).normal(size=(4, 24, 2))
    X, features = window_statistics(series, ["load", "temperature"], ["MW", "°C"])
    at = {f.name: j for j, f in enumerate(features)}
    for i in range(4):
        assert X[i, at["trend of temperature a step"]] == pytest.approx(np.polyfit(np.arange(24), series[i, :, 1], 1)[0])
        assert X[i, at["range of load"]] == pytest.approx(np.ptp(series[i, :, 0]))
        assert X[i, at["last value of load"]] == series[i, -1, 0] and X[i, at["mean of load"]] == pytest.approx(series[i, :, 0].mean())
    assert features[at["mean of load"]].unit == "MW" and features[at["mean of temperature"]].unit == "°C"
    assert window_statistics(series[:, :1], ["a", "b"])[0][0, 2] == 0, "one step has no trend"


def test_presence_of_ngrams_equals_scikit_learns() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import chi2

    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "plot", "slow", "fine"])
    texts = [" ".join(rng.choice(words, 6)) for _ in range(120)]
    answers = np.array([int("good" in t) for t in texts])
    counter = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+")
    theirs = counter.fit_transform(texts)
    vocabulary = counter.get_feature_names_out().tolist()
    X, features = ngram_presence(texts, vocabulary)
    np.testing.assert_array_equal(X, theirs.toarray())
    assert features[0].kind == "flag" and features[0].name == f'"{vocabulary[0]}"'
    chosen = choose_ngrams(texts, answers, most=5)
    assert chosen[0] == "good", "it decides the answer"
    score = dict(zip(vocabulary, chi2(theirs, answers)[0], strict=True))  # scikit-learn's statistic leaves out the texts without the n-gram
    share = dict(zip(vocabulary, theirs.toarray().mean(0), strict=True))
    pearson = {v: score[v] / (1 - share[v]) for v in vocabulary if 5 <= share[v] * 120 < 120}
    assert list(chosen) == sorted(pearson, key=lambda v: (-round(pearson[v], 9), v))[:5]


def test_a_tree_over_ngrams_reads_as_a_sentence() -> None:
    words = np.array(["film", "plot", "fun", "slow", "not"])
    texts = [" ".join([*np.random.default_rng(i).choice(words, 4), *["good"] * (i % 2)]) for i in range(300)]
    good = np.array([float("good" in t and "not good" not in t) for t in texts])
    answers = np.c_[1 - good, good]
    X, features = ngram_presence(texts, choose_ngrams(texts, answers.argmax(1), most=10))
    settings = SurrogateSettings(max_depth=3)
    s = fit_surrogate_of_answers(X, answers, features, X, answers, outputs=("negative", "positive"), settings=settings)
    assert s.fidelity.agreement == 1
    assert '"good" is in the text' in s.path_of(X[1]).sentence and '"good" is not in the text' in s.path_of(X[0]).sentence


def test_words_are_runs_of_letters_in_any_language() -> None:
    assert ngrams_of("C'est très bon !", 1) == {"c'est", "très", "bon"}
    assert ngrams_of("") == set()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: grid_cells(np.zeros((2, 8, 8))),
        lambda: grid_cells(np.zeros((2, 1, 3, 3)), 4, 4),
        lambda: grid_cells(np.zeros((2, 2, 8, 8)), channels=["one"]),
        lambda: grid_cells(np.full((2, 1, 8, 8), np.nan)),
        lambda: band_time_means(np.zeros((1, 2, 2)), 3, 1),
        lambda: window_statistics(np.zeros((1, 4, 2)), ["a"]),
        lambda: window_statistics(np.zeros((0, 4, 2)), ["a", "b"]),
        lambda: choose_ngrams(["a", "b"]),
    ],
)
def test_what_does_not_fit_is_refused(ask) -> None:
    with pytest.raises(DataError):
        ask()
