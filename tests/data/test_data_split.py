"""Splits: exact sizes, nothing on two sides, classes in proportion, folds that cover everything once."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import SplitConfig
from tauon.data.split import PARTS, split_rows
from tauon.data.split_text import TextStat, split_text
from tauon.errors import DataError, RecipeError


def stats(texts: list[str]) -> list[TextStat]:
    return [TextStat(hashlib.sha256(t.encode()).digest(), len(t)) for t in texts]


def config(**values: Any) -> SplitConfig:
    return parse(SplitConfig, values)


HELD = ["validation", "test"]


def test_one_text_is_cut_by_position_as_nanogpt_does() -> None:
    """nanoGPT's prepare.py: train = data[:int(n * 0.9)], val = the rest."""
    n = 1_115_394
    pieces, facts = split_text(stats(["x" * n]), config(), HELD)
    assert list(pieces[0]) == [("train", 0, int(n * 0.9)), ("validation", int(n * 0.9), n)]
    assert facts["by"] == "position"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
@settings(max_examples=60, deadline=None)
def test_position_gives_each_character_to_one_part_in_order(sizes: list[int], validation: float, test: float) -> None:
    texts = ["x" * s for s in sizes]
    total = sum(sizes)
    try:
        pieces, _ = split_text(stats(texts), config(by="position", validation=validation, test=test), HELD)
    except DataError:
        assert total * min(validation, test, 1 - validation - test) < 2
        return
    sequence = []
    for i, size in enumerate(sizes):
        covered = [j for _, a, b in pieces[i] for j in range(a, b)]
        assert covered == list(range(size))
        sequence += [PARTS.index(p) for p, a, b in pieces[i] for _ in range(a, b)]
    assert sequence == sorted(sequence)
    assert abs(sequence.count(1) - validation * total) <= 1
    assert abs(sequence.count(2) - test * total) <= 1


def test_documents_are_whole_and_shares_are_of_the_text() -> None:
    rng = np.random.default_rng(0)
    texts = [f"{i} " + "y" * int(rng.integers(100, 1000)) for i in range(400)]
    pieces, facts = split_text(stats(texts), config(test=0.2), HELD)
    assert facts["by"] == "document"
    assert all(len(p) == 1 and p[0][1:] == (0, len(texts[i])) for i, p in pieces.items())
    total = sum(map(len, texts))
    share = {part: sum(len(texts[i]) for i, p in pieces.items() if p[0][0] == part) / total for part in PARTS}
    assert share == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.005)


def test_equal_documents_land_on_the_same_side_whatever_their_place() -> None:
    texts = [f"text {i % 37}" for i in range(370)]
    pieces, _ = split_text(stats(texts), config(validation=0.3), HELD)
    side: dict[str, str] = {}
    for i, text in enumerate(texts):
        assert side.setdefault(text, pieces[i][0][0]) == pieces[i][0][0]
    assert set(side.values()) == {"train", "validation"}


def test_the_split_depends_on_its_seed_and_not_on_the_order_of_documents() -> None:
    texts = [f"text number {i}" for i in range(100)]

    def held(texts: list[str], seed: int) -> set[str]:
        pieces, _ = split_text(stats(texts), config(seed=seed), HELD)
        return {texts[i] for i, p in pieces.items() if p[0][0] == "validation"}

    assert held(texts, 0) == held(texts[::-1], 0)
    assert held(texts, 0) != held(texts, 1)


@pytest.mark.parametrize("by", ["document", "position"])
def test_text_folds_cover_everything_once(by: str) -> None:
    texts = [f"{i:03d}" * 10 for i in range(60)]
    tested: list[tuple[int, int]] = []
    for fold in range(4):
        pieces, _ = split_text(stats(texts), config(by=by, folds=4, fold=fold, validation=0.1), HELD)
        tested += [(i, j) for i, p in pieces.items() for part, a, b in p if part == "test" for j in range(a, b)]
        chars = [part for p in pieces.values() for part, a, b in p for _ in range(a, b)]
        assert len(chars) == 60 * 30
        assert chars.count("test") == pytest.approx(450, abs=31)
        assert chars.count("validation") == pytest.approx(0.1 * 0.75 * 1800, abs=31)
    assert sorted(tested) == [(i, j) for i in range(60) for j in range(30)]


def test_too_few_documents_for_the_parts_is_an_error() -> None:
    with pytest.raises(DataError, match=r"validation part is empty: 1 documents.*split\.by=position"):
        split_text(stats(["abc"]), config(by="document"), HELD)


# ---------------------------------------------------------------------------------------------- rows


@given(st.lists(st.integers(3, 200), min_size=2, max_size=6), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
@settings(max_examples=60, deadline=None)
def test_rows_are_held_out_exactly_and_in_proportion(counts: list[int], validation: float, test: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    assume(round(validation * n) and round(test * n) and round(validation * n) + round(test * n) < n)
    rows, facts = split_rows(labels, config(validation=validation, test=test), HELD)
    assert facts["stratified"]
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(n))
    assert len(rows["test"]) == round(test * n)
    assert len(rows["validation"]) == round(validation * n)
    for c, size in enumerate(counts):
        assert abs(int((labels[rows["test"]] == c).sum()) - test * size) <= 1.5
        assert abs(int((labels[rows["validation"]] == c).sum()) - validation * size) <= 3


def test_six_thousand_to_train_and_four_thousand_to_test() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 10_000)
    rows, _ = split_rows(labels, config(validation=0, test="40%"), HELD)
    assert {p: len(r) for p, r in rows.items()} == {"train": 6000, "test": 4000}


def test_row_folds_cover_everything_once_with_classes_in_proportion_as_scikit_learns() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [212, 300, 57]))
    folds = [split_rows(labels, config(folds=5, fold=f, validation=0), HELD)[0] for f in range(5)]
    assert np.array_equal(np.sort(np.concatenate([f["test"] for f in folds])), np.arange(569))
    theirs = [np.bincount(labels[t]) for _, t in model_selection.StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)]
    ours = [np.bincount(labels[f["test"]]) for f in folds]
    for c in range(3):
        assert sorted(o[c] for o in ours) == sorted(t[c] for t in theirs)
    for f in folds:
        assert set(f["train"]).isdisjoint(f["test"])
        assert len(f["train"]) + len(f["test"]) == 569


def test_validation_rows_of_a_fold_are_a_share_of_what_the_fold_leaves() -> None:
    rows, _ = split_rows(np.arange(100) % 2, config(folds=5, fold=1, validation=0.25), HELD)
    assert {p: len(r) for p, r in rows.items()} == {"train": 60, "validation": 20, "test": 20}


def test_position_keeps_the_order_of_time() -> None:
    rows, _ = split_rows(np.linspace(0, 1, 100, dtype=np.float32), config(by="position", validation=0.1, test=0.2), HELD)
    assert (rows["train"].max(), rows["validation"].tolist(), rows["test"].min()) == (69, list(range(70, 80)), 80)


def test_another_seed_holds_out_other_rows() -> None:
    a, b = (split_rows(np.arange(1000) % 2, config(seed=s), HELD)[0]["validation"] for s in (0, 1))
    assert not np.array_equal(a, b)


def test_parts_with_a_source_of_their_own_are_not_cut_off() -> None:
    rows, _ = split_rows(np.arange(100) % 2, config(validation=0.1, test=0.1), ["validation"])
    assert {p: len(r) for p, r in rows.items()} == {"train": 90, "validation": 10}


def test_too_few_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="validation part is empty: 3 rows"):
        split_rows(np.array([0, 1, 0]), config(), HELD)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "folds: 1 folds leave no data to train on"),
        ({"folds": 5, "fold": 5}, "fold: fold 5 of 5 does not exist"),
        ({"fold": 1}, "fold: has no effect without folds"),
        ({"folds": 5, "test": 0.1}, "test: .*the test part is one of the 5 folds"),
        ({"validation": 0.5, "test": 0.5}, "leave no data to train on"),
        ({"validation": 1.5}, "validation"),
        ({"by": "weekday"}, "by"),
    ],
)
def test_impossible_splits_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config(**values)


def test_rows_and_documents_are_not_mixed_up() -> None:
    with pytest.raises(DataError, match=r"split\.by=row is only for arrays"):
        split_text(stats(["a"]), config(by="row"), HELD)
    with pytest.raises(DataError, match=r"split\.by=document is only for text"):
        split_rows(np.array([0, 1]), config(by="document"), HELD)
