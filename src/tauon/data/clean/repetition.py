"""Repetition within a text: the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), with the verdicts of datatrove 0.10.

A rule over n-grams needs all n-grams of a text, for nine values of n. Two observations save nearly all of it and change no verdict. The most
frequent n-gram cannot cover more characters than its words do, so one count of the words excludes most texts. And an n-gram that occurs
twice begins with the same characters at both places: only places whose first characters occur twice are looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter, sub

from pydantic import Field

from tauon.config import Fraction, register
from tauon.data.clean.base import Rejected, Text, TextFilter

__all__ = ["GopherRepetitionConfig", "repeated"]

_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


@register("gopher-repetition")
class GopherRepetitionConfig(TextFilter):
    """Repeated lines, paragraphs and phrases: the repetition rules of Gopher. None switches a rule off."""

    lines: Fraction | None = 0.3
    """Largest share of lines that occurred before."""
    paragraphs: Fraction | None = 0.3
    """Largest share of paragraphs that occurred before."""
    line_characters: Fraction | None = 0.2
    """Largest share of the characters in lines that occurred before."""
    paragraph_characters: Fraction | None = 0.2
    """Largest share of the characters in paragraphs that occurred before."""
    top_ngrams: dict[int, Fraction] = Field(default={2: 0.2, 3: 0.18, 4: 0.16})
    """For n words: largest share of the characters in the most frequent sequence of n."""
    repeated_ngrams: dict[int, Fraction] = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1})
    """For n words: largest share of the characters in sequences of n that occurred before."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for name in ("top_ngrams", "repeated_ngrams"):
            if any(n < 1 for n in self.raw_value(name)):
                yield name, f"has {min(self.raw_value(name))} words, expected 1 or more"

    def apply(self, text: str) -> str | Rejected:
        if not text:
            return Rejected("empty", "has no text")
        blocks = (
            ("paragraphs", _PARAGRAPHS.split(text.strip()) if "\n\n" in text else (), self.paragraphs, self.paragraph_characters),
            ("lines", _LINES.split(text) if "\n" in text else (), self.lines, self.line_characters),
        )
        for what, parts, share, characters in blocks:
            number, length = repeated(parts)
            if number and share and number / len(parts) > share:
                return Rejected(f"repeated_{what}", f"{number / len(parts):.0%} of the {what} occurred before, more than {share:.0%}")
            if number and characters and length / len(text) > characters:
                return Rejected(
                    f"characters_in_repeated_{what}",
                    f"{length / len(text):.0%} of the characters are in {what} that occurred before, more than {characters:.0%}",
                )
        view = text if isinstance(text, Text) else Text(text)
        return self._top(view) or self._repeated(view) or text

    def _top(self, text: Text) -> Rejected | None:
        words = text.words
        if not words:
            return None
        bounds = _Bounds(words)
        for n, share in self.top_ngrams.items():
            if len(words) < n or bounds.of(n) / len(text) <= share:
                continue
            ngram, number = max(Counter(zip(*(words[k:] for k in range(n)), strict=False)).items(), key=itemgetter(1))
            covered = (sum(map(len, ngram)) + n - 1) * number / len(text)
            if covered > share:
                phrase = " ".join(ngram)[:80]
                return Rejected(f"top_{n}_gram", f"{phrase!r} makes up {covered:.0%} of the text, more than {share:.0%}")
        return None

    def _repeated(self, text: Text) -> Rejected | None:
        words = text.words
        joined, starts = "".join(words), list(accumulate(map(len, words), initial=0))
        places: Sequence[int] = range(len(words))
        for n, share in sorted(self.repeated_ngrams.items()):
            places = _places(joined, starts, places, n)
            if not places:
                return None
            covered = _covered(joined, starts, places, n) / len(text)
            if covered > share:
                return Rejected(
                    f"repeated_{n}_grams",
                    f"{covered:.0%} of the text is in sequences of {n} words that occurred before, more than {share:.0%}",
                )
        return None


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return (number, characters) of the parts that occurred before.

    >>> repeated(["ab", "c", "ab", "ab"])
    (2, 4)
    """
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


class _Bounds:
    """Characters that the most frequent n-gram of words can cover at most."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        counts = Counter(words)
        self._one = max(map(int.__mul__, map(len, counts), counts.values()))
        self._often = max(counts.values())
        self._two: tuple[int, int] | None = None

    def of(self, n: int) -> int:
        """An n-gram that occurs k times has words that occur k times or more, so `k * len(word)` is at most the largest such product."""
        if n <= 2:
            return n * self._one + (n - 1) * self._often
        if self._two is None:  # the same with pairs of words, which occur far less often
            pairs = Counter(zip(self._words, self._words[1:], strict=False))
            most = max(pairs.values(), default=0)
            self._two = max((k * (len(a) + len(b) + 1) for (a, b), k in pairs.items()), default=0), most
        covered, most = self._two
        return -(-n // 2) * (covered + most)


def _places(joined: str, starts: list[int], before: Sequence[int], n: int) -> list[int]:
    """Return the places among `before` whose n words can occur twice: as many first characters as every n words have are the same elsewhere.

    n-grams are compared joined without blanks, as datatrove does. What can occur twice for n words can for fewer.
    """
    last = len(starts) - 1 - n
    if last < 0:
        return []
    if isinstance(before, range):
        length = min(map(sub, starts[n:], starts))
        heads = [joined[a : a + length] for a in starts[: last + 1]]
        counts = Counter(heads)
        return [i for i, head in enumerate(heads) if counts[head] > 1] if len(counts) < len(heads) else []
    inside = [i for i in before if i <= last]
    if not inside:
        return []
    length = min(starts[i + n] - starts[i] for i in inside)
    heads = [joined[starts[i] : starts[i] + length] for i in inside]
    counts = Counter(heads)
    return [i for i, head in zip(inside, heads, strict=True) if counts[head] > 1] if len(counts) < len(heads) else []


def _covered(joined: str, starts: list[int], places: Sequence[int], n: int) -> int:
    """Return the characters of n-grams that occurred before; one that did is passed over as a whole."""
    seen: set[str] = set()
    covered = next_place = 0
    for i in places:
        if i < next_place:
            continue
        ngram = joined[starts[i] : starts[i + n]]
        if ngram in seen:
            covered += len(ngram)
            next_place = i + n
        else:
            seen.add(ngram)
    return covered
