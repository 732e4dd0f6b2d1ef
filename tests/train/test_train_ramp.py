"""Batch and sequence-length warm-up: sizes, positions in the stream of examples, numbers of steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tauon.data import Loader
from tauon.train.sizes import BatchSizeScheduler, SeqLenTruncation
from tauon.types import Batch, DataSpec


class Numbers:
    """Examples that are their own number."""

    spec, facts = DataSpec(), {}

    def __len__(self) -> int:
        return 10

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        x = torch.from_numpy(index)
        return Batch(x, x, torch.ones(len(index)), index=x)


RAMPS = BatchSizeScheduler(8, 64, 2, 4, 16, 6)


def test_sizes_grow_to_the_full_batch_and_lengths_to_the_full_length() -> None:
    assert [RAMPS.size(s) for s in range(6)] == [2, 3, 5, 6, 8, 8]
    assert [RAMPS.length(s) for s in range(8)] == [16, 24, 32, 40, 48, 56, 64, 64]
    assert [RAMPS.first(s) for s in range(7)] == [0, *itertools.accumulate([2, 3, 5, 6, 8, 8])]


@pytest.mark.parametrize("wanted", [1, 2, 3, 16, 17, 40, 1000])
def test_the_number_of_steps_is_the_least_that_takes_enough(wanted: int) -> None:
    steps = RAMPS.steps_for(wanted)
    assert RAMPS.first(steps) >= wanted and (steps == 1 or RAMPS.first(steps - 1) < wanted)
    tokens = RAMPS.steps_for(wanted * 10, tokens=True)
    taken = [0, *itertools.accumulate(RAMPS.size(s) * RAMPS.length(s) for s in range(tokens))]
    assert taken[-1] >= wanted * 10 and (tokens == 1 or taken[-2] < wanted * 10)


@pytest.mark.parametrize("world", [1, 2])
def test_a_growing_batch_sees_each_example_once_an_epoch(world: int) -> None:
    loaders = [Loader(Numbers(), batch=8, seed=3, rank=r, world=world, sizes=BatchSizeScheduler(8, 1, 2, 4)) for r in range(world)]  # type: ignore[arg-type]
    seen: list[int] = []
    for step in range(5):
        parts = [loader.batch_at(step) for loader in loaders]
        seen += [int(i) for p in parts for i, w in zip(p.inputs, p.weights, strict=True) if w > 0]
    assert len(seen) == 24
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:20]) == list(range(10))


def test_a_shortened_batch_is_the_beginning_of_each_row() -> None:
    class Rows:
        def batch_at(self, step: int) -> Batch:
            x = torch.arange(128).view(2, 64)
            return Batch(x, x + 1, torch.ones(2, 64), segments=torch.zeros(2, 64, dtype=torch.int32))

    cut = SeqLenTruncation(Rows(), RAMPS).batch_at(1)
    assert (
        cut.inputs.shape == cut.targets.shape == cut.weights.shape == (2, 24) and cut.segments is not None and cut.segments.shape == (2, 24)
    )
    assert cut.inputs[1].tolist() == list(range(64, 88))
