"""Shards and windows: nothing lost, nothing twice, nothing silently damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.data import Shards, ShardWriter, TokenDataset
from tauon.data.tokenizer import ByteTokenizer
from tauon.errors import ChecksumError, DataError

TOK = ByteTokenizer()


def write(folder: Path, texts: list[str], shard_tokens: int = 1 << 20) -> Shards:
    writer = ShardWriter(folder, vocab=TOK.vocab_size, bos=TOK.bos, shard_tokens=shard_tokens)
    for i, text in enumerate(texts):
        writer.add(f"doc{i}", TOK.encode(text), n_bytes=len(text.encode()), n_words=len(text.split()), n_lines=text.count("\n"))
    writer.finish(made="for a test")
    return Shards(folder)


def stream(texts: list[str]) -> list[int]:
    """What must lie in the shards: written the slow way."""
    return [t for text in texts for t in (256, *text.encode())] + [256]


TEXTS = ["hello world\n", "", "zwei\nzeilen\n", "ß€ 𝄞", "x" * 37]


@pytest.mark.parametrize("shard_tokens", [1, 7, 16, 1 << 20])
def test_shards_hold_the_stream_whatever_their_size(tmp_path: Path, shard_tokens: int) -> None:
    shards = write(tmp_path / "s", TEXTS, shard_tokens)
    expected = stream(TEXTS)
    assert len(shards) == len(expected)
    for a in range(0, len(expected), 5):
        for b in range(a + 1, len(expected) + 1, 7):
            assert shards.read(a, b).tolist() == expected[a:b]
    assert all(len(p) <= shard_tokens for p in shards.parts)
    assert [TOK.decode(d) for d in shards.documents()] == TEXTS
    assert list(shards.names) == [f"doc{i}" for i in range(5)]
    shards.verify()


def test_shards_know_the_document_of_each_token_and_count_text(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", TEXTS)
    expected = [i for i, text in enumerate(TEXTS) for _ in range(1 + len(text.encode()))]
    assert shards.document_at(np.arange(len(shards) - 1)).tolist() == expected
    joined = "".join(TEXTS)
    assert shards.counts == {
        "documents": 5, "tokens": len(joined.encode()), "bytes": len(joined.encode()),
        "words": sum(len(t.split()) for t in TEXTS), "lines": 3,
    }  # fmt: skip


def test_small_vocabularies_take_two_bytes_and_large_ones_four(tmp_path: Path) -> None:
    for vocab, dtype in ((65536, "uint16"), (65537, "uint32")):
        writer = ShardWriter(tmp_path / dtype, vocab=vocab, bos=0)
        writer.add("d", np.array([vocab - 1], np.uint32), n_bytes=1, n_words=1, n_lines=0)
        writer.finish()
        shards = Shards(tmp_path / dtype)
        assert shards.parts[0].dtype == dtype
        assert shards.read(0, 3).tolist() == [0, vocab - 1, 0]


def test_a_flipped_bit_is_found_and_the_file_named(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", TEXTS)
    path = tmp_path / "s" / "tokens-00000.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"tokens-00000\.npy.*sha256"):
        Shards(shards.folder).verify()


@pytest.mark.parametrize("name", ["tokens-00000.npy", "documents.npy", "starts.npy", "names.npy", "name_ends.npy"])
def test_a_torn_or_missing_file_is_found_when_opened(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s", TEXTS)
    path = tmp_path / "s" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChecksumError, match=name):
        Shards(tmp_path / "s")
    path.unlink()
    with pytest.raises(ChecksumError, match=f"{name}: is missing"):
        Shards(tmp_path / "s")


def test_a_folder_without_manifest_or_with_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", TEXTS)
    manifest = tmp_path / "s" / "shards.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"format": "tauon-shards/9"}))
    with pytest.raises(DataError, match="tauon-shards/9"):
        Shards(tmp_path / "s")
    manifest.write_text("{")
    with pytest.raises(ChecksumError, match=r"shards\.json"):
        Shards(tmp_path / "s")
    manifest.unlink()
    with pytest.raises(DataError, match=r"shards\.json"):
        Shards(tmp_path / "s")


def test_ids_over_the_vocabulary_are_refused_in_and_out(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", vocab=257, bos=256)
    with pytest.raises(DataError, match=r"bad\.txt: token id 300 is outside the vocabulary of 257"):
        writer.add("bad.txt", np.array([1, 300]), n_bytes=2, n_words=1, n_lines=0)
    write(tmp_path / "t", TEXTS)
    manifest = tmp_path / "t" / "shards.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"vocab": 200}))
    with pytest.raises(DataError, match="outside the vocabulary of 200"):
        Shards(tmp_path / "t").verify()


@given(
    st.lists(st.text("ab\n", max_size=30), min_size=1, max_size=6).filter(lambda t: sum(map(len, t)) > 0),
    st.integers(1, 17),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
@settings(max_examples=50, deadline=None)
def test_held_out_windows_predict_every_token_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], T: int, overlap: float
) -> None:
    shards = write(tmp_path_factory.mktemp("s") / "s", texts)
    data = TokenDataset(shards, TOK, T, overlap=overlap)
    expected = stream(texts)
    batch = data.batch(np.arange(len(data)))
    assert batch.targets[batch.weights > 0].tolist() == expected[1:]
    assert batch.inputs[batch.weights > 0].tolist() == expected[:-1]
    assert int(batch.weights.sum()) == len(expected) - 1 == data.n_tokens
    assert torch.equal(batch.inputs[:, 1:][batch.weights[:, 1:] > 0], batch.targets[:, :-1][batch.weights[:, 1:] > 0])


def test_overlap_gives_context_to_all_but_the_first_window(tmp_path: Path) -> None:
    data = TokenDataset(write(tmp_path / "s", ["x" * 99]), TOK, 10, overlap=0.5)
    weights = data.batch(np.arange(len(data))).weights
    assert weights[0].tolist() == [1] * 10
    assert all(row[:5].tolist() == [0] * 5 for row in weights[1:])
    assert len(data) == 1 + (100 - 10) // 5


def test_training_windows_are_disjoint_in_an_epoch_and_move_between_epochs(tmp_path: Path) -> None:
    text = "".join(chr(33 + i % 90) for i in range(1000))
    data = TokenDataset(write(tmp_path / "s", [text]), TOK, 32, training=True, seed=5)
    flat = stream([text])
    offsets = {data.offset(e) for e in range(40)}
    assert len(offsets) > 15
    assert all(0 <= o < 32 for o in offsets)
    for epoch in (0, 1, 7):
        batch = data.batch(np.arange(len(data)), epoch=epoch)
        o = data.offset(epoch)
        assert batch.inputs.flatten().tolist() == flat[o : o + 32 * len(data)]
        assert batch.targets.flatten().tolist() == flat[o + 1 : o + 1 + 32 * len(data)]
        assert batch.weights.min() == 1
    assert len(data) == (1001 - 31) // 32


def test_a_text_of_exactly_one_sequence_trains_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", ["x" * 15])  # BOS x15 BOS: 16 predictions
    data = TokenDataset(shards, TOK, 16, training=True, name="train")
    assert len(data) == 1
    assert {data.offset(e) for e in range(50)} == {0}
    with pytest.raises(DataError, match=r"the train part has 17 tokens .* seq_len=17.*Lower data\.seq_len"):
        TokenDataset(shards, TOK, 17, training=True, name="train")
    assert len(TokenDataset(shards, TOK, 17)) == 1  # held out, it is padded


@given(st.lists(st.text("ab", max_size=9), min_size=2, max_size=8), st.integers(1, 13), st.booleans())
@settings(max_examples=40, deadline=None)
def test_segments_number_the_documents_of_a_row(tmp_path_factory: pytest.TempPathFactory, texts: list[str], T: int, training: bool) -> None:
    shards = write(tmp_path_factory.mktemp("s") / "s", texts)
    if training and len(shards) - 1 < T:
        return
    data = TokenDataset(shards, TOK, T, training=training, seed=1)
    batch = data.batch(np.arange(len(data)), epoch=3)
    assert batch.segments is not None
    assert batch.segments.dtype == torch.int32
    for row, segments, weights in zip(batch.inputs, batch.segments, batch.weights, strict=True):
        expected = torch.cumsum(row == 256, 0) - int(row[0] == 256)  # a BOS begins a document
        real = weights > 0
        assert torch.equal(segments[real].long(), expected[real])
        assert segments[0] == 0


def test_padding_shares_no_segment_with_text(tmp_path: Path) -> None:
    data = TokenDataset(write(tmp_path / "s", ["abc", "de"]), TOK, 16)
    batch = data.batch(np.array([0]))
    assert batch.segments is not None
    text, padding = batch.segments[batch.weights > 0], batch.segments[batch.weights == 0]
    assert set(text.tolist()) == {0, 1}
    assert set(padding.tolist()).isdisjoint(text.tolist())


def test_segments_can_be_left_out(tmp_path: Path) -> None:
    assert TokenDataset(write(tmp_path / "s", ["ab", "cd"]), TOK, 4, segments=False).batch(np.array([0])).segments is None


def test_a_window_outside_is_an_error_and_any_order_is_allowed(tmp_path: Path) -> None:
    data = TokenDataset(write(tmp_path / "s", ["x" * 50]), TOK, 8)
    with pytest.raises(IndexError):
        data.batch(np.array([len(data)]))
    batch = data.batch(np.array([3, 0, 3]))
    assert torch.equal(batch.inputs[0], batch.inputs[2])
    assert batch.index is not None
    assert batch.index.tolist() == [3, 0, 3]


def test_another_tokenizer_than_the_shards_were_made_with_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", vocab=100, bos=0)
    writer.add("d", np.array([1]), n_bytes=1, n_words=1, n_lines=0)
    writer.finish()
    with pytest.raises(DataError, match="made for 100 tokens, but the tokenizer has 257"):
        TokenDataset(Shards(tmp_path / "s"), TOK, 1)
