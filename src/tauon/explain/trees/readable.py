"""Readable features of examples that are not tables: grid cells of images, words of texts, windows of series, bands of spectrograms.

Each function returns (X, features): X (N, F) and what each column is. A tree over X imitates the model's answers to the original examples
(`fit_surrogate_of_answers`). Cells of a fixed grid have the same meaning in every image; superpixels would not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, Matrix, describe_features

__all__ = ["band_time_means", "choose_ngrams", "grid_cells", "ngram_presence", "ngrams_of", "window_statistics"]

_PRESENCE = ("is not in the text", "is in the text")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def grid_cells(
    images_NCHW: NDArray[np.float64], rows: int = 4, columns: int = 4, channels: Sequence[str] = ()
) -> tuple[Matrix, tuple[Feature, ...]]:
    """Return the mean of each cell of a grid, for each channel: images (N, C, H, W) to (N, C rows columns).

    >>> X, features = grid_cells(np.ones((1, 1, 8, 8)), 2, 2)
    >>> features[1].name, X.tolist()
    ('brightness of row 1, column 2 of the 2 x 2 grid', [[1.0, 1.0, 1.0, 1.0]])
    """
    count, height, width = _shape(images_NCHW, 4, "images (N, C, H, W)")[1:]
    names = list(channels) or (
        ["brightness"] if count == 1 else ["red", "green", "blue"] if count == 3 else [f"channel {c}" for c in range(count)]
    )
    if len(names) != count:
        raise DataError(f"got {len(names)} names for {count} channels")
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise DataError(f"a grid of {rows} x {columns} cells does not fit images of {height} x {width} pixels")
    cells = [
        images_NCHW[:, :, a : b, c : d].mean((2, 3))
        for a, b in _parts(height, rows)
        for c, d in _parts(width, columns)
    ]  # fmt: skip
    X = np.stack(cells, axis=2).reshape(len(images_NCHW), -1)
    places = [f"row {r + 1}, column {c + 1} of the {rows} x {columns} grid" for r in range(rows) for c in range(columns)]
    return _described(X, [f"{name} of {place}" for name in names for place in places])


def band_time_means(
    spectrograms_NFT: NDArray[np.float64], bands: int = 4, times: int = 4, *, hertz: Sequence[float] = (), seconds: float | None = None
) -> tuple[Matrix, tuple[Feature, ...]]:
    """Return the mean level of each frequency band in each part of the time: spectrograms (N, F, T) to (N, bands times).

    `hertz` are the F frequencies, `seconds` the whole duration; without them bands and parts are numbered.
    """
    count, length = _shape(spectrograms_NFT, 3, "spectrograms (N, F, T)")[1:]
    if not (1 <= bands <= count and 1 <= times <= length):
        raise DataError(f"{bands} bands x {times} parts do not fit spectrograms of {count} frequencies x {length} frames")
    names, columns = [], []
    for i, (a, b) in enumerate(_parts(count, bands)):
        band = f"{hertz[a]:,.0f} to {hertz[b - 1]:,.0f} Hz" if len(hertz) else f"band {i + 1} of {bands}"
        for k, (c, d) in enumerate(_parts(length, times)):
            when = f"{seconds * c / length:.2f} to {seconds * d / length:.2f} s" if seconds else f"part {k + 1} of {times}"
            names.append(f"level at {band}, {when}")
            columns.append(spectrograms_NFT[:, a:b, c:d].mean((1, 2)))
    return _described(np.stack(columns, axis=1), names)


def window_statistics(
    series_NTF: NDArray[np.float64], columns: Sequence[str], units: Sequence[str] = ()
) -> tuple[Matrix, tuple[Feature, ...]]:
    """Return last value, mean, trend (least-squares change a step) and range (largest - smallest) of each column of windows (N, T, F)."""
    length, count = _shape(series_NTF, 3, "windows (N, T, F)")[1:]
    if len(columns) != count:
        raise DataError(f"got {len(columns)} names for {count} columns")
    steps = np.arange(length) - (length - 1) / 2
    trend = np.einsum("t,ntf->nf", steps / max(float((steps**2).sum()), 1.0), series_NTF)
    parts = [series_NTF[:, -1], series_NTF.mean(1), trend, series_NTF.max(1) - series_NTF.min(1)]
    X = np.stack(parts, axis=2).reshape(len(series_NTF), -1)
    kinds = ("last value of {}", "mean of {}", "trend of {} a step", "range of {}")
    names = [kind.format(column) for column in columns for kind in kinds]
    return _described(X, names, dict(zip(names, np.repeat(units, 4).tolist(), strict=True)) if len(units) else {})


def ngrams_of(text: str, longest: int = 2) -> set[str]:
    """Return the runs of 1 to `longest` words of a text, in lower case.

    >>> sorted(ngrams_of("Not good."))
    ['good', 'not', 'not good']
    """
    words = _WORD.findall(text.lower())
    return {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)}


def choose_ngrams(
    texts: Sequence[str], answers_N: NDArray[np.int64] | None = None, *, most: int = 200, longest: int = 2, min_texts: int = 5
) -> tuple[str, ...]:
    """Return the n-grams to look for: those that go most with the model's answers (chi-squared), or the most frequent without answers.

    N-grams of fewer than `min_texts` texts are left out, and those in every text.
    """
    found = [ngrams_of(text, longest) for text in texts]
    counts = Counter(ngram for ngrams in found for ngram in ngrams)
    candidates = sorted(ngram for ngram, count in counts.items() if min_texts <= count < len(texts))
    if not candidates:
        raise DataError(f"no run of 1 to {longest} words is in at least {min_texts} of {len(texts)} texts, and not in all: give more texts")
    score = {ngram: float(counts[ngram]) for ngram in candidates}
    if answers_N is not None:
        classes = np.bincount(answers_N)
        by_class = {ngram: np.zeros(len(classes)) for ngram in candidates}
        for ngrams, answer in zip(found, answers_N.tolist(), strict=True):
            for ngram in ngrams & by_class.keys():
                by_class[ngram][answer] += 1
        score = {ngram: _chi_squared(observed, classes) for ngram, observed in by_class.items()}
    return tuple(sorted(candidates, key=lambda ngram: (-score[ngram], ngram))[:most])


def _chi_squared(with_it_C: Matrix, classes_C: NDArray[np.int64]) -> float:
    """Pearson's statistic of the table (with or without the n-gram) x (answer)."""
    share = with_it_C.sum() / classes_C.sum()
    kept = classes_C > 0
    off_C = with_it_C[kept] - share * classes_C[kept]
    return float((off_C**2 / (classes_C[kept] * share * (1 - share))).sum())


def ngram_presence(texts: Sequence[str], ngrams: Sequence[str]) -> tuple[Matrix, tuple[Feature, ...]]:
    """Return 1 where a text has the n-gram, else 0: (N, len(ngrams)).

    >>> X, features = ngram_presence(["a good film", "bad"], ["good", "bad"])
    >>> X.tolist(), features[0].name
    ([[1.0, 0.0], [0.0, 1.0]], '"good"')
    """
    longest = max((len(ngram.split()) for ngram in ngrams), default=1)
    found = [ngrams_of(text, longest) for text in texts]
    X = np.array([[float(ngram in has) for ngram in ngrams] for has in found]).reshape(len(texts), len(ngrams))
    return X, tuple(Feature(f'"{ngram}"', "flag", _PRESENCE, low=0.0, high=1.0, integer=True) for ngram in ngrams)


def _shape(values: NDArray[np.float64], axes: int, what: str) -> tuple[int, ...]:
    if values.ndim != axes or not values.size:
        raise DataError(f"got shape {values.shape}, expected {what}, none of them 0")
    shape: tuple[int, ...] = values.shape
    return shape


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    ends = [length * i // count for i in range(count + 1)]
    return list(pairwise(ends))


def _described(X: NDArray[np.float64], names: Sequence[str], units: dict[str, str] | None = None) -> tuple[Matrix, tuple[Feature, ...]]:
    X = X.astype(np.float64)
    features = describe_features(X, names, units=units)
    return X, tuple(Feature(f.name, low=f.low, high=f.high, unit=f.unit) for f in features)  # a flag by chance is a number here
