"""Training texts that repeat held-out texts, by n-grams of words.

As in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): n-grams of 13 words, and those that are in more than ten training texts are common (licences,
phrases) and do not count. Unlike there, whole training texts are judged, by two shares: of their own n-grams, and of those of one held-out text.

Memory: 12 bytes per n-gram of the held-out texts and at most 11 times 12 for what is found of them; of more than `MOST` n-grams an even sample is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tauon.data.dedup.words import WordHashes, ngrams

__all__ = ["COMMON", "Contaminated", "HeldOut"]

COMMON = 10
"""Most training texts that an n-gram may be in before it counts as common."""
MOST = 1 << 26
"""Most n-grams of held-out texts that are looked up; of more, those whose hashes are in an even share of all hashes."""
_OWNERS = 16
"""Held-out texts that are looked at for one n-gram."""
_CHARS = 1 << 20
_WORDS = 1 << 18
"""Words of one long text that are looked at together."""


@dataclass(frozen=True)
class Contaminated:
    """One training text that repeats a held-out text."""

    text: int
    """Its number."""
    of: int
    """Number of the held-out text that it has most of."""
    share: float
    """Share of its n-grams that are in held-out texts."""
    contains: float
    """Share of that held-out text's n-grams that it has."""


class HeldOut:
    """The n-grams of held-out texts, and which training texts have them."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        """`texts`: the held-out texts; `n`: words per n-gram."""
        self._n, self._hashes = n, WordHashes()
        self._sample = np.uint64(2**64 - 1)
        codes, owners, first = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], 0
        size = 0
        for count, values, whose in self._batches(texts):
            codes.append(values)
            owners.append((whose + first).astype(np.int32))
            first += count
            size += len(values)
            if size > MOST:
                self._sample //= np.uint64(2)
                kept = [c <= self._sample for c in codes]
                codes, owners = [c[k] for c, k in zip(codes, kept, strict=True)], [o[k] for o, k in zip(owners, kept, strict=True)]
                size = sum(map(len, codes))
        whole, owner = np.concatenate(codes), np.concatenate(owners)
        order = np.lexsort((owner, whole))
        whole, owner = whole[order], owner[order]
        new = np.append(True, whole[1:] != whole[:-1]) if len(whole) else np.zeros(0, bool)
        self.texts = first
        self._grams = whole[new]
        self._starts = np.append(np.flatnonzero(new), len(whole))
        self._owners = owner
        self._sizes = np.bincount(owner, minlength=first)

    def _batches(self, texts: Iterable[str]) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
        """Yield (number of texts, n-grams, text of each) of batches; a text has each n-gram once."""
        batch: list[str] = []
        chars = 0
        for text in texts:
            if len(text) >= _CHARS and batch:  # a long text is a batch of its own
                yield (len(batch), *self._distinct(batch))
                batch, chars = [], 0
            batch.append(text)
            chars += len(text)
            if chars >= _CHARS:
                yield (len(batch), *self._distinct(batch))
                batch, chars = [], 0
        if batch:
            yield (len(batch), *self._distinct(batch))

    def _distinct(self, batch: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        hashes, counts = self._hashes(batch)
        if len(batch) == 1 and len(hashes) - self._n >= _WORDS:
            return self._distinct_of_one(hashes)
        values, whose = ngrams(hashes, counts, self._n)
        kept = values <= self._sample
        values, whose = values[kept], whose[kept]
        order = np.lexsort((values, whose))
        values, whose = values[order], whose[order]
        new = np.append(True, (values[1:] != values[:-1]) | (whose[1:] != whose[:-1])) if len(values) else np.zeros(0, bool)
        return values[new], whose[new]

    def _distinct_of_one(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The same of a text of many words, some of them at a time."""
        found = []
        for a in range(0, len(hashes) - self._n + 1, _WORDS):
            part = hashes[a : a + _WORDS + self._n - 1]
            values, _ = ngrams(part, np.array([len(part)], np.int64), self._n)
            found.append(np.unique(values[values <= self._sample]))
        values = np.unique(np.concatenate(found))
        return values, np.zeros(len(values), np.int64)

    def find(self, texts: Iterable[str], share: float) -> list[Contaminated]:
        """Return the texts that have at least `share` of their n-grams in common with held-out texts, or at least that share of the n-grams of
        one held-out text; in order.
        """
        seen = np.zeros(len(self._grams), np.int64)
        texts_of, grams_of, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        first = 0
        for count, values, whose in self._batches(texts):
            if len(self._grams):
                at = np.minimum(np.searchsorted(self._grams, values), len(self._grams) - 1)
                hit = np.flatnonzero(self._grams[at] == values)
                found = at[hit]
                rare = seen[found] <= COMMON
                np.add.at(seen, found, 1)
                texts_of.append(whose[hit][rare] + first)
                grams_of.append(found[rare])
            sizes.append(np.bincount(whose, minlength=count))
            first += count
        text, gram, size = np.concatenate(texts_of), np.concatenate(grams_of), np.concatenate(sizes)
        counted = seen[gram] <= COMMON
        return list(self._judged(text[counted], gram[counted], size, share))

    def _judged(self, text: NDArray[np.int64], gram: NDArray[np.int64], size: NDArray[np.int64], share: float) -> Iterator[Contaminated]:
        own = np.bincount(text, minlength=len(size)) / np.maximum(size, 1)
        edges = np.searchsorted(text, np.arange(len(size) + 1))
        for number in np.unique(text).tolist():
            mine = gram[edges[number] : edges[number + 1]]
            owners = np.concatenate(
                [self._owners[a : min(b, a + _OWNERS)] for a, b in zip(self._starts[mine], self._starts[mine + 1], strict=True)]
            )
            held, counts = np.unique(owners, return_counts=True)
            contains = counts / self._sizes[held]
            best = int(np.argmax(contains))
            if own[number] >= share or contains[best] >= share:
                yield Contaminated(number, int(held[best]), float(own[number]), float(contains[best]))
