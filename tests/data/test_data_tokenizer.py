"""Tokenizers: no text is lost, bytes are counted right, and published ones agree with other libraries."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import Tokenizer, TokenizerConfig
from tauon.data.text_pieces import pieces
from tauon.data.tokenizer import ByteTokenizer, CharTokenizer, SubwordTokenizer
from tauon.data.tokenizer_config import _sample
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


SCRIPTS = {
    "cyrillic": "абвгдежзиклмнопрст", "greek": "αβγδεζηθικλμνξοπρστυ", "chinese": "".join(map(chr, range(0x4E00, 0x4E40))), "arabic": "ابتثجحخدذرز",
    "emoji": "😀😁😂🤣😃😄😅😆", "digits": "0123456789", "marks": "!?.,:;=+-*/", "ascii": "abcdefgh",
}  # fmt: skip


@pytest.mark.parametrize("blanks", [True, False])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_sample_is_as_many_bytes_as_asked_in_every_script(script: str, blanks: bool) -> None:
    rng = random.Random(1)
    text = "".join(rng.choices([*SCRIPTS[script], *(" \n" if blanks else "")], k=200_000))
    for size in (30_000, 200_000):
        taken = [len(p.encode()) for p in _sample(lambda: iter([text]), size)]
        assert min(size, len(text.encode())) / 2 - 3 * 65_536 / 10 <= sum(taken) <= size + 3 * 4096 * 2, (size, sum(taken))
        assert max(taken) <= 4 * 2 * 4096


def test_a_sample_of_all_is_all() -> None:
    text = "字" * 300_000 + " end"
    assert "".join(_sample(lambda: iter([text, "more"]), 2_000_000)) == text + "more"


@given(
    text=st.text(st.sampled_from([*"ab\n\t .,'s1２²", *"яΩ字かé́։।", " ", "。", "…", "—", "_", "٣"]), min_size=30, max_size=400),
    pattern=st.sampled_from(["gpt2", "gpt4"]),
)
@settings(max_examples=60, deadline=None)
def test_no_token_crosses_a_cut_in_any_script(mixed: dict[str, SubwordTokenizer], text: str, pattern: str) -> None:
    tok = mixed[pattern]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tauon.data.text_pieces.FAR", 8)
        cut = pieces(text, 8)
    assert "".join(cut) == text
    ids = [i for p in cut for i in tok._tok.encode(p, add_special_tokens=False).ids]
    assert ids == tok._tok.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def mixed() -> dict[str, SubwordTokenizer]:
    """Tokenizers that have joined letters of several scripts, marks and blanks."""
    rng = random.Random(2)
    text = "".join(rng.choices([*"ab\n\t .,'s1２²", *"яΩ字かé́։।", " ", "。", "…", "—", "_", "٣"], k=30_000))
    made = {p: make("bpe", text, vocab=900, pattern=p) for p in ("gpt2", "gpt4")}
    return {p: t for p, t in made.items() if isinstance(t, SubwordTokenizer)}


def test_text_without_blanks_is_joined_in_time_that_grows_with_its_length() -> None:
    """Counted, not timed: what the trainer is given is cut into short words, and none of it is lost."""
    text = "".join(random.Random(3).choices("".join(map(chr, range(0x4E00, 0x4E60))), k=20_000))
    tok = make("bpe", text, vocab=700)
    assert isinstance(tok, SubwordTokenizer)
    assert tok.vocab_size == 700
    assert "FixedLength" not in tok.hugging_face_json()  # encoding cuts nothing
    assert tok.decode(tok.encode(text)) == text
    assert tok.encode(text).tolist() == tok._tok.encode(text, add_special_tokens=False).ids


def test_words_of_usual_length_make_the_tokenizer_that_they_made_without_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = make("bpe", vocab=400)
    monkeypatch.setattr("tauon.data.tokenizer_config._LONGEST_WORD", 1 << 20)
    assert make("bpe", vocab=400).sha256 == bounded.sha256


STOPPED = """
import sys, time
from tauon.config import parse
from tauon.cli.interrupt import interruptible
from tauon.data import TokenizerConfig
from tauon.data import tokenizer_config
from tauon.data.progress import listening
tokenizer_config._LONGEST_WORD = 1 << 30
text = "".join(chr(0x4E00 + (i * i * 7919 + i) % 900) for i in range(400_000))
with interruptible():
    try:
        with listening(lambda what, done, total: print(what, flush=True)):
            parse(TokenizerConfig, {"kind": "bpe", "vocab": 30000}).build(lambda: iter([text]))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        sys.exit(130)
print("done")
"""


def test_sigterm_is_heard_while_pairs_are_joined() -> None:
    """The child would need minutes; it is stopped by the signal, long before the limit of this test."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == ["tokenizer\n", "merge pairs of tokens\n"]
        child.send_signal(signal.SIGTERM)
        assert child.communicate()[0] == "stopped\n"
    assert child.returncode == 130


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
        (b"{", "not valid JSON at line 1"),
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
    with pytest.raises(DataError, match=r"has no token '<x>'.*one of its special tokens \(<s>"):
        make("file", path=str(tmp_path), bos="<x>")


def test_damaged_merges_are_named(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\na\n")
    with pytest.raises(DataError, match=r"vocab\.bpe: line 3 is 'a'"):
        make("file", path=str(tmp_path))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na c\n")
    with pytest.raises(DataError, match=r"vocab\.bpe: does not match"):
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
