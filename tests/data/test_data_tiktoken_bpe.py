"""tiktoken gives the ids of the `tokenizers` library on any text: all patterns, classes of characters, marks, threads, and long runs of blanks."""

from __future__ import annotations

import os
import random
import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import TokenizerConfig
from tauon.data import tiktoken_bpe as module
from tauon.data.text_pieces import NOT_SETTLED
from tauon.data.tiktoken_bpe import TiktokenBpe, _stretches, _threads
from tauon.data.tokenizer import SubwordTokenizer
from tauon.data.word_cache import _LLAMA3, WordCache

pytest.importorskip("tiktoken")

SETTLED = [c for c in map(chr, range(0x110000)) if not NOT_SETTLED.match(c)]
PIECES = ["the", " of", "x", "Z", "é", "ﬁ", "你好", "Привет", "ǅ", "1", "42", "123456", "²", "٣", "ⅷ", " ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", " \n ", "\x01", "\x0b", "\x1c",
          "\x85", "\u00a0", "\u2003", "\u2028", "\u3000", "'s", "'LL", "'re", "'", "'\u017f", "\u0301", "\u200d", "😀", "ʻ", "₹", "\ufeff", "ไทย", "<|bos|>", "<|endoftext|>", "---", "(){}", "。",
          "—", "\ufffe", "\u0378", "\U0001e5ff"]  # fmt: skip


def trained(pattern: str) -> SubwordTokenizer:
    text = "".join(random.Random(0).choices([*PIECES, "return self.value", " def ", "    "], k=30_000))
    made = parse(TokenizerConfig, {"kind": "bpe", "vocab": 700, "pattern": "gpt4" if pattern == "llama3" else pattern}).build(
        lambda: iter([text])
    )
    assert isinstance(made, SubwordTokenizer)
    if pattern == "llama3":
        import tokenizers
        from tokenizers import pre_tokenizers

        split = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3), "isolated")
        made._tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


TOKENIZERS = {pattern: trained(pattern) for pattern in ("gpt2", "gpt4", "llama3")}


@pytest.fixture(params=["gpt2", "gpt4", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> SubwordTokenizer:
    return TOKENIZERS[request.param]


def fast(tokenizer: SubwordTokenizer) -> TiktokenBpe:
    cache = WordCache.of(tokenizer._tok)
    assert cache is not None and cache._fast is not None
    return cache._fast


def same(tokenizer: SubwordTokenizer, texts: list[str]) -> None:
    got = fast(tokenizer).encode_many(texts, tokenizer._encode_all)
    for text, ids in zip(texts, got, strict=True):
        assert ids.dtype == np.uint32 and ids.tolist() == tokenizer._tok.encode(text, add_special_tokens=False).ids, text[:200]


@pytest.mark.parametrize("near", [0, 4, 64])
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "llama3"])
def test_ids_are_those_of_the_library_on_any_texts(pattern: str, near: int) -> None:
    one = TOKENIZERS[pattern]
    encoder = fast(one)

    @given(st.lists(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=30).map("".join), max_size=6))
    @settings(deadline=None)
    def check(texts: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_NEAR", near)
            patch.setattr(module, "_AT_ONCE", 20)
            patch.setattr(module, "_threads", lambda: 3)
            got = encoder.encode_many(texts, one._encode_all)
        assert [ids.tolist() for ids in got] == [one._tok.encode(t, add_special_tokens=False).ids for t in texts]

    check()


def test_long_texts_of_all_pieces(tokenizer: SubwordTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    plain = [p for p in PIECES if not NOT_SETTLED.search(p)]
    texts = ["".join(draw.choices(kind, k=800)) for kind in (PIECES, plain, [p for p in plain if p.isascii()]) for _ in range(20)]
    texts += ["".join(draw.choices(SETTLED, k=500)), "", "\x01", " a\x01b ", "a ʻ b"]
    same(tokenizer, texts)
    short = module.pieces
    monkeypatch.setattr(module, "pieces", lambda text: short(text, 100))
    monkeypatch.setattr(module, "_MOST_BLANKS", 50)
    same(tokenizer, texts)


def test_settled_characters_have_one_class_in_every_version_of_unicode() -> None:
    """From version 3.2 to Python's own; and both libraries agree on each of them."""

    def kind(category: str) -> str:
        return category if category in ("Cn", "Cs") else {"L": "letter", "N": "number", "Z": "blank"}.get(category[0], "other")

    old = unicodedata.ucd_3_2_0.category
    assert len(SETTLED) > 30_000 and "ſ" not in SETTLED and "\x01" not in SETTLED
    assert [c for c in SETTLED if kind(old(c)) != kind(unicodedata.category(c)) or kind(old(c)) in ("Cn", "Cs")] == []
    texts = ["".join(f"a{c}b {c} 1{c}'{c} " for c in SETTLED[i : i + 3000]) for i in range(0, len(SETTLED), 3000)]
    assert all(len(list(_stretches(text))) == 1 for text in texts)
    for name in ("gpt2", "gpt4"):
        same(TOKENIZERS[name], texts)


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=40).map("".join), st.sampled_from([0, 5, 64]))
def test_stretches_are_the_text_and_what_tiktoken_gets_is_settled(text: str, near: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NEAR", near)
        found = list(_stretches(text))
    assert "".join(stretch for stretch, _ in found) == text
    assert all(stretch and not (ok and NOT_SETTLED.search(stretch)) for stretch, ok in found)


def test_rare_characters_leave_the_rest_of_a_text_to_tiktoken() -> None:
    text = "some words of a text, " * 200
    found = list(_stretches(f"{text}a ₹5 b {text}ʻOʻahu c {text}"))
    assert [ok for _, ok in found] == [True, False, True, False, True]
    assert sum(len(stretch) for stretch, ok in found if not ok) < 30


def test_a_million_blanks_are_left_to_the_library() -> None:
    """tiktoken's matcher ends with an error at a million; `tokenizers` has no such limit."""
    tokenizer, text = TOKENIZERS["gpt2"], "word" + " " * 1_100_000 + "end"
    assert list(_stretches(text)) == [(text, False)]
    assert list(_stretches("word" + " " * 100_000 + "end")) == [("word" + " " * 100_000 + "end", True)]
    assert tokenizer.decode(tokenizer.encode_many([text])[0]) == text


def test_lone_surrogates_are_refused_as_the_library_refuses_them(tokenizer: SubwordTokenizer) -> None:
    with pytest.raises(TypeError):
        tokenizer._tok.encode("a \ud800 b")
    with pytest.raises(TypeError):
        fast(tokenizer).encode_many(["plain", "word " * 50 + "\ud800 b"], tokenizer._encode_all)


def test_what_the_other_encoder_gets_is_not_encoded_by_tiktoken() -> None:
    asked: list[str] = []

    def others(stretches: list[str]) -> list[np.ndarray]:
        asked.extend(stretches)
        return [np.array([7], np.uint32)] * len(stretches)

    text = "many plain words " * 20
    (ids,) = fast(TOKENIZERS["gpt4"]).encode_many([f"{text}x \u0378y z {text}"], others)
    assert asked == [" \u0378y"]
    library = TOKENIZERS["gpt4"]._tok.encode
    before, after = (library(t, add_special_tokens=False).ids for t in (f"{text}x", f" z {text}"))
    assert ids.tolist() == [*before, 7, *after]


def test_threads_are_those_that_the_variables_of_the_library_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    assert _threads() == 3
    monkeypatch.delenv("RAYON_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert _threads() == cores
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert _threads() == 1


def test_only_the_last_two_alternatives_look_ahead(tokenizer: SubwordTokenizer) -> None:
    pattern = fast(tokenizer)._parts["pat_str"]
    assert re.fullmatch(r"\(\?:.*\)\|\\s\+\(\?!\\S\)\|\\s\+", pattern) and "++" not in pattern and "?+" not in pattern
    assert pattern.count("(?!") == 1
