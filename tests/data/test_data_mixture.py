"""Mixtures: exact proportions, one order for any ranks and workers, resumed anywhere, limits on epochs, weights that change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_samples import config

from tauon.data import Loader, prepare
from tauon.data.interleave import LONGEST, interleave, whole_numbers
from tauon.data.mixture_order import Change, MixtureOrder
from tauon.errors import DataError, RecipeError


@given(st.lists(st.one_of(st.integers(0, 50), st.floats(0.01, 9).map(lambda x: round(x, 2))), min_size=1, max_size=7).filter(any))
@settings(max_examples=80, deadline=None)
def test_after_any_number_of_samples_every_count_is_within_one_of_its_proportion(weights: list[float]) -> None:
    sequence = interleave(weights)
    period = len(sequence.source)
    p = np.array(whole_numbers(weights)) / period
    counts = np.cumsum(np.eye(len(weights), dtype=int)[sequence.source], axis=0)
    n = np.arange(1, period + 1)[:, None]
    assert np.abs(counts - n * p).max() < 1
    assert counts[-1].tolist() == whole_numbers(weights)
    exact = np.array(weights) / sum(weights)
    assert np.abs(p - exact).max() <= (1e-12 if period < LONGEST else len(weights) / LONGEST)
    for source in range(len(weights)):
        ranks = sequence.rank[sequence.source == source]
        assert ranks.tolist() == list(range(len(ranks)))


def test_positions_before_and_after_agree_with_counting() -> None:
    sequence = interleave([3, 1, 2.5])
    source, number = sequence.at(np.arange(100))
    for n in (0, 1, 12, 13, 14, 99):
        assert sequence.before(n).tolist() == np.bincount(source[:n], minlength=3).tolist()
    for k in range(3):
        assert number[source == k].tolist() == list(range(int((source == k).sum())))
        for samples in (1, 2, 9):
            assert sequence.after(k, samples) == np.flatnonzero(source == k)[samples - 1] + 1


def test_irrational_proportions_are_rounded_and_small_ones_stay() -> None:
    counts = whole_numbers([1 / 3, 2**0.5, 1e-9])
    assert sum(counts) == LONGEST and counts[2] == 1
    assert counts[1] / counts[0] == pytest.approx(3 * 2**0.5, rel=1e-3)


def counted(order: MixtureOrder, n: int) -> dict[int, list[tuple[int, int]]]:
    """(epoch, window) of each source, in the order of the stream."""
    epoch, window = order.at(np.arange(n))
    edges = np.cumsum([0, *order.windows])
    return {
        k: [(int(e), int(w - edges[k])) for e, w in zip(epoch, window, strict=True) if edges[k] <= w < edges[k + 1]]
        for k in range(len(order.windows))
    }


def test_every_source_is_read_in_whole_epochs_each_window_once() -> None:
    order = MixtureOrder([7, 20, 3], [1, 2, 1], seed=5)
    found = counted(order, 400)
    for k, n in enumerate(order.windows):
        pairs = found[k]
        for e in range(len(pairs) // n):
            assert sorted(w for epoch, w in pairs[e * n : (e + 1) * n] if epoch == e) == list(range(n))
    assert [len(found[k]) for k in range(3)] == [100, 200, 100]
    assert order.drawn(400).tolist() == [100, 200, 100]
    assert order.count == 30


def test_a_source_stops_after_its_epochs_and_the_others_go_on() -> None:
    order = MixtureOrder([10, 30, 5], [1, 1, 1], seed=0, epochs=[1.5, None, 2])
    found = counted(order, 500)
    assert [len(found[k]) for k in (0, 2)] == [15, 10]
    assert len(found[1]) == 475
    first = order.source_at(np.arange(30))[0]
    assert np.bincount(first, minlength=3).tolist() == [10, 10, 10]  # equal until the third is used up
    assert set(order.source_at(np.arange(60, 500))[0].tolist()) == {1}
    assert order.drawn(500).tolist() == [15, 475, 10]


def test_with_a_limit_on_every_source_the_stream_begins_again() -> None:
    order = MixtureOrder([10, 20], [1, 3], seed=0, epochs=[2, 1.25])
    assert order.count == order.total == 45
    for turn in range(3):
        source = order.source_at(np.arange(turn * 45, (turn + 1) * 45))[0]
        assert np.bincount(source).tolist() == [20, 25]
    windows = counted(order, 90)
    assert [e for e, _ in windows[1]] == [0] * 20 + [1] * 20 + [2] * 10  # the second turn goes on where the first ended
    assert order.drawn(100).tolist() == (2 * np.array([20, 25]) + order.drawn(10)).tolist()


def test_the_curriculum_changes_weights_at_steps_and_at_shares_of_training() -> None:
    base = MixtureOrder([50, 50], [1, 1], seed=0, changes=[Change((3, 1), step=10), Change((0, 1), share=0.5)])
    assert base.at(np.arange(500))[1].tolist() == MixtureOrder([50, 50], [1, 1], seed=0).at(np.arange(500))[1].tolist()  # not bound yet
    order = base.bound(lambda step: 8 * step, steps=100)
    source = order.source_at(np.arange(800))[0]
    assert [np.bincount(source[a:b], minlength=2).tolist() for a, b in ((0, 80), (80, 400), (400, 800))] == [[40, 40], [240, 80], [0, 400]]
    again = base.bound(lambda step: 8 * step, steps=100)
    assert np.array_equal(order.at(np.arange(700, 800))[1], again.at(np.arange(700, 800))[1])


def test_sample_a_million_is_found_at_once() -> None:
    order_of = lambda: MixtureOrder([123_457, 50_001, 999], [0.5, 0.3, 0.2], seed=1, epochs=[None, None, 40])  # noqa: E731
    start = time.perf_counter()
    late = order_of().at(np.arange(10**6, 10**6 + 64))
    assert time.perf_counter() - start < 5  # 0.1 s on the machine of docs/experiments.md
    whole = order_of().at(np.arange(10**6 + 64))
    assert all(np.array_equal(a, b[-64:]) for a, b in zip(late, whole, strict=True))


# ---------------------------------------------------------------------------------------------- over real text


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe's source: three folders of text, no word of one in another."""
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, files in (("a", 40), ("b", 12), ("c", 20)):
        (tmp_path / name).mkdir()
        for i in range(files):
            (tmp_path / name / f"{i:02d}.txt").write_text(f"{name}{i} " + " ".join(rng.choice([name * 3, name * 5, name * 2], 150)))
    made = [{"source": {"kind": "text", "path": str(tmp_path / n)}, "name": n, "weight": w} for n, w in (("a", 1), ("b", 2), ("c", 0.5))]
    return {"kind": "mixture", "sources": made}


def prepared(source: dict[str, Any], **values: Any) -> Any:
    return prepare(config(source=source, **{"tokenizer": "bytes", "seq_len": 32} | values), seed=3, input_kind="tokens")


def source_of(batch: Any) -> list[str]:
    """The letter that each row consists of."""
    found = []
    for row in batch.targets:
        letters = {chr(t) for t in row.tolist() if t < 256 and chr(t).isalpha()}
        assert len(letters) == 1, f"a window crosses from one source to another: {letters}"
        found.append(letters.pop())
    return found


def test_windows_stay_in_their_source_and_come_in_proportion(three: dict[str, Any]) -> None:
    made = prepared(three)
    with Loader(made.train, batch=14, seed=3) as loader:
        rows = [r for step in range(30) for r in source_of(loader.batch_at(step))]
    assert {n: rows.count(n) for n in "abc"} == {"a": 120, "b": 240, "c": 60}
    facts = made.facts["mixture"]
    assert [s["name"] for s in facts["sources"]] == ["a", "b", "c"]
    assert sum(s["share"] for s in facts["sources"]) == pytest.approx(1, abs=1e-5)
    assert facts["sources"][1]["share"] == pytest.approx(4 / 7, abs=1 / facts["windows_per_epoch"])
    for s in facts["sources"]:
        assert s["epochs_per_epoch"] == pytest.approx(s["share"] * facts["windows_per_epoch"] / s["windows"], abs=1e-3)


@pytest.mark.parametrize("input_kind", ["tokens", "masked-tokens"])
def test_the_stream_is_the_same_when_ranks_and_workers_change_in_mid_epoch(three: dict[str, Any], input_kind: str) -> None:
    """1 rank without workers, then 2 ranks with one each, then 1 rank with two."""
    settings: dict[str, Any] = {"tokenizer": "bytes", "seq_len": 32}
    data = prepare(config(source=three, **settings), seed=3, input_kind=input_kind).train
    with Loader(data, batch=12, seed=3) as one:
        whole = [one.batch_at(step) for step in range(24)]
    rows = []
    for steps, world, workers in ((range(8), 1, 0), (range(8, 16), 2, 1), (range(16, 24), 1, 2)):
        again = prepare(config(source=three, **settings), seed=3, input_kind=input_kind).train
        loaders = [Loader(again, batch=12, seed=3, rank=r, world=world, workers=workers) for r in range(world)]
        for step in steps:
            parts = [loader.batch_at(step) for loader in loaders]
            rows.append([torch.cat([getattr(p, name) for p in parts]) for name in ("inputs", "targets", "weights", "segments", "index")])
        for loader in loaders:
            loader.close()
    for batch, parts in zip(whole, rows, strict=True):
        for name, joined in zip(("inputs", "targets", "weights", "segments", "index"), parts, strict=True):
            assert torch.equal(getattr(batch, name), joined), name
    assert len({tuple(b.inputs[0].tolist()) for b in whole}) == len(whole)


def test_other_weights_need_no_other_preparation_but_are_other_data(three: dict[str, Any]) -> None:
    one = prepared(three)
    three["sources"][0]["weight"] = 5
    two = prepared(three)
    assert two.facts["cache"]["reused"] and one.fingerprint != two.fingerprint
    three["temperature"] = 2
    assert prepared(three).fingerprint not in (one.fingerprint, two.fingerprint)


def test_temperature_flattens_the_proportions(three: dict[str, Any]) -> None:
    for member, weight in zip(three["sources"], (16, 4, 1), strict=True):
        member["weight"] = weight
    with Loader(prepared(three | {"temperature": 2}).train, batch=7, seed=3) as loader:
        rows = [r for step in range(20) for r in source_of(loader.batch_at(step))]
    assert {n: rows.count(n) for n in "abc"} == {"a": 80, "b": 40, "c": 20}


def test_without_weights_every_window_comes_once_per_epoch(three: dict[str, Any]) -> None:
    for member in three["sources"]:
        del member["weight"]
    made = prepared(three)
    loader = Loader(made.train, batch=10, seed=3)
    epoch, window = made.train.order.at(np.arange(loader.count))
    assert sorted(window.tolist()) == list(range(len(made.train)))
    assert set(epoch.tolist()) == {0}


def test_each_source_is_held_out_in_proportion_and_copies_do_not_leak(three: dict[str, Any], tmp_path: Path) -> None:
    for i in range(0, 40, 3):  # copies in another source
        (tmp_path / "c" / f"copy{i}.txt").write_text((tmp_path / "a" / f"{i:02d}.txt").read_text())
    made = prepared(three, split={"validation": 0.25})
    shards = {"train": made.train.shards, "validation": made.validation.shards}
    texts = {part: {s.tobytes() for s in shards[part].documents()} for part in shards}
    assert not texts["train"] & texts["validation"]
    held = [shards["validation"].origin(d) for d in range(len(shards["validation"].starts))]
    assert {o.source for o in held} == {0, 1, 2}
    by_source = np.bincount([o.source for o in held if not o.name.startswith("copy")], minlength=3)
    assert np.abs(by_source - np.array([10, 3, 5])).max() <= 2
    origins = [shards["train"].origin(d) for d in range(len(shards["train"].starts))]
    assert all(shards["train"].sources[o.source]["name"] == "abc"[o.source] for o in origins)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "needs at least two"),
        ({"limit": 5}, "set limit on each source"),
        ({"weights": (1, None, 2)}, r"sources\.1\.weight.* set it for every source, or for none"),
        ({"names": ("x", "x", "y")}, "two sources are called 'x'"),
        ({"curriculum": [{"step": 3, "weights": {"d": 1}}]}, "names 'd'; the sources are a, b, c"),
        ({"curriculum": [{"weights": {"a": 1}}]}, "set either step or share"),
        ({"curriculum": [{"step": 9, "weights": {"a": 2}}, {"step": 3, "weights": {"a": 1}}]}, "not in order"),
        ({"curriculum": [{"step": 9, "weights": {"a": -2}}]}, "is negative"),
        ({"inner": {"kind": "csv", "path": "x.csv", "label": "y"}}, r"sources\.0\.source.* provides arrays; only sources of text"),
    ],
)
def test_mixtures_that_cannot_work_are_refused(three: dict[str, Any], change: dict[str, Any], message: str) -> None:
    for i, weight in enumerate(change.pop("weights", ())):
        three["sources"][i]["weight"] = weight
    for i, name in enumerate(change.pop("names", ())):
        three["sources"][i]["name"] = name
    if "inner" in change:
        three["sources"][0]["source"] = change.pop("inner")
    with pytest.raises(RecipeError, match=message):
        config(source=three | change)


def test_a_source_that_is_too_small_is_named(three: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("abc")
    three["sources"][2]["source"]["path"] = str(tmp_path / "tiny.txt")
    with pytest.raises(DataError, match=r"train part of source 'c' has \d tokens .* fewer than one sequence of seq_len=32"):
        prepared(three)
