"""The table of words gives the ids of the `tokenizers` library, with tiktoken and without it, on any text."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import TokenizerConfig
from tauon.data.tokenizer import SubwordTokenizer
from tauon.data.word_cache import WordCache

MIRROR = Path(os.environ.get("TAUON_DATA", "/nowhere"))
CODE = "".join(Path(file).read_text() for file in sorted(f for f in (os.__file__, random.__file__, pickle.__file__, gzip.__file__) if f))


def trained(pattern: str) -> SubwordTokenizer:
    made = parse(TokenizerConfig, {"kind": "bpe", "vocab": 800, "pattern": pattern}).build(
        lambda: iter([CODE[:100_000], "été naïve 你好 " * 50])
    )
    assert isinstance(made, SubwordTokenizer)
    return made


TOKENIZERS = {pattern: trained(pattern) for pattern in ("gpt2", "gpt4")}


@pytest.fixture(params=["gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest) -> SubwordTokenizer:
    return TOKENIZERS[request.param]


@pytest.fixture(params=["tiktoken", "without"])
def cache(request: pytest.FixtureRequest, tokenizer: SubwordTokenizer, monkeypatch: pytest.MonkeyPatch) -> WordCache:
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "tiktoken", None)
    else:
        pytest.importorskip("tiktoken")
    found = WordCache.of(tokenizer._tok)
    assert found is not None and (found._fast is None) == (request.param == "without")
    return found


def same(cache: WordCache, tokenizer: SubwordTokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, cache.encode_many(texts, tokenizer._encode_all), strict=True):
        expected = tokenizer._tok.encode(text, add_special_tokens=False).ids
        assert ids.dtype == np.uint32 and ids.tolist() == expected, text[:200]


PIECES = [" ", "  ", "\n", "\r\n", "\t", "\x01", "\x0b", "\x1c", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000", "'", "'s", "'LL", "\u017f", "a", "Z", "é", "ǅ", "你",
          "ﬁ", "1", "42", "²", "½", "٣", "ⅷ", "〇", ".", "—", "_", "\u0301", "\u200d", "😀", "<|bos|>", "\ufffe", "\u0378", "\U0001e5ff"]  # fmt: skip


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("backend", ["tiktoken", "without"])
def test_ids_are_those_of_the_library_on_any_text(pattern: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "without":
        monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer = TOKENIZERS[pattern]
    cache = WordCache.of(tokenizer._tok)
    assert cache is not None

    @given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=30).map("".join))
    def check(text: str) -> None:
        same(cache, tokenizer, [text, text + " " + text, text + "x" * 70])

    check()


def test_every_pair_of_marks_and_blanks(cache: WordCache, tokenizer: SubwordTokenizer) -> None:
    draw = random.Random(0)
    chars = [*PIECES, *map(chr, range(128))]
    texts = ["".join(draw.choices(chars, k=40)) for _ in range(2000)]
    texts += [f"a{x}{y}b {x}{y} 1{x}{y}2" for x in chars for y in (" ", "\n", "'s", "a", "1", ".", "é")]
    same(cache, tokenizer, texts)


def test_every_character_between_words(cache: WordCache, tokenizer: SubwordTokenizer) -> None:
    every = [chr(c) for c in [*range(0x3000), *range(0x3000, 0x110000, 257)] if not 0xD800 <= c < 0xE000]
    same(cache, tokenizer, ["".join(f"a{c}b {c} 1{c} " for c in every[i : i + 500]) for i in range(0, len(every), 500)])


def test_code_and_prose(cache: WordCache, tokenizer: SubwordTokenizer) -> None:
    same(
        cache,
        tokenizer,
        [CODE[i : i + 20_000] for i in range(0, 100_000, 20_000)]
        + [" ".join(CODE.split())[:50_000], "é" + CODE[:30_000] + "ü\n" + CODE[:9000]],
    )
    if (MIRROR / "wikitext-2").is_dir():
        wiki = gzip.decompress((MIRROR / "wikitext-2" / "valid.txt.gz").read_bytes()).decode()
        same(cache, tokenizer, [wiki[i : i + 50_000] for i in range(0, 300_000, 50_000)])


def test_published_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (MIRROR / "tokenizers" / "gpt2").is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    pytest.importorskip("tiktoken")
    made = parse(TokenizerConfig, {"kind": "file", "path": str(MIRROR / "tokenizers" / "gpt2")}).build(lambda: iter(()))
    assert isinstance(made, SubwordTokenizer)
    cache = WordCache.of(made._tok)
    assert cache is not None and cache._fast is not None
    draw = random.Random(0)
    same(cache, made, ["".join(draw.choices([*PIECES, "the", " of", "x"], k=60)) for _ in range(500)] + [CODE[:50_000]])


@pytest.mark.parametrize("cache", ["without"], indirect=True)
def test_a_full_table_starts_again(cache: WordCache, tokenizer: SubwordTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.data.word_cache._MOST", 5)
    same(cache, tokenizer, [" ".join(CODE.split()[:500])])
    assert 0 < len(cache._words) <= 5


def test_encode_many_takes_the_table_for_much_text() -> None:
    tokenizer = TOKENIZERS["gpt4"]
    texts = [" ".join(CODE.split())[:20_000], CODE[:20_000], ""]
    assert [i.tolist() for i in tokenizer.encode_many(texts)] == [tokenizer._tok.encode(t, add_special_tokens=False).ids for t in texts]
    assert "_words" in tokenizer.__dict__
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_many(texts)[1].tolist() == tokenizer.encode_many(texts)[1].tolist()


def test_what_may_cut_otherwise_is_not_cut() -> None:
    import tokenizers
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers

    plain = TOKENIZERS["gpt2"]._tok
    changes = {
        "normalizer": lambda t: setattr(t, "normalizer", normalizers.NFC()),
        "pattern": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(r"\w+ \w+|."), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])),
        "prefix": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "added": lambda t: t.add_tokens([AddedToken("a b", normalized=False)]),
        "model": lambda t: setattr(t, "model", models.WordLevel({"a": 0}, unk_token="a")),
        "none": lambda t: setattr(t, "pre_tokenizer", None),
    }  # fmt: skip
    for name, change in changes.items():
        other = tokenizers.Tokenizer.from_str(plain.to_str())
        change(other)
        assert WordCache.of(other) is None, name
    assert WordCache.of(tokenizers.Tokenizer.from_str(plain.to_str())) is not None


def test_a_vocabulary_that_tiktoken_would_merge_otherwise_is_left_to_the_library() -> None:
    pytest.importorskip("tiktoken")
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(letters)} | {"bc": 256, "ab": 257, "abc": 258}
    made = Library(models.BPE(vocab, [("b", "c"), ("a", "b"), ("ab", "c")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cache = WordCache.of(made)
    assert cache is not None and cache._fast is None  # `abc` is a token, which merging never makes
    assert cache.encode_many(["abc"], lambda texts: [])[0].tolist() == made.encode("abc").ids == [vocab["a"], 256]


def test_a_long_text_is_encoded_in_little_more_than_its_own_memory(cache: WordCache, tokenizer: SubwordTokenizer) -> None:
    text = "the words of a long text in one line " * 60_000
    tracemalloc.start()
    try:
        ids = cache.encode_many([text], tokenizer._encode_all)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert tokenizer.decode(ids[:200]) == text[: len(tokenizer.decode(ids[:200]))]
    assert peak < 3 * (len(text) + ids.nbytes), "split into words at once it takes many times the text"
