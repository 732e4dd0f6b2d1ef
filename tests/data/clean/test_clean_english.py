"""Words and sentences in English equal those of spaCy, whose rules they are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clean_corpus import wikitext
from tauon.data.clean.english import english

spacy = pytest.importorskip("spacy", reason="spaCy is the reference (pip install 'tauon[dev]')")

PIECES = [
    "the", "of", "Hello", "NASA", "x", "I", "A", "über", "мир", "123", "km", "in", "e.g", "Inc", "o", "O", "p", "D", "3", "  ", "...", "..", "--",
    "http://", "www.", "a@b.com", ".com", "10km", "5%", "U.S.", "'s", "’s", "n't", "US$", "C++", "10.5", "1,000", "don't", "I'm", "can't",
    "Mr.", "etc.", ":-)", "8)", "a.m.", "(:", "xD", "cannot", "''", "\"", "10.1.2.3", "-", "/", ".", ",", "(", ")", "!", "?", "…", "°C.", "😀",
    "\n", "\t", "\xa0", "\x85", "\u2028", " ", " ", " ", " ", "中文", "ﬁ", "%", "+", "^", "*", "=", "_", "[", "]", "#", "§", "£5", "'",
]  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> object:
    made = spacy.blank("en")
    made.add_pipe("sentencizer")
    return made


def words_of(nlp: object, text: str) -> list[str]:
    return [t.text for t in nlp.tokenizer(text) if not t.text.isspace()]  # type: ignore[attr-defined]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES) | st.sampled_from(sorted(english()._special)), max_size=40).map("".join) | st.text(max_size=60))
def test_words_and_sentences_equal_those_of_spacy(reference: object, text: str) -> None:
    assert english().words(text, text.split()) == words_of(reference, text)
    line = text.strip()
    if line:
        assert sum(english().sentences(line)) == len([*reference(line).sents])  # type: ignore[operator]


def test_words_of_wikitext_equal_those_of_spacy(reference: object) -> None:
    for text in wikitext(150):
        assert english().words(text, text.split()) == words_of(reference, text)


def test_counts_equal_those_over_the_words() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(PIECES, k=30))
        words, counts = english().words(text, text.split()), english().counts(text, text.split())
        plain = [w for w in words if not english()._signs.issuperset(w)]
        assert (counts.words, counts.plain, counts.characters) == (len(words), len(plain), sum(map(len, plain)))
        assert counts.alphabetic == sum(any(c.isalpha() for c in w) for w in words)


def test_no_sign_of_punctuation_is_a_letter() -> None:
    """Counting relies on it: a word of signs alone has no letter."""
    assert not [sign for sign in english()._signs if sign.isalpha()]


def test_the_table_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.data.clean.english._KEPT", 50)
    rules = type(english())()
    for n in range(40):
        text = " ".join(f"w{n}x{k}" for k in range(10))
        rules.words(text, text.split())
    assert len(rules._words) <= 60


def test_a_piece_without_blanks_takes_time_in_proportion() -> None:
    text = "(" + "a-b." * 200_000
    assert english().words(text, text.split()) == [text]
    assert len(english().words("." * 5000 + "x", ["." * 5000 + "x"])) >= 1
