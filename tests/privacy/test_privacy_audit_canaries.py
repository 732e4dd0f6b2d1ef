"""Canaries: what is planted is what the record says, nothing but the coins decides it, and the data around them stays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, HalfConfig, Loader, half_of, prepare, without_augmentation
from tauon.errors import DataError, RecipeError
from tauon.privacy import PrivateLoader, SamplingScheme
from tauon.privacy.audit import Canaries, CanaryConfig, GradientCanaries, Secret, canary_dataset, canary_key, with_canaries
from tauon.stages.extensions.canaries import plant
from toy import words


def iris(**more: Any) -> DataSplits:
    config = {"source": {"kind": "sklearn", "name": "iris"}, "split": {"test": "20%", "validation": 0}} | more
    return prepare(parse(DataConfig, config), seed=3, input_kind="arrays")


def text(tmp_path: Any, tokenizer: str = "bytes") -> DataSplits:
    (tmp_path / "text.txt").write_text(words(3000))
    config = {"source": {"kind": "text", "path": str(tmp_path / "text.txt")}, "tokenizer": tokenizer, "seq_len": 64, "cache": str(tmp_path)}
    return prepare(parse(DataConfig, config), seed=3, input_kind="tokens")


def asked(**fields: Any) -> CanaryConfig:
    return parse(CanaryConfig, {"seed": 5} | fields)


def all_of(dataset: Any, epoch: int = 0) -> Any:
    return dataset.batch(np.arange(len(dataset)), epoch=epoch)


def test_mislabelled_examples_stay_or_are_zeroed_by_their_coins() -> None:
    """Both worlds of a coin are neighbours as the guarantee says: the same N, so the same rate and divisor, and one row set to nothing."""
    train = iris().train
    config = asked(canaries=40)
    planted, record = with_canaries(train, config, key=canary_key(config))
    assert record.rows is not None and record.labels is not None
    assert len(planted) == len(train) and record.to_json()["absent"] == "zeroed"
    before, after = all_of(train), all_of(planted)
    kept = np.setdiff1d(np.arange(len(train)), record.rows)
    there = torch.from_numpy(record.included)
    rows = slice(len(kept), None)
    assert torch.equal(after.weights[: len(kept)], before.weights[kept]) and torch.equal(after.weights[rows] > 0, there)
    assert torch.equal(after.inputs[rows][there], before.inputs[record.rows[record.included]])
    assert torch.equal(after.targets[rows][there], torch.from_numpy(record.labels[record.included]))
    assert (after.inputs[rows][~there] == before.inputs[kept[0]]).all()  # nothing of one that is not there is seen
    other, _ = with_canaries(train, asked(canaries=40, seed=6), key=canary_key(asked(seed=6)))
    assert len(other) == len(planted)
    for data in (planted, other):
        loader = PrivateLoader(data, batch=16, scheme=SamplingScheme("poisson", bytes(32)))
        assert loader.rate(0) == 16 / len(train)


def test_canaries_that_an_earlier_version_left_out_are_read_as_they_were() -> None:
    train = iris().train
    config = asked(canaries=40)
    planted, record = with_canaries(train, config, key=canary_key(config), absent="left-out")
    assert record.rows is not None and record.labels is not None and "absent" not in record.to_json()
    assert Canaries.from_json(record.to_json()).absent == "left-out"
    assert len(planted) == len(train) - 40 + record.included.sum() and len(set(record.rows.tolist())) == 40
    before, after = all_of(train), all_of(planted)
    kept = np.setdiff1d(np.arange(len(train)), record.rows)
    assert torch.equal(after.inputs[: len(kept)], before.inputs[kept]) and torch.equal(after.targets[: len(kept)], before.targets[kept])
    chosen = record.rows[record.included]
    assert torch.equal(after.inputs[len(kept) :], before.inputs[chosen])
    assert torch.equal(after.targets[len(kept) :], torch.from_numpy(record.labels[record.included]))
    assert (after.targets[len(kept) :] != before.targets[chosen]).all() and set(after.targets.tolist()) <= {0, 1, 2}
    shown = all_of(canary_dataset(train, record))
    assert torch.equal(shown.inputs, before.inputs[record.rows]) and shown.targets.tolist() == record.labels.tolist()
    with Loader(planted, batch=16, seed=1) as loader:
        assert len(loader.batch_at(0)) == 16


def test_a_run_goes_on_with_the_canaries_that_it_began_with(tmp_path: Path) -> None:
    splits, config = iris(), asked(canaries=40)
    old = with_canaries(splits.train, config, key=canary_key(config), absent="left-out")[1]
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/canaries.json").write_text(json.dumps(old.to_json()))
    began = plant(splits, config, tmp_path)
    assert len(began.train) == len(splits.train) - 40 + old.included.sum()
    new = plant(splits, config, tmp_path / "new")
    assert len(new.train) == len(splits.train) == len(plant(splits, config, tmp_path / "new").train)
    assert new.fingerprint == began.fingerprint


def test_coins_are_fair_come_from_the_key_alone_and_survive_json() -> None:
    train = iris().train
    one, other = (with_canaries(train, asked(canaries=40, seed=s), key=canary_key(asked(seed=s)))[1] for s in (5, 6))
    assert one.included.tolist() != other.included.tolist() and one.rows.tolist() != other.rows.tolist()  # type: ignore[union-attr]
    again = Canaries.from_json(json.loads(json.dumps(one.to_json())))
    assert again.to_json() == one.to_json() and again.included.dtype == bool
    many = [with_canaries(train, asked(canaries=50, seed=s), key=canary_key(asked(seed=s)))[1].included.mean() for s in range(100)]
    assert abs(np.mean(many) - 0.5) < 4 * 0.5 / math.sqrt(5000)
    assert canary_key(CanaryConfig()) != canary_key(CanaryConfig())  # the system's, unless a seed is given
    with pytest.raises(DataError, match="not a record of canaries"):
        Canaries.from_json({"kind": "secret"})


def test_secrets_are_rows_of_their_own_as_often_as_asked(tmp_path: Any) -> None:
    splits = text(tmp_path)
    config = asked(canaries=12, kind="secret", repeats=[1, 3], digits=4)
    planted, record = with_canaries(splits.train, config, key=canary_key(config))
    added = all_of(planted)
    n = len(splits.train)
    found = []
    for row in range(n, len(planted)):
        ids = added.targets[row][added.weights[row] > 0]
        found.append(splits.tokenizer.decode(ids.numpy()))  # type: ignore[union-attr]
    times = {s.text: s.repeats * bool(there) for s, there in zip(record.secrets, record.included, strict=True)}
    assert {t: found.count(t) for t in times} == times and len(found) == sum(s.repeats for s in record.secrets)
    assert [t for t in found if t] == [t for t in found if times.get(t)]
    assert {s.repeats for s in record.secrets} == {1, 3} and len({s.prefix for s in record.secrets}) == 12
    assert all(len(s.secret) == 4 and s.secret.isdigit() and s.candidates == 10_000 for s in record.secrets)
    first = splits.train.batch(np.arange(n), epoch=2)
    assert torch.equal(planted.batch(np.arange(n), epoch=2).inputs, first.inputs)
    there = (added.weights.sum(1) > 0)[n:].tolist()
    assert all(row[0] == splits.tokenizer.bos for row, shown in zip(added.inputs[n:].tolist(), there, strict=True) if shown)  # type: ignore[union-attr]


def test_a_tokenizer_without_digits_gets_letters(tmp_path: Any) -> None:
    splits = text(tmp_path, tokenizer="chars")
    config = asked(canaries=4, kind="secret", template="a {name} {secret}")
    _, record = with_canaries(splits.train, config, key=canary_key(config))
    assert all(set(s.secret) <= set("abcdefghijklmnopqrstuvwxyz") for s in record.secrets)


def test_gradient_canaries_take_part_as_examples_do_and_are_seen() -> None:
    config = asked(canaries=30, kind="gradient")
    data, record = with_canaries(iris().train, config, key=canary_key(config))
    assert len(data) == len(iris().train)
    canaries = GradientCanaries.of(record, {"weight": 50, "bias": 5}, rate=lambda step: 0.3)
    taken = [(name, int(i)) for name, (at, _) in canaries.places.items() for i in at]
    assert len(taken) == len(set(taken)) == 30 and canaries.places["bias"][0].max(initial=0) < 5
    there = np.zeros(30)
    for step in range(200):
        sums = {"weight": torch.zeros(10, 5), "bias": torch.zeros(5)}
        canaries.insert(sums, step=step, norm=2.0)
        there += canaries.present(step)
        assert float(sums["weight"].sum() + sums["bias"].sum()) == pytest.approx(2.0 * canaries.present(step).sum())
        canaries.observe(sums, norm=2.0)
    assert canaries.total == pytest.approx(there) and (there[~record.included] == 0).all()
    assert there[record.included].mean() == pytest.approx(60, abs=5)
    assert (canaries.change[~record.included] == 0).all() and (canaries.change[record.included] > 0).all()
    other = GradientCanaries.of(record, {"weight": 50, "bias": 5}, rate=lambda step: 0.3)
    other.load(canaries.tensors())
    assert other.steps == 200 and other.scores()["sum"].tolist() == canaries.scores()["sum"].tolist()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"canaries": 0}, "greater than or equal to 1"),
        ({"kind": "mislabelled", "repeats": [1, 2]}, "is for kind=secret"),
        ({"kind": "secret", "template": "no place"}, "must contain {name} once"),
        ({"kind": "secret", "repeats": []}, "is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        asked(**fields)


def test_data_that_cannot_hold_canaries_is_refused(tmp_path: Any) -> None:
    train = iris().train
    key = canary_key(asked())
    with pytest.raises(RecipeError, match="at most half"):
        with_canaries(train, asked(canaries=100), key=key)
    with pytest.raises(RecipeError, match="is not plain text"):
        with_canaries(train, asked(canaries=5, kind="secret"), key=key)
    with pytest.raises(RecipeError, match="canaries would interact with other examples"):
        with_canaries(iris(mix={"mixup": 0.2}).train, asked(canaries=5), key=key)
    with pytest.raises(RecipeError, match="needs classes"):
        with_canaries(text(tmp_path).train, asked(canaries=5), key=key)
    with pytest.raises(RecipeError, match=r"shorten privacy\.audit\.template"):
        with_canaries(text(tmp_path).train, asked(canaries=5, kind="secret", template="x" * 90 + " {name} {secret}"), key=key)
    with pytest.raises(RecipeError, match="only 3 parameters are trained"):
        GradientCanaries.of(Canaries("gradient", key, np.ones(5, bool)), {"w": 3}, rate=lambda step: 1.0)


# ------------------------------------------------------------------------------------------------ halves


def test_of_an_even_number_of_halves_half_hold_each_example() -> None:
    held = sum(half_of(37, HalfConfig(number=k, seed=1)).astype(int) for k in range(8))
    assert held.tolist() == [4] * 37
    assert half_of(37, HalfConfig(number=0, seed=1)).tolist() != half_of(37, HalfConfig(number=2, seed=1)).tolist()


@pytest.mark.parametrize("kind", ["arrays", "tokens"])
def test_a_half_trains_on_its_examples_and_tests_on_the_others(kind: str, tmp_path: Any) -> None:
    if kind == "arrays":
        whole, half = iris(), iris(half={"number": 1, "seed": 4})
    else:
        whole = text(tmp_path)
        source = {"kind": "text", "path": str(tmp_path / "text.txt")}
        config = {"source": source, "tokenizer": "bytes", "seq_len": 64, "cache": str(tmp_path), "half": {"number": 1, "seed": 4}}
        half = prepare(parse(DataConfig, config), seed=3, input_kind="tokens")
    held: Any = whole.test if kind == "arrays" else whole.validation
    mine = half_of(len(whole.train) + len(held), HalfConfig(number=1, seed=4))
    pool = torch.cat([all_of(without_augmentation(whole.train)).inputs, all_of(without_augmentation(held)).inputs])
    assert torch.equal(all_of(half.train).inputs, pool[mine]) and torch.equal(all_of(half.test).inputs, pool[~mine])
    assert half.fingerprint != whole.fingerprint and half.preprocess == whole.preprocess
    some = np.array([5, 0, len(half.train) - 1, 5])
    assert torch.equal(half.train.batch(some).inputs, pool[mine][some]) and half.train.batch(some).index.tolist() == some.tolist()  # type: ignore[union-attr]


def test_a_plain_view_is_not_augmented_and_the_data_set_still_is() -> None:
    splits = iris(augment=[{"kind": "noise", "std": 1.0}], class_weights=[1.0, 2.0, 3.0])
    clean, noisy = all_of(without_augmentation(splits.train)), all_of(splits.train, epoch=1)
    assert torch.equal(clean.inputs, all_of(without_augmentation(splits.train), epoch=7).inputs) and (clean.weights == 1).all()
    assert not torch.equal(clean.inputs, noisy.inputs) and set(noisy.weights.tolist()) == {1.0, 2.0, 3.0}
    half = iris(augment=[{"kind": "noise", "std": 1.0}], class_weights=[1.0, 2.0, 3.0], half={"number": 0}).train
    a, b = all_of(half, epoch=0), all_of(half, epoch=1)
    assert not torch.equal(a.inputs, b.inputs) and set(a.weights.tolist()) == {1.0, 2.0, 3.0}  # held-out rows are augmented and weighed too


def test_secret_knows_its_space() -> None:
    assert Secret("a ", "0123", 1, "0123456789").candidates == 10_000
