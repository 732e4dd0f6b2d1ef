"""Sharing a machine out: counts with their reasons, threads, NUMA nodes, and what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tauon.errors import LaunchError
from tauon.launch.cores import Shares, numa_nodes, parse_cpulist, share_out

TWO = [[0, 1, 2, 3], [4, 5, 6, 7]]


def share(asked: int | None = None, low: int | None = None, high: int | None = None, **rest: Any) -> Shares:
    whole: dict[str, Any] = {"pin": "auto", "nodes": TWO, "gpus": 0, "environ": {}} | rest
    return share_out(asked, low, high, **whole)


@pytest.mark.parametrize(
    ("asked", "low", "high", "rest", "workers", "threads"),
    [
        (None, None, None, {}, 2, 4),  # one a NUMA node
        (None, None, None, {"nodes": [[0, 1]]}, 1, 2),
        (None, 2, None, {"nodes": [[0, 1]]}, 2, 1),
        (4, None, None, {}, 4, 2),
        (3, None, None, {}, 3, 2),
        (9, None, None, {"pin": False}, 9, 1),
        (None, None, None, {"gpus": 4}, 4, 2),
        (None, None, 3, {"gpus": 4}, 3, 2),
        (None, None, 1, {}, 1, 8),
    ],
)
def test_workers_and_threads(asked: Any, low: Any, high: Any, rest: Any, workers: int, threads: int) -> None:
    found = share(asked, low, high, **rest)
    assert (found.workers, found.threads) == (workers, threads)
    assert str(workers) in found.reasons[0]


def test_omp_num_threads_of_the_user_counts() -> None:
    found = share(2, environ={"OMP_NUM_THREADS": "3"})
    assert found.threads == 3 and "your OMP_NUM_THREADS" in found.reasons[1]
    assert share(2, environ={"OMP_NUM_THREADS": "many"}).threads == 4


def test_no_worker_straddles_two_nodes_where_it_divides_and_no_core_is_given_twice() -> None:
    for workers in range(1, 9):
        cpus = share(workers).cpus
        assert len(cpus) == workers and all(cpus)
        given = [c for part in cpus for c in part]
        assert len(given) == len(set(given))
        if workers % 2 == 0:
            assert all(set(part) <= set(TWO[0]) or set(part) <= set(TWO[1]) for part in cpus)


def test_pinning_is_left_out_with_a_reason_or_refused() -> None:
    one = share(2, nodes=[[0, 1]])
    assert one.cpus == () and "one NUMA node" in one.reasons[-1]
    assert share(2, nodes=[[0, 1]], pin=True).cpus == ((0,), (1,))
    assert share(2, pin=False).cpus == ()
    with pytest.raises(LaunchError, match="with 3 workers on 2 cores"):
        share(3, nodes=[[0, 1]], pin=True)


def test_what_the_machine_has_not_is_refused() -> None:
    with pytest.raises(LaunchError, match="min_workers is 5, but this machine has only 4 GPUs"):
        share(None, 5, None, gpus=4)
    with pytest.raises(LaunchError, match="Set at most 4, or train.device=cpu"):
        share(8, gpus=4)


def test_numa_nodes_are_read_from_the_system_and_only_allowed_cores_count(tmp_path: Path) -> None:
    for number, cores in {0: "0-3,8", 1: "4-7", 2: "", 10: "9"}.items():
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(cores + "\n")
    assert numa_nodes(set(range(10)), tmp_path) == [[0, 1, 2, 3, 8], [4, 5, 6, 7], [9]]
    assert numa_nodes({1, 5}, tmp_path) == [[1], [5]]
    assert numa_nodes({1, 5}, tmp_path / "none") == [[1, 5]]


def test_the_kernels_lists() -> None:
    assert parse_cpulist("") == set()
    assert parse_cpulist("0") == {0}
    assert parse_cpulist("0-2,7\n") == {0, 1, 2, 7}
