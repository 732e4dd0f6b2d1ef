"""Published rules of quality for web texts in English: those of Gopher, C4 and FineWeb.

Sources: Rae et al. 2021, arXiv:2112.11446, table A1 and appendix A.1.1 (Gopher); Raffel et al. 2020, JMLR 21(140), section 2.2 (C4); Penedo et
al. 2024, arXiv:2406.17557, section 3.6 (FineWeb). The papers leave details open; here they are those of datatrove 0.10, which the tests
compare with on every text. Rules on repetition are in `repetition.py`. A document is looked at as a whole: nothing here reads a URL.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice

from pydantic import Field, NonNegativeInt

from tauon.config import Count, Fraction, register
from tauon.data.clean.base import Rejected, Text, TextFilter
from tauon.data.clean.english import english
from tauon.data.clean.repetition import repeated

__all__ = ["C4Config", "FineWebQualityConfig", "GopherQualityConfig"]


@lru_cache(8)
def _stop_words(words: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Return them, and those that are one word wherever they stand between blanks."""
    return frozenset(words), frozenset(word for word in words if english().words(word, [word]) == [word])


_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@register("gopher-quality")
class GopherQualityConfig(TextFilter):
    """Number and length of words, signs, lists, stop words: the quality rules of Gopher. English only."""

    min_words: NonNegativeInt = 50
    """Fewest words, signs not counted. 0: any."""
    max_words: Count | None = Field(default=100_000, ge=1)
    """Most words."""
    min_word_length: float = Field(default=3, ge=0)
    """Least mean length of a word, in characters."""
    max_word_length: float = Field(default=10, gt=0)
    """Greatest mean length of a word, in characters."""
    max_symbols: Fraction = Field(default=0.1, ge=0)
    """Most `#`, and most ellipses, per word."""
    max_bullets: Fraction = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet or a hyphen."""
    max_ellipses: Fraction = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic: Fraction = Field(default=0.8, ge=0, le=1)
    """Smallest share of words with a letter."""
    min_stop_words: NonNegativeInt = 2
    """Fewest different words of `stop_words` that a text must have."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that texts of this language have."""

    def apply(self, text: str) -> str | Rejected:
        view = text if isinstance(text, Text) else Text(text)
        return self._words(view) or self._signs(view) or self._language(view) or text

    def _words(self, text: Text) -> Rejected | None:
        counts = text.counts
        plain = counts.plain
        if plain < self.min_words or not plain:
            return Rejected("too_few_words", f"{plain:,} words, fewer than {max(self.min_words, 1):,}")
        if self.max_words is not None and plain > self.max_words:
            return Rejected("too_many_words", f"{plain:,} words, more than {self.max_words:,}")
        mean = counts.characters / plain
        if mean < self.min_word_length:
            return Rejected("short_words", f"words have {mean:.2f} characters on average, fewer than {self.min_word_length:g}")
        if mean > self.max_word_length:
            return Rejected("long_words", f"words have {mean:.2f} characters on average, more than {self.max_word_length:g}")
        return None

    def _signs(self, text: Text) -> Rejected | None:
        words, most = text.counts.words, self.max_symbols
        hashes, ellipses = text.count("#"), text.count("...") + text.count("…")
        if hashes / words > most:
            return Rejected("hash_signs", f"{hashes / words:.3f} # per word, more than {most:g}")
        if ellipses / words > most:
            return Rejected("ellipses", f"{ellipses / words:.3f} ellipses per word, more than {most:g}")
        lines = text.lines
        if text.count("•") + text.count("-") >= self.max_bullets * len(lines) - 0.5:
            share = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            if share > self.max_bullets:
                return Rejected("bullet_points", f"{share:.0%} of the lines begin with a bullet point, more than {self.max_bullets:.0%}")
        if ellipses:
            share = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
            if share > self.max_ellipses:
                return Rejected("lines_with_ellipsis", f"{share:.0%} of the lines end with an ellipsis, more than {self.max_ellipses:.0%}")
        return None

    def _language(self, text: Text) -> Rejected | None:
        counts = text.counts
        share = counts.alphabetic / counts.words
        if share < self.min_alphabetic:
            return Rejected("few_letters", f"{share:.0%} of the words have a letter, fewer than {self.min_alphabetic:.0%}")
        wanted, plain = _stop_words(self.stop_words)
        if len(plain.intersection(text.pieces)) < self.min_stop_words:
            found = len(wanted.intersection(text.words))
            if found < self.min_stop_words:
                return Rejected("few_stop_words", f"{found} of the words {', '.join(self.stop_words)}, fewer than {self.min_stop_words}")
        return None


@register("c4")
class C4Config(TextFilter):
    """Remove lines that are not prose, then texts of too few sentences, with a curly bracket or "lorem ipsum": the rules of C4.

    `terminal_punctuation: false` is FineWeb's choice: that rule alone removes 30% of the tokens of the web. C4's list of bad words is `words`.
    """

    terminal_punctuation: bool = True
    """Remove lines that do not end with one of . ? ! " ' (or end with an ellipsis)."""
    citations: bool = True
    """Remove [1], [edit] and [citation needed]."""
    min_sentences: NonNegativeInt = 5
    """Fewest sentences in the lines that are left. 0: any."""
    min_words_per_line: NonNegativeInt = 3
    """Remove lines of fewer words. 0: keep them."""
    max_word_length: Count | None = Field(default=1000, ge=1)
    """Remove lines with a word of more characters."""
    lorem_ipsum: bool = True
    """Reject texts with "lorem ipsum"."""
    javascript: bool = True
    """Remove lines that mention javascript."""
    curly_bracket: bool = True
    """Reject texts with {."""
    policy: bool = True
    """Remove lines on cookies, privacy policies and terms of use."""

    def apply(self, text: str) -> str | Rejected:
        view = text if isinstance(text, Text) else Text(text)
        whole = (_CITATION.sub("", text) if "[" in text else text).lower()
        looks = (
            self.lorem_ipsum and "lorem ipsum" in whole,
            self.javascript and "javascript" in whole,
            self.curly_bracket and "{" in text,
            self.policy and any(phrase in whole for phrase in _POLICY),
        )
        kept: list[str] = []
        for line in view.lines:
            found = self._line(line.strip(), any(looks))
            if isinstance(found, Rejected):
                return found
            if found is not None:
                kept.append(found)
        sentences = self._sentences(kept)
        if sentences < self.min_sentences:
            return Rejected("too_few_sentences", f"{sentences} sentences in {len(kept):,} lines of prose, fewer than {self.min_sentences}")
        changed = "\n".join(kept).strip()
        return text if changed == text else changed

    def _line(self, line: str, look: bool) -> str | Rejected | None:
        """Return the line, or None: it is left out, or why the text is rejected."""
        words = (
            line.split(None, self.min_words_per_line) if self.max_word_length is None or len(line) <= self.max_word_length else line.split()
        )
        if (
            self.max_word_length is not None
            and len(line) > self.max_word_length
            and any(len(word) > self.max_word_length for word in words)
        ):
            return None
        if self.citations and "[" in line:
            line = _CITATION.sub("", line)
        if self.terminal_punctuation and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
            return None
        if len(words) < self.min_words_per_line:
            return None
        return self._looked_at(line) if look else line

    def _looked_at(self, line: str) -> str | Rejected | None:
        lower = line.lower()
        if self.lorem_ipsum and "lorem ipsum" in lower:
            return Rejected("lorem_ipsum", 'has "lorem ipsum"')
        if self.javascript and "javascript" in lower:
            return None
        if self.curly_bracket and "{" in line:
            return Rejected("curly_bracket", "has a curly bracket in a line of prose")
        return None if self.policy and any(phrase in lower for phrase in _POLICY) else line

    def _sentences(self, lines: list[str]) -> int:
        """Count sentences, but no more than decide."""
        rules, found = english(), 0
        for line in lines:
            found += sum(islice(rules.sentences(line), max(0, self.min_sentences - found)))
            if found >= self.min_sentences:
                break
        return found


@register("fineweb-quality")
class FineWebQualityConfig(TextFilter):
    """Lines without punctuation, short lines, repeated lines, lists: the rules that FineWeb adds to C4's."""

    min_punctuated: Fraction = Field(default=0.12, ge=0, le=1)
    """Smallest share of lines that end with a mark which ends a sentence, in any script."""
    max_short_lines: Fraction = Field(default=0.67, ge=0, le=1)
    """Largest share of short lines."""
    short_line: NonNegativeInt = 30
    """Characters of a line that is short."""
    max_repeated: Fraction = Field(default=0.01, ge=0, le=1)
    """Largest share of characters in lines that occurred before."""
    max_line_breaks: Fraction = Field(default=0.3, ge=0)
    """Most line breaks per word."""

    def apply(self, text: str) -> str | Rejected:
        view = text if isinstance(text, Text) else Text(text)
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return Rejected("empty", "has no text")
        ends = english().line_ends
        share = sum(line[-1] in ends for line in lines) / len(lines)
        if share < self.min_punctuated:
            return Rejected("few_punctuated_lines", f"{share:.0%} of the lines end a sentence, fewer than {self.min_punctuated:.0%}")
        share = sum(len(line) <= self.short_line for line in lines) / len(lines)
        if share > self.max_short_lines:
            return Rejected(
                "short_lines", f"{share:.0%} of the lines have {self.short_line} characters or fewer, more than {self.max_short_lines:.0%}"
            )
        breaks = text.count("\n")
        share = repeated(lines)[1] / (len(text) - breaks)
        if share > self.max_repeated:
            return Rejected("repeated_lines", f"{share:.1%} of the characters are in repeated lines, more than {self.max_repeated:.1%}")
        # every piece has a word at least: most texts are decided without their words
        if breaks / len(view.pieces) > self.max_line_breaks and breaks / view.counts.words > self.max_line_breaks:
            found = breaks / view.counts.words
            return Rejected("list", f"{found:.2f} line breaks per word, more than {self.max_line_breaks:g}")
        return text
