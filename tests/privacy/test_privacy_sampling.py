"""Which examples a private step takes: the law that the accountant assumes, the same on any number of ranks, and none of it told by the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tauon.errors import RecipeError
from tauon.privacy.sampling import PrivateLoader, SamplingScheme
from tauon.types import Batch, DataSpec


class Numbers:
    """A data set whose example i is the number i."""

    spec = DataSpec(input_shape=(1,), outputs=2)

    def __init__(self, count: int) -> None:
        self.count, self.facts = count, {}

    def __len__(self) -> int:
        return self.count

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        at = torch.from_numpy(index)
        return Batch(at[:, None].float(), at % 2, torch.ones(len(at)), index=at)


def loader(count: int = 200, **more) -> PrivateLoader:
    scheme = SamplingScheme(more.pop("sampling", "poisson"), more.pop("key", b"k" * 32))
    return PrivateLoader(Numbers(count), **{"batch": 20, "scheme": scheme} | more)


def test_poisson_sampling_takes_each_example_by_a_coin_of_its_own() -> None:
    it = loader()
    taken = np.zeros((4000, 200), bool)
    for step in range(4000):
        taken[step, it.chosen(step)] = True
    sizes = taken.sum(1)
    assert abs(sizes.mean() - 20) < 4 * np.sqrt(18 / 4000)  # Binomial(200, 0.1)
    assert abs(sizes.var() - 18) < 4 * np.sqrt(2 / 4000) * 18
    each = taken.mean(0)
    assert np.abs(each - 0.1).max() < 4.5 * np.sqrt(0.09 / 4000)
    together = (taken[:, 3] & taken[:, 7]).mean()  # independent: 0.01, and 0.0095 were it without replacement at a fixed size
    assert abs(together - 0.01) < 4 * np.sqrt(0.01 / 4000)
    again = (taken[:-1] & taken[1:]).mean()
    assert abs(again - 0.01) < 4 * np.sqrt(0.01 / taken[1:].size) + 1e-4


def test_fixed_size_takes_exactly_so_many_without_replacement() -> None:
    it = loader(sampling="fixed-size")
    for step in range(50):
        assert len(it.chosen(step)) == len(set(it.chosen(step).tolist())) == 20


def test_shuffled_passes_use_each_example_at_most_once_and_always_at_the_same_distance() -> None:
    it = loader(205, sampling="shuffled")
    first = np.concatenate([it.chosen(s) for s in range(10)])
    assert len(set(first.tolist())) == 200
    assert all((it.chosen(s) == it.chosen(s + 10)).all() for s in range(10))


@pytest.mark.parametrize("sampling", ["poisson", "fixed-size", "shuffled"])
@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_one_draw_and_fill_up_at_weight_zero(sampling: str, world: int) -> None:
    ranks = [loader(sampling=sampling, rank=r, world=world) for r in range(world)]
    for step in range(5):
        batches = [r.batch_at(step) for r in ranks]
        assert len({len(b) for b in batches}) == 1
        seen = torch.cat([b.index[b.weights > 0] for b in batches])
        assert sorted(seen.tolist()) == sorted(loader(sampling=sampling).chosen(step).tolist())


def test_a_step_that_draws_nobody_is_one_row_of_weight_zero() -> None:
    it = loader(3, batch=1)
    empty = next(s for s in range(100) if len(it.chosen(s)) == 0)
    batch = it.batch_at(empty)
    assert len(batch) == 1 and batch.weights.tolist() == [0.0]


def test_another_key_draws_other_examples() -> None:
    assert loader().chosen(0).tolist() != loader(key=b"j" * 32).chosen(0).tolist()


def test_a_batch_that_is_larger_than_the_data_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.batch: is 300, but there are only 200 examples"):
        loader(batch=300)
