"""Workers on this machine: they meet, die and come back, stop and save, fail with one error; nothing listens to the network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from places import RECIPE

from tauon.config import parse
from tauon.errors import Interrupted, LaunchError
from tauon.launch import Job, LaunchConfig, WorkerFailed, launch

pytestmark = [pytest.mark.distributed, pytest.mark.long]
STANDIN = Path(__file__).parent / "standin.py"


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    left = [pid for pid in (started(path)["pid"] for path in tmp_path.glob("started-*.json")) if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def started(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


class Told(list[tuple[str, str]]):
    def __call__(self, kind: str, *, message: str) -> None:
        self.append((kind, message))

    @property
    def warnings(self) -> list[str]:
        return [message for kind, message in self if kind == "warning"]


def run(folder: Path, *options: str, **section: Any) -> Told:
    told = Told()
    job = Job("toy", "train", RECIPE, folder / "runs", options=options, words=(sys.executable, str(STANDIN), str(folder)))
    launch(parse(LaunchConfig, {"kind": "local", "workers": 2, "timeout": 30, "grace": 10} | section), job, on_event=told)
    return told


def when(condition: Callable[[], bool], then: Callable[[], None], seconds: float = 60) -> threading.Thread:
    """`then`, in a thread, as soon as `condition` holds."""

    def watch() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                then()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def log(folder: Path, rank: int) -> str:
    return (folder / "runs/toy/logs" / f"rank-{rank}.log").read_text()


def test_workers_meet_with_the_environment_of_torchrun(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "3", env={"OF_THE_USER": "x y"})
    for rank in (0, 1):
        found = started(tmp_path / f"started-{rank}-0.json")
        env = found["env"]
        assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == (str(rank), "2", str(rank), "2")
        assert env["MASTER_ADDR"] == "127.0.0.1" and env["TAUON_TIMEOUT_S"] == "30" and env["OF_THE_USER"] == "x y"
        assert found["threads"] == 1
    out = capfd.readouterr().out
    assert "\ndone, rank 0 of 2" in out and "[rank 1] done, rank 1 of 2" in out
    assert re.match(r"---- worker 1 of 2, process \d+, restart 0", log(tmp_path, 1))
    assert "OF_THE_USER" not in os.environ, "the launcher's own environment is as it was"


@pytest.mark.slow
def test_each_worker_is_kept_on_cores_of_its_own(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    run(tmp_path, "1", pin=True)
    half = len(cores) // 2
    assert started(tmp_path / "started-0-0.json")["cpus"] == cores[:half]
    assert started(tmp_path / "started-1-0.json")["cpus"] == cores[half : 2 * half]


def test_a_killed_worker_costs_a_restart_and_the_port_may_be_fixed(tmp_path: Path) -> None:
    port = free_port()
    told = run(tmp_path, "20", "0.01", "crash=1@5", port=port)
    assert (tmp_path / "step.txt").read_text() == "20"
    assert len(told.warnings) == 1 and "rank 1 was killed by SIGKILL" in told.warnings[0] and "restart 1 of 3" in told.warnings[0]
    assert re.search(r"restart 1.*\n.*going on at step [45]", log(tmp_path, 0))
    assert started(tmp_path / "started-0-1.json")["env"]["MASTER_PORT"] == str(port)


@pytest.mark.slow
def test_a_worker_killed_from_outside_is_started_again(tmp_path: Path) -> None:
    first = tmp_path / "started-1-0.json"
    killer = when(lambda: (tmp_path / "step.txt").exists(), lambda: os.kill(started(first)["pid"], signal.SIGKILL))
    run(tmp_path, "200", "0.02")
    killer.join()
    assert (tmp_path / "step.txt").read_text() == "200" and (tmp_path / "started-1-1.json").exists()


def test_what_cannot_get_better_is_not_tried_again_and_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerFailed, match=r"\[rank 1\] the recipe is wrong\n  - in two places") as err:
        run(tmp_path, "3", "0", "exit=1@2")
    assert err.value.exit_code == 2
    assert not (tmp_path / "started-0-1.json").exists()
    assert "the recipe is wrong" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_bug_of_all_ranks_is_one_traceback_after_the_restarts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerFailed, match="after 1 restart\nTraceback") as err:
        run(tmp_path, "3", "0", "raise=1", max_restarts=1)
    assert err.value.exit_code == 1 and str(err.value).count("Traceback") == 1
    assert "every rank fails" in str(err.value) and "rank-" in str(err.value)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_with_min_workers_the_rest_goes_on_when_restarts_are_used_up(tmp_path: Path) -> None:
    told = run(tmp_path, "20", "0.01", "crash=1@5", max_restarts=0, min_workers=1)
    assert (tmp_path / "step.txt").read_text() == "20"
    assert "continuing with 1 workers" in told.warnings[0]
    assert "with 1 workers" in log(tmp_path, 0)


def test_a_port_in_use_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match=r"launch.port \d+ cannot be used: Address already in use"):
            run(tmp_path, "3", port=taken.getsockname()[1])
    assert not list(tmp_path.glob("started-*"))


@pytest.mark.slow
def test_nothing_listens_to_the_network(tmp_path: Path) -> None:
    found: list[str] = []

    def look() -> None:
        pids = {os.getpid(), *(started(p)["pid"] for p in tmp_path.glob("started-*.json"))}
        found.extend(listeners(pids))

    looker = when(lambda: (tmp_path / "step.txt").exists(), look)
    run(tmp_path, "60", "0.02")
    looker.join()
    assert found and all(address == "127.0.0.1" for address in found), found


def listeners(pids: set[int]) -> list[str]:
    """Addresses at which these processes listen, from /proc."""
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":  # LISTEN
                raw = bytes.fromhex(words[1].split(":")[0])
                sockets[words[9]] = socket.inet_ntop(socket.AF_INET, raw[::-1]) if len(raw) == 4 else f"v6 {raw.hex()}"
    addresses = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
                    if match and match[1] in sockets:
                        addresses.append(sockets[match[1]])
    return addresses


# ---------------------------------------------------------------------------------------------- as a process of its own

LAUNCHER = """
import sys
from pathlib import Path
from tauon.config import parse
from tauon.errors import TauonError
from tauon.launch import Job, LaunchConfig, launch
folder = Path(sys.argv[1])
job = Job("toy", "train", "name: toy", folder / "runs", options=tuple(sys.argv[3:]), words=(sys.executable, sys.argv[2], str(folder)))
try:
    launch(parse(LaunchConfig, {"kind": "local", "workers": 2, "grace": 3}), job)
except TauonError as err:
    print(err, file=sys.stderr)
    sys.exit(err.exit_code)
"""


def launcher(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCHER, str(folder), str(STANDIN), *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_reaches_all_workers_which_save(tmp_path: Path, number: int) -> None:
    with launcher(tmp_path, "100000", "0.01") as process:
        sender = when(lambda: (tmp_path / "step.txt").exists(), lambda: process.send_signal(number))
        out, err = process.communicate(timeout=60)
        sender.join()
    assert process.returncode == Interrupted.exit_code, err
    assert "all 2 workers saved" in err
    step = (tmp_path / "step.txt").read_text()
    assert f"saved at step {step}\n" in out and f"[rank 1] saved at step {step}\n" in out


@pytest.mark.slow
def test_a_worker_that_does_not_listen_is_killed_in_the_end(tmp_path: Path) -> None:
    with launcher(tmp_path, "100000", "0.01", "deaf=1") as process:
        sender = when(lambda: (tmp_path / "step.txt").exists(), lambda: process.send_signal(signal.SIGTERM))
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
        sender.join()
    assert process.returncode == Interrupted.exit_code
    assert "-9" in err and "launch.grace" in err and time.monotonic() - began < 40


@pytest.mark.slow
def test_workers_do_not_outlive_a_launcher_that_was_killed(tmp_path: Path) -> None:
    with launcher(tmp_path, "100000", "0.01") as process:
        killer = when(lambda: (tmp_path / "step.txt").exists(), process.kill)
        process.communicate(timeout=60)
        killer.join()
    pids = [started(p)["pid"] for p in tmp_path.glob("started-*.json")]
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    assert "saved at step" in log(tmp_path, 0), "they were asked, not killed"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
