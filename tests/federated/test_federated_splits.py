"""Splits of a data set over clients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tauon.errors import DataError
from tauon.federated.simulation import ByFeature, ByLabel, ByQuantity, ClientSplit, Dirichlet, Even

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
FEATURE = np.random.default_rng(1).normal(size=2000)
SPLITS: list[ClientSplit] = [Even(), Dirichlet(alpha=0.1), ByLabel(), ByQuantity(power=1.5), ByFeature()]


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind_)
@pytest.mark.parametrize("clients", [1, 7, 500])
def test_every_example_goes_to_one_client_and_none_is_without(split: ClientSplit, clients: int) -> None:
    parts = split.split(clients, labels=LABELS, features=FEATURE, seed=3)
    again = split.split(clients, labels=LABELS, features=FEATURE, seed=3)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if clients == 7:
        other = split.split(clients, labels=LABELS, features=FEATURE, seed=4)
        assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_a_small_alpha_gives_clients_few_classes() -> None:
    def largest_share(alpha: float) -> float:
        parts = Dirichlet(alpha=alpha).split(20, labels=LABELS, seed=0)
        return float(np.mean([np.bincount(LABELS[p], minlength=10).max() / len(p) for p in parts]))

    assert largest_share(0.05) > 0.6
    assert largest_share(1000.0) < 0.2


def test_two_shards_hold_few_classes() -> None:
    parts = ByLabel(shards=2).split(100, labels=LABELS, seed=0)
    classes = [len(np.unique(LABELS[p])) for p in parts]
    assert max(classes) <= 4
    assert np.mean(classes) < 2.3
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


def test_quantities_follow_the_shares() -> None:
    parts = ByQuantity(shares=(5, 3, 2)).split(3, labels=LABELS, seed=0)
    assert [len(p) for p in parts] == [1000, 600, 400]
    with pytest.raises(DataError, match="one for each client"):
        ByQuantity(shares=(5, 3)).split(3, labels=LABELS, seed=0)


def test_a_feature_orders_the_clients() -> None:
    parts = ByFeature(mixing=0).split(4, labels=LABELS, features=FEATURE, seed=0)
    assert all(FEATURE[a].max() <= FEATURE[b].min() for a, b in pairwise(parts))
    with pytest.raises(DataError, match="finite number"):
        ByFeature().split(4, labels=LABELS, seed=0)


def test_more_clients_than_examples_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be dealt"):
        Even().split(3, labels=LABELS[:2], seed=0)
