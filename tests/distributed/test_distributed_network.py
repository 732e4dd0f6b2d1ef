"""Two ranks in two network namespaces whose wire is bad: packets come late, are lost, or do not come for a while: the run is the
undisturbed one. Or never again: both ranks end in words, within twice the time-out and some slack, and the run goes on afterwards.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from network import DEVICE, HOSTS, Unavailable, Wire

from tauon.artifacts import latest_checkpoint
from tauon.cli import main
from toy import nothing_half_written, text_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TIMEOUT = 6.0
"""TAUON_TIMEOUT_S of the runs, in seconds."""
SLACK = 10.0
"""Seconds beyond twice the time-out: telling why, ending the interpreter, on a machine that does other things, too."""
STEPS = 14
DELAY = 0.005
"""Seconds that a packet takes on the good wire."""


@pytest.fixture
def wire() -> Iterator[Wire]:
    found = Wire()
    try:
        found.__enter__()
    except Unavailable as err:
        pytest.skip(str(err))
    try:
        found.bend(delay=DELAY)
        yield found
    finally:
        found.__exit__()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@dataclass
class Ended:
    """How a rank ended."""

    code: int
    seconds: float
    """After the clock was started."""
    said: str


class TwoRanks:
    """`tauon train` on two hosts, one rank each, with the environment that torchrun would give them."""

    def __init__(self, wire: Wire, folder: Path, name: str, *, timeout: float = TIMEOUT) -> None:
        self.wire, self.timeout, self.run = wire, timeout, folder / "runs" / name
        self.logs = [folder / f"{name}-{rank}.log" for rank in range(2)]
        words = [sys.executable, "-m", "tauon", *arguments(folder, name)]
        shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": HOSTS[0], "MASTER_PORT": "29500"}
        shared |= {"GLOO_SOCKET_IFNAME": DEVICE, "TAUON_TIMEOUT_S": f"{timeout:g}", "TAUON_PARENT": f"{os.getpid()}:9"}
        self.processes = [wire.start(r, words, environment() | shared | {"RANK": str(r)}, self.logs[r]) for r in range(2)]

    def until(self, condition: Callable[[], object], seconds: float = 90) -> float:
        """Wait for it while both ranks run; returns when that was."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert all(p.poll() is None for p in self.processes), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.003)
        return time.monotonic()

    def at_step(self, step: int) -> float:
        return self.until(lambda: max(losses(self.run), default=0) >= step)

    def end(self, since: float, within: float) -> list[Ended]:
        """Both ranks' ends; one that still runs `within` seconds after `since` is a failure."""
        found: dict[int, Ended] = {}
        while len(found) < 2:
            seconds = time.monotonic() - since
            for rank, process in enumerate(self.processes):
                if rank not in found and process.poll() is not None:
                    found[rank] = Ended(process.returncode, seconds, self.logs[rank].read_text(errors="replace"))
            assert seconds < within or len(found) == 2, f"rank {({0, 1} - {*found}).pop()} hangs\n{self.said()}"
            time.sleep(0.02)
        print(f"{self.run.name}: ended after " + ", ".join(f"{found[r].seconds:.1f} s" for r in range(2)))
        return [found[0], found[1]]

    def finished(self) -> None:
        for ended in self.end(time.monotonic(), 120):
            assert ended.code == 0, ended.said

    def stopped(self, since: float) -> list[Ended]:
        """Both ranks' ends after a cut, with the checks that every such end has to stand."""
        ends = self.end(since, 2 * self.timeout + SLACK)
        nothing_half_written(self.run)
        return ends

    def said(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.logs)


def arguments(folder: Path, name: str) -> list[str]:
    recipe = text_recipe(folder, train={"steps": STEPS, "batch": 8, "checkpoint_every": 4, "validate_every": STEPS})
    return ["train", str(recipe), "--root", str(folder / "runs"), f"name={name}"]


def alone(folder: Path, name: str) -> None:
    """The same command in this process, to its end."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        main(arguments(folder, name))
    assert ended.value.code == 0, said.getvalue()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def losses(run: Path) -> dict[int, float]:
    """Loss of each step; of one that was done again, the last."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that is being written
                event = json.loads(line)
                if event.get("kind", event.get("event")) == "step":
                    found[event["step"]] = event["loss"]
    return found


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[int, float]:
    """Losses of the run in one process, with no network at all."""
    alone(folder, "undisturbed")
    found = losses(folder / "runs" / "undisturbed")
    assert list(found) == list(range(1, STEPS + 1))
    return found


def assert_same(run: Path, undisturbed: dict[int, float]) -> None:
    found = losses(run)
    assert list(found) == list(undisturbed)
    assert max(abs(found[s] - undisturbed[s]) for s in found) < 1e-6


# ---------------------------------------------------------------------------------------------- what TCP gets over


@pytest.mark.parametrize(
    ("name", "delay", "loss"), [("late", 0.03, 0.0), ("lossy", DELAY, 0.04)], ids=["30 ms late", "4% lost"]
)  # fmt: skip
def test_late_and_lost_packets_change_nothing(
    wire: Wire, folder: Path, undisturbed: dict[int, float], name: str, delay: float, loss: float
) -> None:
    wire.bend(delay=delay, loss=loss)
    TwoRanks(wire, folder, name).finished()
    assert wire.carried > 500
    assert wire.dropped > 0.01 * wire.carried if loss else wire.dropped == 0
    assert_same(folder / "runs" / name, undisturbed)


def test_a_cut_that_is_mended_in_time_changes_nothing(wire: Wire, folder: Path, undisturbed: dict[int, float]) -> None:
    ranks = TwoRanks(wire, folder, "mended")
    ranks.at_step(5)
    wire.bend(cut=True)
    time.sleep(TIMEOUT / 3)  # TCP asks again at twice the interval each time: what lasts half the time-out may be noticed too late
    assert max(losses(ranks.run)) < STEPS
    wire.bend(delay=DELAY)
    ranks.finished()
    assert wire.dropped > 0
    assert_same(ranks.run, undisturbed)


# ---------------------------------------------------------------------------------------------- what it does not


@pytest.mark.parametrize("how", ["cut", "unplugged"])
def test_both_ranks_name_the_one_that_is_cut_off_and_the_run_goes_on_afterwards(
    wire: Wire, folder: Path, undisturbed: dict[int, float], how: str
) -> None:
    ranks = TwoRanks(wire, folder, how)
    at = ranks.at_step(6)
    if how == "cut":
        wire.bend(cut=True)
    else:
        wire.unplug(1)
    zero, one = ranks.stopped(at)
    assert (zero.code, one.code) == (6, 6), ranks.said()
    assert "error: rank 0 of 2 failed while waiting for other ranks after step" in zero.said
    assert "Rank 1 no longer answers (last heartbeat after step" in zero.said
    assert "error: rank 1 of 2 failed while waiting for other ranks after step" in one.said
    assert f"Rank 0 no longer answers at {HOSTS[0]}:29500" in one.said
    assert "The last complete checkpoint is kept; run the same command again to resume from it." in one.said
    kept = latest_checkpoint(ranks.run / "checkpoints")
    assert kept is not None
    assert kept.step in (4, 8)
    if how == "cut":
        alone(folder, how)
        assert_same(ranks.run, undisturbed)
        assert '"resume"' in (ranks.run / "events.jsonl").read_text()


def test_a_cut_while_a_checkpoint_is_written_leaves_no_part_of_it(wire: Wire, folder: Path) -> None:
    wire.bend(delay=0.03)  # the ranks tell each other when they have written: it takes four packets, one after the other
    ranks = TwoRanks(wire, folder, "torn")
    ranks.at_step(7)
    place = ranks.run / "checkpoints"
    at = ranks.until(lambda: any(".tmp" in p.name for p in place.iterdir()))
    wire.bend(cut=True)
    for rank, ended in enumerate(ranks.stopped(at)):
        assert ended.code == 6, ended.said
        assert f"Rank {1 - rank} no longer answers" in ended.said
    assert "and the last checkpoint was not saved: timed out" in ranks.logs[0].read_text()
    kept = latest_checkpoint(place)
    assert kept is not None
    assert kept.step == 4
    assert [p.name for p in place.glob("step-*")] == ["step-000004"]


@pytest.mark.parametrize(
    ("packets", "code"), [(5, 5), (20, 5), (80, 6)], ids=["finding the meeting point", "connecting to each other", "before the first step"]
)
def test_a_cut_during_the_start_is_an_error_in_words(wire: Wire, folder: Path, packets: int, code: int) -> None:
    wire.bend(delay=DELAY, cut_after=packets)
    ranks = TwoRanks(wire, folder, f"start-{packets}", timeout=4)
    at = ranks.until(lambda: wire.dropped)
    for rank, ended in enumerate(ranks.stopped(at)):
        assert ended.code == code, ended.said
        last = ended.said.strip().splitlines()[-1]
        assert last.startswith(f"error: rank {rank} of 2 "), ended.said
        assert any(words in last for words in ("cannot connect to the others", "could not connect to the others", "no longer answers")), (
            last
        )


# ---------------------------------------------------------------------------------------------- the wire itself


def test_nothing_of_the_wire_outlives_it(wire: Wire, tmp_path: Path) -> None:
    asleep = wire.start(1, ["sleep", "60"], environment(), tmp_path / "log")
    while "sleep" not in Path(f"/proc/{asleep.pid}/comm").read_text():  # until then it is on its way into the namespace
        time.sleep(0.01)
    assert os.readlink(f"/proc/{asleep.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    names = [name for _, name in socket.if_nameindex()]
    assert DEVICE not in names  # it is in the namespaces, and not here
    wire.__exit__()
    assert asleep.poll() is not None
    assert wire.carrier.poll() == 0
    assert not any(os.path.exists(place) for place in wire.namespaces)
