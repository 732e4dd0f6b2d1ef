"""Texts unlike the others: no language, one phrase again and again, empty, or of an extreme length. The corpus itself is the measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.quality.base import DataView, Finding, QualityCheck, counted, examples_of
from tauon.data.quality.columns import far_outside, robust_distance

__all__ = ["TextOutliers", "odd_texts"]

FAR = 6.0
"""Robust standard deviations from which on a text's trigrams are rare."""
BEYOND = 2.0
"""How many times the distance that 5% of the texts exceed, so that a mixed corpus has fewer outliers."""
RARER = 1.5
"""And how much rarer its trigrams must be than those of the middle text, in nats: 4.5 times."""
LETTERS = 0.3
"""Share of letters below which a text is none, in a corpus of letters."""
REPEATED = 0.5
"""Share of a text's pairs of words that occurred in it before."""
_BINS = 1 << 20
_SHRINK = 20
_LEAST = 50
"""Texts that a corpus must have to be a measure."""


@register("text-outliers")
class TextOutliers(QualityCheck):
    """Texts whose characters hardly occur together in the others, that repeat themselves, or that are much shorter or longer than all others."""

    kinds = ("texts",)
    title = "Texts unlike the others"

    def find(self, view: DataView) -> Iterator[Finding]:
        odd: dict[int, str] = view.once("odd", lambda: odd_texts(view.texts))
        if odd:
            rows = tuple((i,) for i in odd)
            message = (
                f"{counted(len(rows), 'text')} unlike the others: another language or code, repetition, or an extreme length. Unusual is not wrong: look "
                "whether they belong here"
            )
            reasons = [*odd.values()]
            yield Finding("outliers", "warn", message, rows, examples_of(view, rows, lambda i: view.texts[i], lambda k: reasons[k]))


def odd_texts(texts: Sequence[str]) -> dict[int, str]:
    """Return texts unlike the others, with the reason.

    >>> odd_texts(["It rains in the hills today and tomorrow."] * 60 + ["no no no no no no no no no no no no"])
    {60: '91% of its pairs of neighbouring words occurred in it before'}
    """
    odd: dict[int, str] = {i: "it is empty" for i, text in enumerate(texts) if not text.strip()}
    for i, text in enumerate(texts):
        share = repeated_share(text)
        if share > REPEATED:
            odd.setdefault(i, f"{share:.0%} of its pairs of neighbouring words occurred in it before")
    if len(texts) < _LEAST:
        return odd
    surprise = trigram_surprise(texts)
    middle = float(np.median(surprise))
    distance = np.where(surprise > middle, robust_distance(surprise), 0.0)
    rare = (distance > max(FAR, BEYOND * float(np.percentile(distance, 95)))) & (surprise > middle + RARER)
    for i in np.flatnonzero(rare).tolist():
        odd.setdefault(
            i, f"its sequences of characters are rare in the other texts ({distance[i]:.0f} robust standard deviations from the middle)"
        )
    letters = np.array([letter_share(text) for text in texts])
    if np.median(letters) > 2 * LETTERS:
        for i in np.flatnonzero(letters < LETTERS).tolist():
            odd.setdefault(
                i,
                f"{letters[i]:.0%} of its characters are letters; usual: {np.percentile(letters, 5):.0%} to {np.percentile(letters, 95):.0%}",
            )
    lengths = np.array([len(text) for text in texts], np.float64)
    extreme = (lengths < np.percentile(lengths, 5) / 2) | (lengths > 2 * np.percentile(lengths, 95))
    for i in np.flatnonzero(far_outside(lengths) & extreme).tolist():
        odd.setdefault(i, f"{len(texts[i]):,} characters; usual: {np.percentile(lengths, 5):,.0f} to {np.percentile(lengths, 95):,.0f}")
    return dict(sorted(odd.items()))


def repeated_share(text: str) -> float:
    """Return the share of a text's pairs of neighbouring words that occurred in it before; 0 for fewer than ten words."""
    words = text.split()
    if len(words) < 10:
        return 0.0
    return 1 - len(set(pairwise(words))) / (len(words) - 1)


def letter_share(text: str) -> float:
    """Return the share of letters among the characters that are not blank."""
    signs = "".join(text.split())
    return sum(map(str.isalpha, signs)) / len(signs) if signs else 0.0


def trigram_surprise(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean, over the different trigrams of characters of each text, of -log(share of the other texts that have it), in nats.

    Short texts are drawn to the middle of all, as a few trigrams say little. Digits count as one character, and case does not count.
    """
    digits = {ord(str(d)): ord("0") for d in range(10)}
    codes = [_trigrams(text.lower().translate(digits)) for text in texts]
    seen = np.bincount(np.concatenate(codes), minlength=_BINS)
    weight = -np.log((np.maximum(seen - 1, 0) + 0.5) / len(texts))
    total = np.array([float(weight[c].sum()) for c in codes])
    count = np.array([len(c) for c in codes])
    middle = float(np.median(total[count > 0] / count[count > 0])) if (count > 0).any() else 0.0
    shrunk: NDArray[np.float64] = (total + _SHRINK * middle) / (count + _SHRINK)
    return shrunk


def _trigrams(text: str) -> NDArray[np.int64]:
    signs = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    if len(signs) < 3:
        return np.empty(0, np.int64)
    mixed = (
        (signs[:-2] * np.uint64(0x9E3779B97F4A7C15))
        ^ (signs[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F))
        ^ (signs[2:] * np.uint64(0x165667B19E3779F9))
    )
    return np.unique((mixed >> np.uint64(40)).astype(np.int64) & (_BINS - 1))
