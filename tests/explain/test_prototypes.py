"""Prototypes against brute force on small sets."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from tauon.errors import DataError
from tauon.explain.prototypes import find_prototypes, kernel_matrix, mmd_squared


def groups(seed: int = 0, per: int = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(centre, 0.3, (per, 2)) for centre in ((0, 0), (5, 0), (0, 5))])


def test_the_kernel_and_the_discrepancy_equal_scikit_learns() -> None:
    E = groups()
    kernel, gamma = kernel_matrix(E)
    theirs = rbf_kernel(E, gamma=gamma)
    np.testing.assert_allclose(kernel, theirs, atol=1e-12)
    chosen = np.array([3, 25, 50])
    expected = theirs.mean() - 2 * rbf_kernel(E, E[chosen], gamma=gamma).mean() + rbf_kernel(E[chosen], gamma=gamma).mean()
    assert mmd_squared(kernel, chosen) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_prototypes_are_close_to_the_best_set_of_all(seed: int) -> None:
    """The objective is submodular (Kim et al. 2016): greedy reaches at least 1 - 1/e of the best gain; here far more."""
    E = np.random.default_rng(seed).normal(size=(14, 3))
    kernel, _ = kernel_matrix(E)
    found = find_prototypes(E, 3, 0)
    best = min(mmd_squared(kernel, np.array(s)) for s in itertools.combinations(range(14), 3))
    ours = mmd_squared(kernel, np.array(found.prototypes))
    top = kernel.mean()
    assert top - ours >= (1 - 1 / np.e) * (top - best) and ours <= best + 0.1 * top
    assert found.mmd[-1] == pytest.approx(ours)


def test_every_step_is_the_best_single_addition() -> None:
    E = groups(per=8)
    kernel, _ = kernel_matrix(E)
    chosen: list[int] = []
    for prototype in find_prototypes(E, 6, 0).prototypes:
        scores = [mmd_squared(kernel, np.array([*chosen, i])) if i not in chosen else np.inf for i in range(len(E))]
        assert scores[prototype] == pytest.approx(min(scores), abs=1e-12)
        chosen.append(prototype)


def test_each_group_has_a_prototype_and_a_group_without_one_is_a_criticism() -> None:
    E = groups()
    found = find_prototypes(E, 3, 2, gamma=1.0)
    assert sorted(i // 20 for i in found.prototypes) == [0, 1, 2] and found.nearest == (20, 20, 20)
    assert found.mmd[-1] < 0.5 * found.random_mmd
    fewer = find_prototypes(E, 2, 1, gamma=1.0)
    assert {i // 20 for i in (*fewer.prototypes, *fewer.criticisms)} == {0, 1, 2}
    json.dumps(found.to_json(), allow_nan=False)


def test_the_first_criticism_has_the_largest_witness() -> None:
    E = groups(3)
    kernel, _ = kernel_matrix(E)
    found = find_prototypes(E, 4, 3)
    p = list(found.prototypes)
    witness = np.abs(kernel.mean(1) - kernel[:, p].mean(1))
    witness[p] = -1
    assert found.criticisms[0] == witness.argmax() and len(set(found.criticisms)) == 3
    best, top = None, -np.inf  # the second by brute force: witness sum + log determinant
    for i in set(range(len(E))) - {*p, found.criticisms[0]}:
        pair = [found.criticisms[0], i]
        score = witness[pair].sum() + np.linalg.slogdet(kernel[np.ix_(pair, pair)])[1]
        best, top = (i, score) if score > top else (best, top)
    assert found.criticisms[1] == best


def test_small_equal_and_bad_sets() -> None:
    one = find_prototypes(np.zeros((1, 3)), 5, 5)
    assert one.prototypes == (0,) and one.criticisms == () and one.mmd == (0.0,)
    same = find_prototypes(np.ones((6, 2)), 2, 2)
    assert len(set(same.prototypes) | set(same.criticisms)) == 4 and same.mmd[0] == 0
    sampled = find_prototypes(groups(per=100), 3, 1, most_rows=60)
    assert sampled.rows_used == 60 and sorted(i // 100 for i in sampled.prototypes) == [0, 1, 2]
    for bad in (np.zeros((0, 2)), np.zeros(3), np.array([[np.nan, 1.0]])):
        with pytest.raises(DataError):
            find_prototypes(bad)
