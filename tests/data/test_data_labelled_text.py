"""Texts with labels: what is read, split, cut and padded; what cannot be learned from is refused by file and line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, Tokenizer, inputs_from_texts, prepare
from tauon.errors import DataError, RecipeError

WORDS = {"good": ["fine", "lovely", "great"], "bad": ["poor", "awful", "dull"]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def rows(n: int = 40) -> list[tuple[str, str]]:
    return [(f"a {WORDS[label][i % 3]} film, number {i}", label) for i, label in enumerate(["good", "bad"] * (n // 2))]


def write(path: Path, found: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label"), *found])
    return path


def made(path: Path, **more: Any) -> DataSplits:
    source = {"kind": "jsonl" if path.suffix == ".jsonl" else "csv", "path": str(path), "text": "text", "label": "label"}
    settings = {"source": source, "tokenizer": {"kind": "bpe", "vocab": 300}} | more
    return prepare(parse(DataConfig, settings), seed=3, input_kind="labelled-text")


def test_csv_and_json_lines_give_the_same_examples(tmp_path: Path) -> None:
    one = made(write(tmp_path / "a.csv", rows()))
    lines = [json.dumps({"text": t, "label": y}) for t, y in rows()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    two = made(tmp_path / "a.jsonl")
    a, b = (d.train.batch(np.arange(len(d.train))) for d in (one, two))
    assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(a.targets, b.targets)
    assert one.spec.labels == ("bad", "good")
    assert one.facts["parts"]["train"]["classes"] == {"bad": 18, "good": 18}


def test_rows_are_the_texts_behind_bos_and_padding_is_segment_minus_one(tmp_path: Path) -> None:
    splits = made(write(tmp_path / "a.csv", rows()), seq_len=12)
    batch = splits.train.batch(np.arange(len(splits.train)))
    assert batch.segments is not None
    assert splits.tokenizer is not None
    there = batch.segments >= 0
    texts = splits.train.texts  # type: ignore[attr-defined]
    cut = 0
    for i in range(len(batch)):
        ids = splits.tokenizer.encode(texts[i]).tolist()
        assert batch.inputs[i, 0] == splits.tokenizer.bos
        assert batch.inputs[i, 1:][there[i, 1:]].tolist() == ids[:11]
        assert there[i].sum() == min(12, len(ids) + 1)
        cut += len(ids) > 11
    assert splits.facts["parts"]["train"]["cut"] == cut


def test_the_tokenizer_is_made_of_the_training_texts_alone(tmp_path: Path) -> None:
    held = [(f"{'zyx' * 9} {i}", "good" if i % 2 else "bad") for i in range(10)]
    train, test = write(tmp_path / "a.csv", rows()), write(tmp_path / "b.csv", held)
    other = {"kind": "csv", "path": str(test), "text": "text", "label": "label"}
    with_test, without = made(train, test=other), made(train)
    assert with_test.tokenizer == without.tokenizer


def test_the_replay_of_preprocessing_gives_the_very_inputs(tmp_path: Path) -> None:
    splits = made(write(tmp_path / "a.csv", rows()))
    preprocess = json.loads(json.dumps(splits.preprocess))
    inputs, segments = inputs_from_texts(preprocess, splits.train.texts)  # type: ignore[attr-defined]
    batch = splits.train.batch(np.arange(len(splits.train)))
    assert np.array_equal(inputs, batch.inputs.numpy())
    assert batch.segments is not None
    assert np.array_equal(segments, batch.segments.numpy())
    with pytest.raises(DataError, match="empty"):
        inputs_from_texts(preprocess, ["fine", "  "])


@pytest.mark.parametrize("step", ["mask-tokens", "drop-tokens"])
def test_augmentation_depends_on_seed_epoch_and_example_alone(tmp_path: Path, step: str) -> None:
    splits = made(write(tmp_path / "a.csv", rows()), augment=[{"kind": step, "share": 0.4}])
    plain = made(tmp_path / "a.csv")
    whole = splits.train.batch(np.arange(20), epoch=2)
    alone = splits.train.batch(np.array([7]), epoch=2)
    assert torch.equal(whole.inputs[7], alone.inputs[0])
    assert not torch.equal(whole.inputs, splits.train.batch(np.arange(20), epoch=3).inputs)
    before = plain.train.batch(np.arange(20))
    assert torch.equal(whole.inputs[:, 0], before.inputs[:, 0])
    assert whole.segments is not None
    assert before.segments is not None
    if step == "mask-tokens":
        mask = splits.preprocess["mask_token"]
        changed = whole.inputs != before.inputs
        assert (whole.inputs[changed] == mask).all()
        assert not (changed & (before.segments < 0)).any()
        assert 0.2 < changed[before.segments >= 0].float().mean() < 0.6
    else:
        for i in range(20):
            kept, all_of = (b.inputs[i][b.segments[i] >= 0].tolist() for b in (whole, before))  # type: ignore[index]
            rest = iter(all_of)
            assert all(t in rest for t in kept)  # a subsequence
        assert (whole.segments >= 0).sum() < (before.segments >= 0).sum()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([*rows(), ("  ", "good")], r"line 42: the text is empty"),
        ([*rows(), ("fine", "")], r"line 42: column 'label' is '', expected a label"),
        ([(t, "good") for t, _ in rows()], "every training text has the label 'good'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, found: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(write(tmp_path / "a.csv", found))


def test_a_class_that_training_never_sees_is_refused(tmp_path: Path) -> None:
    test = write(tmp_path / "b.csv", [("odd", "strange"), ("fine", "good")])
    with pytest.raises(DataError, match="'strange', which the training data does not have"):
        made(write(tmp_path / "a.csv", rows()), test={"kind": "csv", "path": str(test), "text": "text", "label": "label"})
    with pytest.raises(DataError, match="'strange', which no training row has"):
        made(write(tmp_path / "c.csv", [*rows(), ("odd", "strange")]), split={"by": "position", "test": 0.1, "validation": 0})


def test_images_are_not_augmented_like_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flip is not for texts"):
        made(write(tmp_path / "a.csv", rows()), augment=["flip"])
    with pytest.raises(RecipeError, match="document is only for running text"):
        made(tmp_path / "a.csv", split={"by": "document"})


def test_ag_news_and_sst2_have_their_published_counts(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    news = prepare(
        parse(DataConfig, {"source": {"kind": "public", "name": "ag-news"}, "split": {"test": 0.2}, "tokenizer": "bytes"}),
        seed=0,
        input_kind="labelled-text",
    )
    assert sum(len(p) for p in (news.train, news.validation, news.test) if p is not None) == 7600
    assert set(news.facts["parts"]["test"]["classes"].values()) == {380}
    with gzip.open(mirror / "ag_news" / "ag_news_test.csv.gz", "rt") as f:
        first = next(csv.reader(f))
    assert any(t == f"{first[1]}\n\n{first[2]}" for p in (news.train, news.validation, news.test) for t in p.texts)  # type: ignore[union-attr]
    films = prepare(
        parse(DataConfig, {"source": {"kind": "public", "name": "sst2"}, "tokenizer": "bytes"}), seed=0, input_kind="labelled-text"
    )
    assert [len(p) for p in (films.train, films.validation, films.test) if p is not None] == [6920, 872, 1821]
    assert films.spec.labels == ("negative", "positive")


def test_the_tokenizer_is_read_from_the_cache_as_it_was_made(tmp_path: Path) -> None:
    one, two = made(write(tmp_path / "a.csv", rows())), made(tmp_path / "a.csv")
    assert one.fingerprint == two.fingerprint
    assert isinstance(two.tokenizer, Tokenizer)
    found = next((tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json"))
    found.write_text(found.read_text().replace('"splittable": true', '"splittable": false'))
    with pytest.raises(DataError, match="the tokenizer file has changed since it was written"):
        made(tmp_path / "a.csv")
