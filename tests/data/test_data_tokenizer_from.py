"""Tokenizers of trained models: BERT's vocab.txt as transformers reads it; what does not belong together is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tauon.config import parse
from tauon.data import tokenizer_of
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
    with pytest.raises(DataError, match=r"14 token ids, and the model beside it has 9"):
        tokenizer_of(bert(tmp_path / "a", SMALL, vocab_size=9))
    with pytest.raises(DataError, match=r"bos_token_id=99, and the tokenizer beside it has no such token"):
        tokenizer_of(bert(tmp_path / "b", SMALL, bos_token_id=99))
    with pytest.raises(DataError, match=r"expected a token a line"):
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
