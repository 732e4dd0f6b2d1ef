"""Filters of texts that are no published set of rules, each on what it is for and on what it must leave alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clean_corpus import prose
from tauon.config import parse
from tauon.data.clean import FilterConfig, Rejected, TextFilter, cleaning_function
from tauon.errors import RecipeError


def a_filter(kind: str, **values: Any) -> TextFilter:
    made = parse(FilterConfig, {"kind": kind, **values})
    assert isinstance(made, TextFilter)
    return made


def rule(found: str | Rejected) -> str:
    assert isinstance(found, Rejected), found
    return found.rule


def test_repair_undoes_wrong_decoding_as_ftfy_does() -> None:
    ftfy = pytest.importorskip("ftfy")
    repair = a_filter("repair")
    damaged = "The cafÃ© wasnâ€™t open &amp; nobody knew.\r\nNext\x00 line \x1b[31mred"
    assert repair.apply(damaged) == ftfy.fix_text(damaged, uncurl_quotes=False) == "The café wasn’t open & nobody knew.\nNext line red"
    assert repair.apply("e\u0301") == "é"
    assert a_filter("repair", form="NFKC").apply("ﬁ ２") == "fi 2"
    assert a_filter("repair", quotes=True).apply("“so”") == '"so"'


def test_repair_leaves_ascii_as_ftfy_does() -> None:
    """The short way round must give what ftfy gives."""
    ftfy = pytest.importorskip("ftfy")
    draw, repair = random.Random(0), a_filter("repair")
    characters = [chr(c) for c in range(128)] + ["&amp;", "&lt;", "<", "\r\n", "\x1b[0m"]
    for _ in range(2000):
        text = "".join(draw.choices(characters[32:127] if draw.random() < 0.5 else characters, k=12))
        assert repair.apply(text) == ftfy.fix_text(text, uncurl_quotes=False)


def test_language_and_script_tell_texts_apart() -> None:
    pytest.importorskip("py3langid")
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß, warum er das immer wieder tut. " * 3
    english = "The quick brown fox jumps over the lazy dog, and nobody knows why it does that again and again every day. " * 3
    russian = "Быстрая коричневая лиса прыгает через ленивую собаку, и никто не знает, почему она это делает. " * 3
    language = a_filter("language")
    assert language.apply(english) == english
    assert rule(language.apply(german)) == "language_de"
    assert a_filter("language", languages=["de", "ru"]).apply(russian) == russian
    script = a_filter("script")
    assert script.apply(german) == german
    found = script.apply(russian)
    assert rule(found) == "script_cyrillic" and "0% of the letters are latin" in str(found)
    assert rule(script.apply("123 ...")) == "no_letters"
    assert a_filter("script", scripts=["cyrillic", "latin"]).apply(russian + english)


def test_length_in_each_unit() -> None:
    assert rule(a_filter("length").apply("  \n ")) == "too_short"
    assert rule(a_filter("length", min=4, unit="words").apply("a b c")) == "too_short"
    assert rule(a_filter("length", max=2, unit="lines").apply("a\nb\nc")) == "too_long"
    assert a_filter("length", min=3, max=3).apply(" abc ") == " abc "
    with pytest.raises(RecipeError, match="max: is 2, less than min: 3"):
        a_filter("length", min=3, max=2)


def test_html_becomes_its_main_text_and_other_texts_stay() -> None:
    pytest.importorskip("trafilatura")
    body = prose(random.Random(1))
    page = f"<html><head><title>x</title></head><body><nav><a href='/'>Home</a></nav><article>{''.join(f'<p>{p}</p>' for p in body.splitlines())}</article></body></html>"
    assert a_filter("html").apply(page) == body
    assert a_filter("html").apply(body + " 1 < 2") == body + " 1 < 2"
    assert rule(a_filter("html").apply("<html><body></body></html>")) == "no_main_text"


def test_words_of_a_list_are_found_as_whole_words(tmp_path: Any) -> None:
    words = a_filter("words", words=["damn", "two words"])
    assert words.apply("damnation and goddamn") == "damnation and goddamn"
    found = words.apply("Damn. TWO WORDS")
    assert rule(found) == "listed_words" and "2 listed words (damn, two words), more than 0" in str(found)
    assert a_filter("words", words=["damn"], most=1).apply("damn it") == "damn it"
    assert rule(a_filter("words", words=["性"], within_words=True).apply("中性的")) == "listed_words"
    (tmp_path / "list.txt").write_text("heck\n\n")
    listed = a_filter("words", path=str(tmp_path / "list.txt"))
    assert rule(listed.apply("oh heck")) == "listed_words"
    before = listed.fingerprint()
    (tmp_path / "list.txt").write_text("hell\n")
    assert listed.fingerprint() != before, "another list gives other data"
    with pytest.raises(RecipeError, match="words: is empty"):
        a_filter("words")


def test_words_equal_the_bad_words_filter_of_datatrove(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters

    (tmp_path / "en").write_text("river\nlong summer\n")
    monkeypatch.setattr(c4_filters, "cached_asset_path_or_download", lambda *_a, **_k: str(tmp_path / "en"))
    peer, mine = c4_filters.C4BadWordsFilter(), a_filter("words", words=["river", "long summer"])
    draw = random.Random(0)
    for text in [
        prose(draw, 1)[: draw.randint(10, 200)].replace("river", draw.choice(["river", "rivers", "River-", "xriver"])) for _ in range(200)
    ]:
        kept = peer.filter(Document(text=text, id="0"))
        assert (kept is True) == (mine.apply(text) == text), text


@pytest.mark.parametrize(
    ("keep", "text", "kept"),
    [
        ("words >= 3 and digits < 0.5", "a b c", True), ("words >= 3 and digits < 0.5", "1 2 3 4567", False),
        ("'draft' not in text", "a draft", False), ("length / lines > 3", "abcd\nabcd", True), ("not (uppercase > 0.5 or letters == 0)", "ABC", False),
        ("2 < words <= 4", "a b c", True), ("-length < 0", "a", True), ("length / 0 == 0", "a", True),
    ],
)  # fmt: skip
def test_an_expression_keeps_texts_for_which_it_is_true(keep: str, text: str, kept: bool) -> None:
    found = a_filter("expression", keep=keep).apply(text)
    assert (found == text) is kept
    assert kept or rule(found) == "expression"


@pytest.mark.parametrize(
    "keep", ["__import__('os')", "text.upper()", "words[0]", "(lambda: 1)()", "text * 9 > 1", "words >", "'a' < 1", "1 in text", "unknown > 1", "2 ** 9", "[1]", "f'{text}'", "text is 1"]
)  # fmt: skip
def test_an_expression_runs_no_code(keep: str) -> None:
    with pytest.raises(RecipeError, match="keep: .* Names: blanks, digits"):
        a_filter("expression", keep=keep)


def test_a_function_of_the_program_decides() -> None:
    @cleaning_function("test-no-drafts")
    def no_drafts(text: str) -> str | bool | Rejected:
        if text == "why":
            return Rejected("asked", "1 question, more than 0")
        return text.strip() if text.endswith(" ") else not text.startswith("DRAFT")

    mine = a_filter("function", name="test-no-drafts")
    assert (mine.apply("a"), mine.apply("a "), rule(mine.apply("DRAFT a")), rule(mine.apply("why"))) == (
        "a",
        "a",
        "test-no-drafts",
        "asked",
    )
    assert len(mine.fingerprint()[2][0]) == 64
    with pytest.raises(RecipeError, match="no function is registered as 'nothing'"):
        a_filter("function", name="nothing")


def test_a_missing_library_is_said_before_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.data.clean.base.find_spec", lambda _: None)
    for kind in ("repair", "language", "html", "pii", "default"):
        with pytest.raises(RecipeError, match=r"which is not installed: pip install 'tauon\[clean\]'"):
            parse(FilterConfig, {"kind": kind})
    assert parse(FilterConfig, {"kind": "gopher-quality"})
