"""Verdicts, rules and changed texts of the published filters equal those of datatrove."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clean_corpus import faulty, prose, wikitext
from tauon.config import parse
from tauon.data.clean import FilterConfig, Rejected, Text
from tauon.data.clean.repetition import GopherRepetitionConfig

pytest.importorskip("datatrove", reason="datatrove is the reference (pip install 'tauon[dev]')")
pytest.importorskip("spacy", reason="datatrove needs it for words")

RULES = {
    "gopher_short_doc": "too_few_words", "gopher_long_doc": "too_many_words", "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words", "gopher_too_many_hashes": "hash_signs", "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_points", "gopher_too_many_end_ellipsis": "lines_with_ellipsis",
    "gopher_below_alpha_threshold": "few_letters", "gopher_enough_stop_words": "few_stop_words", "dup_para_frac": "repeated_paragraphs",
    "dup_para_char_frac": "characters_in_repeated_paragraphs", "dup_line_frac": "repeated_lines",
    "dup_line_char_frac": "characters_in_repeated_lines", "line_punct_ratio": "few_punctuated_lines", "short_line_ratio": "short_lines",
    "char_dup_ratio": "repeated_lines", "list_ratio": "list",
} | {f"duplicated_{n}_n_grams": f"repeated_{n}_grams" for n in range(5, 11)}  # fmt: skip
CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"kind": "gopher-repetition"}, "GopherRepetitionFilter", {}),
    ({"kind": "gopher-quality"}, "GopherQualityFilter", {}),
    ({"kind": "gopher-quality", "min_words": 5, "max_words": 60, "stop_words": ["cannot", "river"], "min_stop_words": 1}, "GopherQualityFilter",
     {"min_doc_words": 5, "max_doc_words": 60, "stop_words": ["cannot", "river"], "min_stop_words": 1}),
    ({"kind": "c4"}, "C4QualityFilter", {}),
    ({"kind": "c4", "terminal_punctuation": False}, "C4QualityFilter", {"filter_no_terminal_punct": False}),
    ({"kind": "c4", "min_words_per_line": 0, "citations": False, "min_sentences": 2, "terminal_punctuation": False}, "C4QualityFilter",
     {"min_words_per_line": -1, "remove_citations": False, "min_num_sentences": 2, "filter_no_terminal_punct": False}),
    ({"kind": "fineweb-quality"}, "FineWebQualityFilter", {}),
    ({"kind": "fineweb-quality", "max_line_breaks": 0.02, "max_repeated": 0.5}, "FineWebQualityFilter",
     {"new_line_ratio": 0.02, "char_duplicates_ratio": 0.5}),
]  # fmt: skip


def texts() -> list[str]:
    draw = random.Random(3)
    return ["", " ", "\n\n", "word", "-", *wikitext(60), *(faulty(draw) for _ in range(240)), *(prose(draw) for _ in range(20))]


@pytest.mark.parametrize(("ours", "name", "theirs"), CASES, ids=[f"{c[0]['kind']}-{i}" for i, c in enumerate(CASES)])
def test_verdicts_equal_those_of_datatrove(ours: dict[str, Any], name: str, theirs: dict[str, Any]) -> None:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    peer, mine = getattr(filters, name)(**theirs), parse(FilterConfig, ours)
    seen: set[str] = set()
    for text in texts():
        document = Document(text=text, id="0")
        verdict = peer.filter(document)
        expected = document.text if verdict is True else RULES.get(verdict[1], verdict[1])
        found = mine.apply(Text(text))  # type: ignore[attr-defined]
        assert (found.rule if isinstance(found, Rejected) else found) == expected, text[:300]
        assert (
            not isinstance(found, Rejected)
            or any(c.isdigit() for c in found.reason)
            or found.rule in ("empty", "lorem_ipsum", "curly_bracket")
        )
        seen.add("kept" if verdict is True else verdict[1])
    assert len(seen) >= 3, f"the texts reach too little: {seen}"


def test_repetition_of_long_phrases_in_any_order_of_the_rules() -> None:
    """Each n alone: rules that come later must not depend on what those before left."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter

    off: Any = {"dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None, "dup_para_char_frac": None}
    some = texts()[65:110]
    for n in range(5, 11):
        peer = GopherRepetitionFilter(**off, top_n_grams=(), dup_n_grams=((n, 0.05),))
        mine = GopherRepetitionConfig(
            lines=None, paragraphs=None, line_characters=None, paragraph_characters=None, top_ngrams={}, repeated_ngrams={n: 0.05}
        )
        for text in filter(None, some):
            assert isinstance(mine.apply(text), Rejected) == (peer.filter(Document(text=text, id="0")) is not True)
    for n in range(1, 8):
        peer = GopherRepetitionFilter(**off, top_n_grams=((n, 0.04),), dup_n_grams=())
        mine = GopherRepetitionConfig(
            lines=None, paragraphs=None, line_characters=None, paragraph_characters=None, top_ngrams={n: 0.04}, repeated_ngrams={}
        )
        for text in filter(None, some):
            assert isinstance(mine.apply(text), Rejected) == (peer.filter(Document(text=text, id="0")) is not True)
