"""The order of examples: a bijection, evenly spread, and the same for every world size and number of workers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import DataConfig, Loader, example_at, permute, prepare
from tauon.data.order import ShuffledOrder
from tauon.data.shards import Shards
from tauon.data.tokenizer import ByteTokenizer
from tauon.data.tokens import TokenDataset
from tauon.errors import RecipeError
from tauon.types import Batch, DataSpec


@dataclass
class Numbers:
    """A data set whose example i of epoch e is the number 1000 e + i."""

    n: int
    spec: DataSpec = field(default_factory=lambda: DataSpec(input_shape=(1,), outputs=1))
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.n

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        x = torch.from_numpy(index + 1000 * epoch).float()[:, None]
        return Batch(x, x[:, 0], torch.ones(len(index)), None, torch.from_numpy(index.copy()))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection_for_every_size(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutation_does_not_depend_on_what_is_asked_together() -> None:
    whole = permute(np.arange(777), 777, 5)
    assert [permute(np.array([i]), 777, 5)[0] for i in (0, 3, 776)] == whole[[0, 3, 776]].tolist()


@pytest.mark.parametrize("n", [2, 5, 24, 1025, 1500, 2047, 2049])
def test_every_example_is_equally_likely_at_every_position(n: int) -> None:
    """Chi-square of the table (position, example), in at most 25 bins each, over many epochs, against scipy's 99.99% point."""
    stats = pytest.importorskip("scipy.stats")
    epochs, bins = (2000 if n < 100 else 150), min(n, 25)
    table = np.zeros((bins, bins))
    for seed in range(epochs):
        np.add.at(table, (np.arange(n) * bins // n, permute(np.arange(n), n, seed * 7919) * bins // n), 1)
    size = np.bincount(np.arange(n) * bins // n)
    expected = epochs * np.outer(size, size) / n
    # the table's rows and columns sum to what they must, hence (bins - 1)^2 degrees of freedom; numbers drawn without
    # replacement vary less than independent ones, by n / (n - 1) where bins are single numbers
    statistic = ((table - expected) ** 2 / expected).sum()
    assert stats.chi2.ppf(0.0001, (bins - 1) ** 2) < statistic * (n - 1) / n < stats.chi2.ppf(0.9999, (bins - 1) ** 2)


def test_single_examples_are_spread_evenly_over_positions_by_the_network() -> None:
    stats = pytest.importorskip("scipy.stats")
    n = 1500
    for example in (0, 1, 749, n - 1):
        at = np.array([permute(np.array([example]), n, key)[0] for key in range(900)])
        assert stats.chisquare(np.bincount(at * 20 // n, minlength=20)).pvalue > 1e-4


def test_all_permutations_of_four_are_equally_likely() -> None:
    stats = pytest.importorskip("scipy.stats")
    seen: dict[tuple[int, ...], int] = {}
    for key in range(6000):
        p = tuple(permute(np.arange(4), 4, key).tolist())
        seen[p] = seen.get(p, 0) + 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_neighbours_and_epochs_are_uncorrelated() -> None:
    n = 5000
    _, first = example_at(np.arange(n), n, seed=3)
    _, second = example_at(np.arange(n, 2 * n), n, seed=3)
    bound = 4 / np.sqrt(n)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < bound


def test_every_epoch_shows_every_example_once() -> None:
    epoch, example = example_at(np.arange(4 * 101), 101, seed=9)
    assert np.array_equal(epoch, np.repeat(np.arange(4), 101))
    for e in range(4):
        assert sorted(example[epoch == e].tolist()) == list(range(101))
    assert not np.array_equal(example[:101], example[101:202])


@pytest.mark.parametrize("world", [2, 3, 4, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_do_not_change_the_stream(world: int, workers: int) -> None:
    data = Numbers(31)
    one = Loader(data, batch=12, seed=4)
    loaders = [Loader(data, batch=12, seed=4, rank=r, world=world, workers=workers) for r in range(world)]
    for step in range(8):  # crosses the epoch's end within a batch
        whole = one.batch_at(step)
        parts = [loader.batch_at(step) for loader in loaders]
        assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
        assert torch.equal(torch.cat([p.index for p in parts]), whole.index)  # type: ignore[misc]
    for loader in loaders:
        loader.close()


def test_a_loader_that_starts_in_the_middle_gives_the_same_batches() -> None:
    with Loader(Numbers(50), batch=8, seed=1, workers=3) as ahead:
        straight = [ahead.batch_at(s).inputs for s in range(20)]
    with Loader(Numbers(50), batch=8, seed=1, workers=2) as resumed:
        assert torch.equal(resumed.batch_at(13).inputs, straight[13])
        assert torch.equal(resumed.batch_at(4).inputs, straight[4])  # a jump back
        assert torch.equal(resumed.batch_at(5).inputs, straight[5])


@pytest.mark.parametrize("n", [5, 455, 4708, 300_000])
def test_a_kept_order_is_the_order(n: int) -> None:
    """Across epochs, backwards, out of order, and several epochs at once."""
    order = ShuffledOrder(n, seed=3)
    for position in (
        np.arange(40),
        n - 2 + np.arange(7),
        np.arange(9),
        5 * n + np.array([n, 0, 3, n - 1]),
        np.arange(0, 3 * n, max(1, n // 2)),
    ):
        for found, wanted in zip(order.at(position), example_at(position, n, 3), strict=True):
            assert np.array_equal(found, wanted)


def test_a_step_may_span_several_epochs() -> None:
    batch = Loader(Numbers(3), batch=8, seed=1).batch_at(0)
    values = batch.inputs[:, 0].long().tolist()
    assert [v // 1000 for v in values] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(v % 1000 for v in values[:3]) == [0, 1, 2]


def test_steps_are_counted() -> None:
    loader = Loader(Numbers(100), batch=32, seed=0)
    assert (loader.steps_per_epoch, loader.steps_for(1), loader.steps_for(0.32), loader.steps_for(8)) == (4, 4, 1, 25)


def test_a_batch_that_does_not_divide_is_filled_up_at_weight_zero() -> None:
    whole = Loader(Numbers(10), batch=8, seed=0).batch_at(1)
    parts = [Loader(Numbers(10), batch=8, seed=0, rank=r, world=3).batch_at(1) for r in range(3)]
    assert [len(p) for p in parts] == [3, 3, 3]
    assert [p.weights.tolist() for p in parts] == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    seen = torch.cat([p.inputs[p.weights > 0] for p in parts])
    assert torch.equal(seen, whole.inputs)


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    with pytest.raises(RecipeError, match="set train.batch to at least 3"):
        Loader(Numbers(10), batch=2, seed=0, world=3)


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    class Broken(Numbers):
        def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
            raise ValueError("torn")

    with Loader(Broken(10), batch=2, seed=0, workers=1) as loader, pytest.raises(ValueError, match="torn"):
        loader.batch_at(0)


def test_sample_a_million_is_at_hand_at_once(tmp_path: Path) -> None:
    """0.5 s for a new process (its imports apart): opening the shards, the order, and the batch. Measured by processor time, the best of three."""
    (tmp_path / "a.txt").write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 1_300_000, np.uint8)))
    section = {
        "source": {"kind": "text", "path": str(tmp_path / "a.txt")},
        "tokenizer": "bytes",
        "seq_len": 1,
        "cache": str(tmp_path / "cache"),
    }
    section |= {"decontaminate": {"action": "none"}}
    config = parse(DataConfig, section)
    whole = Loader(prepare(config, seed=0, input_kind="tokens").train, batch=64, seed=3)
    assert len(whole.dataset) > 10**6
    taken = []
    for _ in range(3):
        begin = time.process_time()
        shards = Shards(next((tmp_path / "cache" / "tokens").glob("[!.]*")) / "train")
        late = Loader(TokenDataset(shards, ByteTokenizer(), 1, seed=0, training=True), batch=64, seed=3)
        batch = late.batch_at(10**6 // 64)
        taken.append(time.process_time() - begin)
    assert batch.index is not None
    epoch, example = example_at(np.arange(10**6, 10**6 + 64), len(whole.dataset), 3)
    assert batch.index.tolist() == example.tolist()
    assert {*epoch.tolist()} == {0}
    assert min(taken) < 0.5
