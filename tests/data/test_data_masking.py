"""Hidden tokens: how many, what becomes of them, and that each draw is a function of (seed, epoch, window) alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, Loader, MaskedDataset, prepare
from toy import words


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("masking")
    (folder / "docs").mkdir()
    for i in range(40):
        (folder / f"docs/{i}.txt").write_text(words(300, seed=i))
    return parse(
        DataConfig,
        {"source": {"kind": "text", "path": str(folder / "docs")}, "tokenizer": "bytes", "seq_len": 64, "cache": str(folder / "cache")},
    )


def prepared(data: DataConfig, seed: int = 0) -> MaskedDataset:
    found = prepare(data, seed=seed, input_kind="masked-tokens")
    assert isinstance(found.train, MaskedDataset) and found.spec.vocab == 258 and found.preprocess["mask_token"] == 257
    return found.train


def test_15_percent_are_chosen_of_which_80_10_10(data: DataConfig) -> None:
    train = prepared(data)
    batch = train.batch(np.arange(len(train)))
    chosen = batch.weights > 0
    usable = batch.targets != 256  # never the token between documents
    assert not (chosen & ~usable).any()
    n = int(usable.sum())
    assert abs(int(chosen.sum()) / n - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5
    k = int(chosen.sum())
    shares = {
        "mask": float((batch.inputs[chosen] == 257).float().mean()),
        "same": float((batch.inputs[chosen] == batch.targets[chosen]).float().mean()),
    }
    assert abs(shares["mask"] - 0.8) < 4 * (0.16 / k) ** 0.5
    assert abs(shares["same"] - 0.1) < 4 * (0.09 / k) ** 0.5 + 0.002  # a random token may be the same one
    assert torch.equal(batch.inputs[~chosen], batch.targets[~chosen])
    other = batch.inputs[chosen & (batch.inputs != 257) & (batch.inputs != batch.targets)]
    assert len(other.unique()) > 60  # of all ids, not of those that text has


def test_what_is_hidden_is_a_function_of_seed_epoch_and_window(data: DataConfig) -> None:
    train, index = prepared(data), np.array([5, 2, 9])
    one, again = train.batch(index, epoch=3), prepared(data).batch(index[::-1].copy(), epoch=3)
    assert torch.equal(one.inputs, again.inputs.flip(0)) and torch.equal(one.weights, again.weights.flip(0))
    assert torch.equal(train.batch(np.array([2]), epoch=3).inputs[0], one.inputs[1])
    masks = [train.batch(np.arange(len(train)), epoch=e).weights for e in (0, 1)]
    assert not torch.equal(*masks)
    assert not torch.equal(masks[0], prepared(data, seed=1).batch(np.arange(len(train))).weights)


def test_held_out_windows_hide_the_same_tokens_each_time(data: DataConfig) -> None:
    found = prepare(data, seed=0, input_kind="masked-tokens")
    assert found.validation is not None
    index = np.arange(4)
    one = found.validation.batch(index)
    assert torch.equal(one.inputs, found.validation.batch(index).inputs)
    assert one.segments is not None  # documents stay apart


def test_batches_are_the_same_for_every_number_of_readers(data: DataConfig) -> None:
    train = prepared(data)
    whole = Loader(train, batch=8, seed=3).batch_at(7)
    parts = [Loader(train, batch=8, seed=3, rank=r, world=2).batch_at(7) for r in range(2)]
    assert torch.equal(whole.inputs, torch.cat([p.inputs for p in parts]))


def test_a_tokenizer_with_a_mask_token_uses_it(tmp_path: Path, data: DataConfig) -> None:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    tok = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[MASK]": 2, "the": 3, "lepton": 4}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.add_special_tokens(["[UNK]", "[CLS]", "[MASK]"])
    tok.save(str(tmp_path / "tokenizer.json"))
    config = data.model_copy(
        update={"tokenizer": parse(DataConfig, {"source": "python-stdlib", "tokenizer": {"kind": "file", "path": str(tmp_path)}}).tokenizer}
    )
    found = prepare(config, seed=0, input_kind="masked-tokens")
    assert isinstance(found.train, MaskedDataset) and (found.train.mask, found.spec.vocab) == (2, 5)
