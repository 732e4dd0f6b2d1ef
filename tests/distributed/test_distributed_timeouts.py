"""No wait for another process lasts longer than was said: connections of the store, groups that are made later, meeting, checkpoints."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from tauon.distributed import Heartbeat, World, checkpoint, heartbeat, join
from tauon.distributed.timeouts import bounded_connections, later_groups_wait
from tauon.errors import TrainingError
from tauon.testing.processes import run_processes

pytestmark = pytest.mark.distributed


@pytest.mark.skipif(sys.platform != "linux", reason="a connection's own time-out is Linux's")
def test_connections_to_the_store_fail_once_they_are_silent_and_others_are_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as store, socket.create_server(("127.0.0.1", 0)) as other:
        before = socket.create_connection(store.getsockname())
        with bounded_connections(store.getsockname()[1], 7.5):
            inside = socket.create_connection(store.getsockname())
            elsewhere = socket.create_connection(other.getsockname())
        with before, inside, elsewhere:
            limits = [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for s in (before, inside, elsewhere)]
            alive = [s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for s in (before, inside, elsewhere)]
            inside.sendall(b"still open")
    assert limits == [7500, 7500, 0]  # milliseconds, tcp(7)
    assert alive == [1, 1, 0]


def a_later_group() -> float:
    """Seconds until a collective of a group that was made without a time-out fails, where the other rank does not come."""
    os.environ["TAUON_TIMEOUT_S"] = "1"
    with join() as world:
        group = dist.new_group()
        began = time.monotonic()
        if world.leads:
            with pytest.raises(RuntimeError, match="Timed out waiting 1000ms"):
                dist.all_reduce(torch.ones(1), group=group)
        else:
            time.sleep(4)
        return time.monotonic() - began


def test_groups_that_are_made_later_have_the_time_out_of_the_first() -> None:
    assert 1 <= run_processes(a_later_group, 2, 400)[0] < 200


def test_the_defaults_of_torch_are_as_before_afterwards() -> None:
    before = c10d.default_pg_timeout
    with pytest.raises(KeyError), later_groups_wait(3):
        assert c10d._get_default_timeout(dist.Backend("gloo")).total_seconds() == 3
        raise KeyError
    assert c10d.default_pg_timeout is before


def test_a_meeting_that_does_not_come_about_ends_the_process_in_words() -> None:
    program = "import time\nfrom tauon.distributed.timeouts import meeting\nwith meeting('rank 1 of 2'): pass\nwith meeting('rank 0 of 2'): time.sleep(60)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TAUON_TIMEOUT_S": "0.1"}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 5
    assert ended.stderr.startswith("error: rank 0 of 2 could not connect to the others in 0.2 s, twice launch.timeout.")


class Unreachable:
    """A store behind a cut."""

    def check(self, *_: object) -> bool:
        raise dist.DistNetworkError("Connection timed out")  # type: ignore[attr-defined]

    set = get = check


def test_whoever_cannot_reach_the_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "group_store", Unreachable)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    heart = Heartbeat(World(2, 4), interval=0.01)
    heart.beat(3)
    failure = heart.failure(RuntimeError("Timed out waiting 1000ms for recv operation to complete"))
    assert isinstance(failure, TrainingError)
    assert str(failure).startswith("rank 2 of 4 failed while waiting for other ranks after step 3")
    assert "Rank 0 no longer answers at 10.0.0.1:1234." in str(failure)
    assert heart.failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_nobody_waits_longer_for_a_part_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_TIMEOUT_S", "0.3")
    began = time.monotonic()
    with pytest.raises(TrainingError, match="timed out after 0.3 s .* waiting for rank 3 to write"):
        checkpoint._wait(dist.HashStore(), "key", "rank 3 to write")
    assert time.monotonic() - began < 60  # not the usual minutes
    with pytest.raises(TrainingError, match="cannot wait for rank 3 to write: the processes' store no longer answers"):
        checkpoint._wait(Unreachable(), "key", "rank 3 to write")
    with pytest.raises(TrainingError, match="cannot notify the other ranks about rank-3"):
        checkpoint._publish(Unreachable(), "tauon/checkpoint/0/1/rank-3", "done")
