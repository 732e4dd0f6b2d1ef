"""Tokenizers: no text is lost, bytes are counted right, and published ones agree with other libraries."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import Tokenizer, TokenizerConfig
from tauon.data.tokenizer import ByteTokenizer, CharTokenizer, SubwordTokenizer, pieces
from tauon.errors import DataError, RecipeError

TEXT = "The quick brown fox jumps over the lazy dog.\n\tdef f(x):\n        return x + 12345  # ß€𝄞\n" * 20


def make(kind: str, text: str = TEXT, **settings: object) -> Tokenizer:
    return parse(TokenizerConfig, {"kind": kind, **settings}).build(lambda: iter([text]))


@pytest.fixture(scope="module", params=["bpe-gpt2", "bpe-gpt4", "bytes"])
def lossless(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return make("bytes")
    return make("bpe", vocab=400, pattern=request.param.removeprefix("bpe-"))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=120, deadline=None)
def test_any_text_survives_and_bytes_add_up(lossless: Tokenizer, text: str) -> None:
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert int(lossless.token_bytes[ids].sum()) == len(text.encode())
    assert not len(ids) or int(ids.max()) < lossless.vocab_size


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    tok = make("bpe", vocab=300)
    ids = tok.encode("a<|bos|>b")
    assert tok.bos not in ids
    assert tok.decode(ids) == "a<|bos|>b"
    assert tok.token_bytes[tok.bos] == 0


def test_chars_are_sorted_code_points_after_bos_and_unknown() -> None:
    tok = make("chars", "banana")
    assert isinstance(tok, CharTokenizer)
    assert (tok.vocab_size, tok.bos, tok.unknown) == (5, 0, 1)
    assert tok.encode("nab").tolist() == [4, 2, 3]
    assert tok.encode("nax€").tolist() == [4, 2, 1, 1]
    assert tok.decode([4, 2, 0, 3]) == "nab"
    assert make("chars", "ß€a").token_bytes.tolist() == [0, 0, 1, 2, 3]
    assert make("chars", TEXT).decode(make("chars", TEXT).encode(TEXT)) == TEXT


def test_bytes_are_utf8() -> None:
    assert ByteTokenizer().encode("a€").tolist() == [97, 0xE2, 0x82, 0xAC]
    assert ByteTokenizer().decode([0xE2, 0x82]) == "�"


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_saved_and_loaded_tokenizers_are_equal(tmp_path: Path, kind: str) -> None:
    tok = make(kind)
    tok.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert again == tok
    assert again.sha256 == tok.sha256
    assert np.array_equal(again.encode(TEXT), tok.encode(TEXT))
    assert np.array_equal(again.token_bytes, tok.token_bytes)
    assert os.listdir(tmp_path) == ["t.json"]


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert make("bpe", vocab=290).sha256 == make("bpe", vocab=290).sha256
    assert make("bpe", vocab=290).sha256 != make("bpe", vocab=291).sha256


def test_a_small_text_gives_a_smaller_vocabulary_than_asked() -> None:
    assert 257 <= make("bpe", "abab", vocab=4096).vocab_size < 300


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_long_texts_are_cut_where_no_token_would_cross(pattern: str) -> None:
    rng = random.Random(0)
    words = ["alpha", "beta", "Don't", "x1", "12345", "\n", "\n\n    ", "  ", "...", ")\n", "ß", "\t", "!="]
    text = " ".join(rng.choice(words) + rng.choice(["", "\n", " "]) for _ in range(120_000))
    tok = make("bpe", text[:50_000], vocab=600, pattern=pattern)
    assert isinstance(tok, SubwordTokenizer)
    cut = pieces(text)
    assert len(cut) > 3
    assert "".join(cut) == text
    whole = tok._tok.encode(text, add_special_tokens=False).ids
    assert tok.encode(text).tolist() == whole


def test_bpe_trains_on_a_sample_of_about_the_size_asked() -> None:
    long = "alpha beta " * 60_000 + "gamma delta " * 60_000
    tok = make("bpe", long, vocab=300, sample="100kB")
    assert len(tok.encode(" delta")) == 1  # the sample reaches the end of the text


def test_the_parallelism_variable_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    make("bpe", vocab=300).encode("abc")
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    make("bpe", vocab=300).encode("abc")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


# ---------------------------------------------------------------------------------------------- files


def hugging_face_file(path: Path) -> None:
    tok = make("bpe", vocab=300)
    assert isinstance(tok, SubwordTokenizer)
    path.write_text(tok.hugging_face_json().replace("<|bos|>", "<s>"))


def test_a_hugging_face_file_is_read_plain_and_packed(tmp_path: Path) -> None:
    hugging_face_file(tmp_path / "tokenizer.json")
    plain = make("file", path=str(tmp_path))
    (tmp_path / "p.json.gz").write_bytes(gzip.compress((tmp_path / "tokenizer.json").read_bytes()))
    assert make("file", path=str(tmp_path / "p.json.gz")) == plain
    ours = make("bpe", vocab=300)
    assert np.array_equal(plain.encode(TEXT), ours.encode(TEXT))
    assert plain.bos == ours.bos


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON at line 1"),
        (b"{}", "not a tokenizer.json"),
        (b"\xff\xfe", "not utf-8 at byte 0"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"tokenizer\.json.*{message}"):
        make("file", path=str(tmp_path / "tokenizer.json"))


def test_missing_files_and_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        make("file", path=str(tmp_path / "no.json"))
    with pytest.raises(DataError, match=r"no tokenizer\.json, no encoder\.json"):
        make("file", path=str(tmp_path))
    hugging_face_file(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"has no token '<x>'.*its special tokens: <s>"):
        make("file", path=str(tmp_path), bos="<x>")


def test_damaged_merges_are_named(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\na\n")
    with pytest.raises(DataError, match=r"vocab\.bpe: line 3 is 'a'"):
        make("file", path=str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na c\n")
    with pytest.raises(DataError, match=r"vocab\.bpe: does not fit"):
        make("file", path=str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    tok = make("file", path=str(tmp_path))
    assert tok.encode("abba").tolist() == [2, 1, 0]
    assert tok.token_bytes.tolist() == [1, 1, 2, 0]


def test_impossible_vocabularies_are_refused_by_the_recipe() -> None:
    with pytest.raises(RecipeError, match="vocab"):
        parse(TokenizerConfig, {"kind": "bpe", "vocab": 100})


def mirror() -> Path:
    root = Path(os.environ.get("TAUON_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (root / "tokenizers").is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    return root / "tokenizers"


def test_gpt2_encodes_as_published() -> None:
    """Ids from OpenAI's encoder, as in the README of tiktoken and in GPT-2's own examples."""
    tok = make("file", path=str(mirror() / "gpt2"))
    assert (tok.vocab_size, tok.bos) == (50257, 50256)
    assert tok.encode("hello world").tolist() == [31373, 995]
    assert tok.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert tok.decode(tok.encode(TEXT)) == TEXT
    assert int(tok.token_bytes[tok.encode(TEXT)].sum()) == len(TEXT.encode())
    assert 50256 not in tok.encode("<|endoftext|>")


def test_a_published_byte_level_file_counts_bytes_right() -> None:
    tok = make("file", path=str(mirror() / "gpt-neox-olmo"))
    assert tok.decode(tok.encode(TEXT)) == TEXT
    assert int(tok.token_bytes[tok.encode(TEXT)].sum()) == len(TEXT.encode())
