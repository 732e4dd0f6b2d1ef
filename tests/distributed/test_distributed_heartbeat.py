"""A rank that does not come is named, with its stack; one that is gone is named, too."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tauon.distributed import Heartbeat, World, is_collective_failure
from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed


def forgetful(seconds: float) -> None:
    time.sleep(seconds)


def one_is_stuck() -> str:
    world = World(dist.get_rank(), 2)
    group = dist.new_group(timeout=timedelta(seconds=2))
    with Heartbeat(world, interval=0.3) as heart:
        heart.beat(3 if world.leads else 2)
        if not world.leads:
            forgetful(5)
            return ""
        with pytest.raises(RuntimeError) as failed:
            dist.all_reduce(torch.ones(1), group=group)
        return heart.explain(failed.value) if is_collective_failure(failed.value) else "not taken for the network's"


def test_the_stuck_rank_is_named_with_its_stack() -> None:
    said = run_processes(one_is_stuck, 2, 400)[0]
    assert "rank 0 of 2 failed while waiting for other ranks after step 3" in said
    assert "Rank 1 is missing: it is at step 2" in said
    assert "in forgetful" in said


def one_leaves(flag: str) -> str:
    world = World(dist.get_rank(), 2)
    group = dist.new_group(timeout=timedelta(seconds=20))
    heart = Heartbeat(world, interval=0.2)
    heart.__enter__()
    heart.beat(7)
    dist.all_reduce(torch.ones(1), group=group)
    time.sleep(0.5)
    if not world.leads:
        time.sleep(1)
        heart._stop.set()  # as if the process were gone, which the helper that started it would not survive
        for _ in range(600):
            if os.path.exists(flag):
                return ""
            time.sleep(0.05)
        return "never told to go"
    time.sleep(2.5)
    said = heart.explain(RuntimeError("Connection closed by peer"))
    heart.interval = 40.0
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    heart.explain(RuntimeError("Connection closed by peer"))
    heart.failure(RuntimeError("Connection closed by peer"), ending=True)
    assert time.monotonic() - began < 20
    open(flag, "w").close()
    return said


def test_a_rank_that_is_gone_is_named_and_a_process_that_is_told_to_end_does_not_wait_for_that(tmp_path: object) -> None:
    said = run_processes(one_leaves, 2, 400, f"{tmp_path}/flag")[0]
    assert "Rank 1 no longer answers (last heartbeat after step 7" in said


def test_own_errors_are_not_the_network() -> None:
    assert not is_collective_failure(ValueError("timeout"))
    assert not is_collective_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_collective_failure(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1"))


def test_a_world_of_one_has_no_heart() -> None:
    with Heartbeat(World()) as heart:
        heart.beat(1)
        assert heart._thread is None
