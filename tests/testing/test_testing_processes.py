"""Several processes at once: a group that works, errors carried over, nothing left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tauon.errors import DataError
from tauon.testing import ProcessFailure, run_processes

pytestmark = pytest.mark.distributed


def total(start: torch.Tensor) -> tuple[int, torch.Tensor]:
    summed = start + dist.get_rank()
    dist.all_reduce(summed)
    return os.getpid(), summed


def fails_on_one() -> None:
    if dist.get_rank() == 1:
        raise DataError("no such file")
    dist.barrier()


def dies_on_one() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def sleeps() -> None:
    time.sleep(600)


def test_ranks_form_a_group_and_their_results_come_back_in_order() -> None:
    (a, sum_a), (b, sum_b) = run_processes(total, 2, 400, torch.ones(3))
    assert len({a, b, os.getpid()}) == 3
    assert sum_a.tolist() == sum_b.tolist() == [3.0, 3.0, 3.0]


def test_an_error_of_a_rank_is_raised_here_as_what_it_is() -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        run_processes(fails_on_one, 2, 400)
    assert "on rank 1 of 2" in caught.value.__notes__[0] and "fails_on_one" in caught.value.__notes__[0]


@pytest.mark.slow
def test_a_killed_rank_is_named() -> None:
    with pytest.raises(ProcessFailure, match="rank 1 of 2 ended with exit code -9"):
        run_processes(dies_on_one, 2, 400)


@pytest.mark.slow
def test_a_rank_that_hangs_is_killed_at_the_time_out(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(ProcessFailure, match=r"ranks \[0\] of 1 were not done after 25 s"):
        run_processes(sleeps, 1, 25)
    assert time.monotonic() - began < 45
    assert "in sleeps" in capfd.readouterr().err
