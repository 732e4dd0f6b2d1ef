"""Tokenizers of trained models: BERT's vocab.txt as transformers reads it; what does not belong together is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tauon.config import parse
from tauon.data import Tokenizer, tokenizer_of
from tauon.data.tokenizer import SubwordTokenizer
from tauon.data.tokenizer_config import TokenizerConfig
from tauon.errors import DataError

MIRROR = Path(os.environ.get("TAUON_DATA", "/work/shared/data")) / "tokenizers"
TEXTS = ["The heavy lepton decays, quickly!", "Ångström's 3.14 naïve co-operation", "中文 and unaffable words\n\tTabs"]
SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heavy", "lep", "##ton", "##s", "decay", ",", "!", "中"]


def bert(folder: Path, tokens: list[str], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(tokens), **config}))
    return folder


def test_a_vocab_txt_reads_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = tokenizer_of(bert(tmp_path / "bert", SMALL))
    theirs = transformers.BertTokenizer(str(tmp_path / "bert/vocab.txt"))
    for text in ("The heavy leptons decay, 中!", "Heavy heavy THE unknown"):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert (ours.bos, ours.vocab_size) == (2, 14)
    assert ours.decode(ours.encode("the heavy leptons")) == "the heavy leptons"
    same = parse(TokenizerConfig, {"kind": "file", "path": str(tmp_path / "bert")}).build(lambda: iter(()))
    assert same.sha256 == ours.sha256


@pytest.mark.skipif(not (MIRROR / "bert-base-uncased").is_dir(), reason="the data mirror is not here")
def test_the_published_vocabulary_of_bert_reads_as_in_transformers(tmp_path: Path) -> None:
    import gzip

    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "vocab.txt").write_bytes(gzip.decompress((MIRROR / "bert-base-uncased/vocab.txt.gz").read_bytes()))
    ours = parse(TokenizerConfig, {"kind": "file", "path": str(MIRROR / "bert-base-uncased")}).build(lambda: iter(()))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.vocab_size == 30522


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"14 token ids, but the model beside it has 9"):
        tokenizer_of(bert(tmp_path / "a", SMALL, vocab_size=9))
    with pytest.raises(DataError, match=r"bos_token_id=99, but the tokenizer beside it has no such token"):
        tokenizer_of(bert(tmp_path / "b", SMALL, bos_token_id=99))
    with pytest.raises(DataError, match=r"expected one token per line"):
        tokenizer_of(bert(tmp_path / "c", SMALL[2:]))
    folder = bert(tmp_path / "d", SMALL)
    shutil.move(folder / "vocab.txt", folder / "other.txt")
    with pytest.raises(DataError, match=r"tokenizer.json: missing. Download it"):
        tokenizer_of(folder)


def test_the_token_before_a_document_is_the_one_that_the_model_was_trained_with(tmp_path: Path) -> None:
    assert tokenizer_of(bert(tmp_path / "a", SMALL, bos_token_id=3)).bos == 3
    folder = bert(tmp_path / "b", SMALL)
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": {"content": "[SEP]"}}))
    assert tokenizer_of(folder).bos == 3


def with_tokens(
    folder: Path, *special: str, config: dict[str, object] | None = None, tokenizer_config: dict[str, object] | None = None
) -> Path:
    """A folder with a byte-level tokenizer.json that has these special tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tok = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens(list(special))  # from id 256
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tok.to_str())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300, **(config or {})}))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


QWEN = ("<|endoftext|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("special", "config", "tokenizer_config", "bos", "eos", "named"),
    [
        (("<s>", "</s>"), {}, None, 256, 257, {"bos_token": "<s>", "eos_token": "</s>"}),
        (("<|endoftext|>",), {}, None, 256, 256, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        (QWEN, {"bos_token_id": 256}, {"bos_token": None, "eos_token": "<|im_end|>"}, 256, 257, {"eos_token": "<|im_end|>"}),
        (
            QWEN,
            {"bos_token_id": 256, "eos_token_id": [257, 256]},
            None,
            256,
            257,
            {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        ),
        (QWEN, {"eos_token_id": 999}, None, 256, 256, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        (
            ("<s>", "</s>", "<x>"),
            {},
            {"bos_token": {"content": "<s>"}, "eos_token": {"content": "<x>"}},
            256,
            258,
            {"bos_token": "<s>", "eos_token": "<x>"},
        ),
        (("<s>", "</s>"), {}, {"eos_token": "<nowhere>"}, 256, 257, {"bos_token": "<s>", "eos_token": "</s>"}),
        (("<end>",), {}, {"eos_token": "<end>"}, 256, 256, {"eos_token": "<end>"}),
    ],
)
def test_a_tokenizer_knows_the_token_that_ends_a_text(
    tmp_path: Path, special: tuple[str, ...], config: dict[str, object], tokenizer_config: dict[str, object] | None, bos: int, eos: int,
    named: dict[str, str],
) -> None:  # fmt: skip
    folder = with_tokens(tmp_path / "m", *special, config=config, tokenizer_config=tokenizer_config)
    found = tokenizer_of(folder)
    assert isinstance(found, SubwordTokenizer)
    assert (found.bos, found.eos, found.named) == (bos, eos, named)
    found.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert isinstance(again, SubwordTokenizer)
    assert (again.eos, again.named, again.sha256) == (found.eos, found.named, found.sha256)


def test_the_end_can_be_named_and_does_not_change_which_ids_a_text_becomes(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "m", "<s>", "</s>", "<x>")
    plain, other = (
        parse(TokenizerConfig, {"kind": "file", "path": str(folder), **eos}).build(lambda: iter(())) for eos in ({}, {"eos": "<x>"})
    )
    assert (plain.eos, other.eos, plain.bos, other.bos) == (257, 258, 256, 256)
    assert plain == other
    assert isinstance(other, SubwordTokenizer) and other.named == {"bos_token": "<s>", "eos_token": "<x>"}
    with pytest.raises(DataError, match=r"has no token '<y>'. Set data.tokenizer.eos"):
        parse(TokenizerConfig, {"kind": "file", "path": str(folder), "eos": "<y>"}).build(lambda: iter(()))


def test_lines_of_a_vocabulary_end_at_line_feeds_alone(tmp_path: Path) -> None:
    odd = [*SMALL, "\u2028", "\u0085", "\x0b"]
    assert tokenizer_of(bert(tmp_path / "lf", odd)).vocab_size == len(odd)
    crlf = bert(tmp_path / "crlf", odd)
    (crlf / "vocab.txt").write_bytes("\r\n".join(odd).encode())
    assert tokenizer_of(crlf).vocab_size == len(odd)
