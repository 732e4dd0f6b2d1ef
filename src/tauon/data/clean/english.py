"""English text -> words and sentences, by spaCy's rules for English (MIT licence, `spacy.blank("en")`), without spaCy.

The published filters count words, so a verdict depends on what a word is. datatrove, whose verdicts ours equal, asks spaCy. These are the
same rules (`english.json`: affixes, infixes, addresses, 1,347 special cases) with the same words as the result; the tests compare them. They
are fast because the words of a piece of text without blanks hardly depend on what is around it: each piece is looked up in a table that fills
as texts are read. Other languages have other rules: a text in them is cut by those of English.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any

__all__ = ["English", "WordCounts", "english"]

_KEPT = 300_000
"""Pieces in the table, at most: about 100 MB. Then it is emptied."""
_LONG = 64
"""A suffix is looked for in this many last characters: none is longer, a run of points excepted."""
_LIMIT = 20_000
"""A piece longer than this many characters is one word: rules with look-behind would take seconds."""
_UNIT, _DIGIT = 12, re.compile("[0-9]")
"""Characters of the longest unit, and more."""
_FIELD = 40
_MASK = (1 << _FIELD) - 1
_PLAIN = re.compile(r"([A-Za-z]*[a-z])([,.;:!?])\Z")

PUNCTUATION = frozenset(
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
    + "".join(map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160))))
)
"""Signs that make no word, as datatrove lists them (`utils/text.py`, Apache-2.0), those that end a sentence added below."""


class WordCounts:
    """Sums over the words of a text."""

    __slots__ = ("alphabetic", "characters", "plain", "words")

    def __init__(self, words: int, plain: int, characters: int, alphabetic: int) -> None:
        self.words = words
        """Words, signs included."""
        self.plain = plain
        """Words that have another character than punctuation."""
        self.characters = characters
        """Characters of these."""
        self.alphabetic = alphabetic
        """Words with a letter."""


class English:
    """The rules, and the table of the pieces seen so far. Use `english()`, which returns the one of this process."""

    def __init__(self) -> None:
        rules: dict[str, Any] = json.loads((files(__package__) / "english.json").read_text(encoding="utf-8"))
        self._prefix, self._suffix = re.compile(rules["prefix"]), re.compile(rules["suffix"])
        self._infix, self._address = re.compile(rules["infix"]), re.compile(rules["address"])
        self.sentence_ends = frozenset(rules["sentence_ends"])
        """Words after which a sentence ends (spaCy's `sentencizer`)."""
        self.line_ends = frozenset(rules["line_ends"])
        """Signs that end a sentence in any script: datatrove's TERMINAL_PUNCTUATION."""
        self._signs = PUNCTUATION | self.line_ends
        self._special: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in rules["special"].items()}
        self._sequences: dict[str, Any] = {}
        for text in self._special:
            if self._prefix.search(text) or self._infix.search(text) or self._suffix.search(text):
                self._remember(self._cut(text, {}))
        self._words = _Table(self._words_of)
        self._sums = _Table(self._sums_of)

    def words(self, text: str, pieces: Sequence[str]) -> list[str]:
        """Return the words of `text`; `pieces` is `text.split()`."""
        if len(self._words) > _KEPT:
            self._words.clear()
            self._sums.clear()
        if sum(map(self._sums.__getitem__, pieces)) >> 4 * _FIELD:
            return self._in_context(text)
        return list(chain.from_iterable(map(self._words.__getitem__, pieces)))

    def counts(self, text: str, pieces: Sequence[str]) -> WordCounts:
        """Return sums over `words(text)`, without making the list."""
        sums = sum(map(self._sums.__getitem__, pieces))
        if sums >> 4 * _FIELD:
            sums = _packed(self._in_context(text), self._signs)
        return WordCounts(*(sums >> k * _FIELD & _MASK for k in range(4)))

    def sentences(self, line: str) -> Iterator[int]:
        """Yield 1 for each sentence of a line without blanks at its ends: count those that you need. An empty line is one sentence."""
        yield 1
        ended = False
        for word in self._with_blanks(line):
            ends = word in self.sentence_ends
            if ended and not ends and not _is_punctuation(word):
                yield 1
                ended = False
            elif ends:
                ended = True

    def _with_blanks(self, line: str) -> Iterator[str]:
        """Yield the words; of blanks other than one space, one word, which spaCy's sentences see."""
        if sum(map(self._sums.__getitem__, line.split())) >> 4 * _FIELD:
            yield from self._in_context(line, blanks=True)
            return
        for match in _RUNS.finditer(line):
            piece = match.group()
            if not piece.isspace():
                yield from self._words[piece]
            elif piece != " ":
                yield piece

    def _words_of(self, piece: str) -> tuple[str, ...]:
        return self._replaced(self._cut(piece, self._special))

    def _sums_of(self, piece: str) -> int:
        """Four sums in one number, and above them whether the words of the piece can depend on the pieces beside it."""
        cut = self._cut(piece, self._special)
        words = self._replaced(cut)
        if len(piece) <= _LONG:
            self._words[piece] = words  # asked for next, as a rule
        return _packed(words, self._signs) | ((words != cut) << 4 * _FIELD)

    def _cut(self, piece: str, special: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Take signs off both ends, then cut at signs inside: `Tokenizer._split_affixes` and `_attach_tokens` of spaCy 3."""
        if piece in special:
            return special[piece]
        if (piece.isascii() and piece.isalpha()) or len(piece) > _LIMIT:
            return (piece,)
        plain = _PLAIN.match(piece)
        if plain:
            word, sign = plain.groups()
            return (*special.get(word, (word,)), sign)
        before, after, inside = [], [], piece
        size = -1
        while inside and len(inside) != size and inside not in special:
            size = len(inside)
            head = self._prefix_length(inside)
            if head and inside[head:] in special:
                before.append(inside[:head])
                inside = inside[head:]
                break
            tail = self._suffix_length(inside[head:])
            if tail and inside[:-tail] in special:
                after.append(inside[-tail:])
                inside = inside[:-tail]
                break
            if head:
                before.append(inside[:head])
            if tail:
                after.append(inside[-tail:])
            inside = inside[head : len(inside) - tail]
        return (*before, *self._inner(inside, special), *reversed(after))

    def _inner(self, inside: str, special: dict[str, tuple[str, ...]]) -> Sequence[str]:
        if not inside:
            return ()
        if inside in special:
            return special[inside]
        if (inside.isascii() and inside.isalnum()) or ("." in inside and self._address.match(inside)):
            return (inside,)
        words: list[str] = []
        start = 0
        for found in self._infix.finditer(inside):
            if found.start() == 0:
                continue
            if found.start() != start:
                words.append(inside[start : found.start()])
            words.append(found.group())
            start = found.end()
        if start < len(inside):
            words.append(inside[start:])
        return words

    def _prefix_length(self, text: str) -> int:
        if "a" <= text[0] <= "z" or "0" <= text[0] <= "9" or ("A" <= text[0] <= "Z" and "$" not in text[1:3]):
            return 0  # no prefix begins so, but for US$, C$ and A$
        found = self._prefix.search(text)
        return found.end() if found else 0

    def _suffix_length(self, text: str) -> int:
        last = text[-1:]
        if not text or "0" <= last <= "9":
            return 0
        if ("a" <= last <= "z" or "A" <= last <= "Z") and text[-2:-1] not in ("'", "’") and not _DIGIT.search(text[-_UNIT:]):
            return 0  # no suffix ends so, but for 's and units behind a digit
        end = text[-_LONG:]
        if len(end) < len(text) and not end.strip("."):
            end = text
        found = self._suffix.search(end)
        return len(found.group()) if found else 0

    def _remember(self, words: Sequence[str]) -> None:
        node = self._sequences
        for word in words:
            node = node.setdefault(word, {})
        node[""] = {}

    def _spans(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield (first, last + 1) of the words that are those of a special case, the longest first, none within another."""
        found = []
        for first, word in enumerate(words):
            node, at = self._sequences.get(word), first + 1
            while node is not None:
                if "" in node:
                    found.append((first - at, first, at))
                node, at = (node.get(words[at]) if at < len(words) else None), at + 1
        taken: set[int] = set()
        for _, first, last in sorted(found):
            if first not in taken and last - 1 not in taken:
                yield first, last
            taken.update(range(first, last))

    def _replaced(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Put special cases together that affixes have taken apart, within one piece."""
        replaced = list(words)
        for first, last in sorted(self._spans(words), reverse=True):
            special = self._special.get("".join(words[first:last]))
            if special is not None:
                replaced[first:last] = special
        return tuple(replaced)

    def _in_context(self, text: str, blanks: bool = False) -> list[str]:
        """The same over a whole text: a longer sequence that reaches over a blank is none, but keeps others from being put together."""
        words: list[str] = []
        for match in _RUNS.finditer(text):
            piece = match.group()
            if not piece.isspace():
                words += self._cut(piece, self._special)
            elif piece != " " or match.start() == 0:
                words.append(piece)
            if match.start() > 0 and piece[0] == " " and piece.isspace():
                words.append("")  # marks a space between two words: no sequence has it, but `_spans` must see over it
        return self._joined(words, blanks)

    def _joined(self, marked: Sequence[str], blanks: bool) -> list[str]:
        words = [word for word in marked if word]
        spaced: set[int] = set()
        number = 0
        for word in marked:
            if word:
                number += 1
            else:
                spaced.add(number)
        replaced: list[str] = list(words)
        for first, last in sorted(self._spans(words), reverse=True):
            special = self._special.get("".join(words[first:last]))
            if special is not None and not spaced.intersection(range(first + 1, last)):
                replaced[first:last] = special
        return replaced if blanks else [word for word in replaced if not word.isspace()]


_RUNS = re.compile(r"\s+|\S+")


class _Table(dict[str, Any]):
    """Computes what it lacks. Long pieces are not kept: they do not come again."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __missing__(self, piece: str) -> Any:
        made = self._make(piece)
        if len(piece) <= _LONG:
            self[piece] = made
        return made


def _packed(words: Sequence[str], signs: frozenset[str]) -> int:
    plain = [word for word in words if not signs.issuperset(word)]
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in plain)
    return len(words) | len(plain) << _FIELD | sum(map(len, plain)) << 2 * _FIELD | alphabetic << 3 * _FIELD


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(c)[0] == "P" for c in word)


@cache
def english() -> English:
    """Return the rules of this process: reading them takes about 50 ms."""
    return English()
