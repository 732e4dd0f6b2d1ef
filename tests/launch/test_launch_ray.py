"""Workers on Ray: started, started again, stopped; a cluster that is not there, or of another version, in words."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tauon.launch.ray import refusal
from tauon.launch.ray_relay import Relay

STANDIN = Path(__file__).parent / "standin.py"
on_ray = [pytest.mark.distributed, pytest.mark.slow]
LAUNCHER = """
import json, sys
from pathlib import Path
from tauon.config import parse
from tauon.errors import TauonError
from tauon.launch import Job, LaunchConfig, launch
folder, section = Path(sys.argv[1]), json.loads(sys.argv[3])
job = Job("toy", "train", "name: toy", folder / "runs", options=tuple(sys.argv[4:]), words=(sys.executable, sys.argv[2], str(folder)))
try:
    launch(parse(LaunchConfig, section), job, on_event=lambda kind, message: print(f"{kind}: {message}"))
except TauonError as err:
    print(f"{type(err).__name__}: {err}", file=sys.stderr)
    sys.exit(err.exit_code)
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [name for name in ("ray", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'tauon[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def start(folder: Path, *options: str, **section: Any) -> subprocess.Popen[str]:
    """A launcher in a process of its own: Ray leaves files open, which are warnings, and so errors, in ours."""
    section = {"kind": "ray", "workers": 2, "timeout": 30, "grace": 10} | section
    command = [sys.executable, "-W", "ignore", "-c", LAUNCHER, str(folder), str(STANDIN), json.dumps(section), *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(folder: Path, *options: str, **section: Any) -> tuple[int, str, str]:
    with start(folder, *options, **section) as process:
        out, err = process.communicate(timeout=180)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("said", "address", "words"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11",
            "h:1",
            "another version than this machine: Version mismatch",
        ),
        ("Failed to connect to Ray cluster at h:1.", "h:1", "no Ray answers at h:1"),
        ("\n", None, "Ray could not be started here: no reason given"),
    ],
)
def test_why_ray_could_not_be_joined_is_said_in_words(said: str, address: str | None, words: str) -> None:
    assert words in refusal(said, address)


def test_the_relay_counts_groups_and_says_when_to_stop() -> None:
    relay = Relay()
    assert relay.begin(0, 2) == 0 and relay.begin(1, 2) == 0
    assert relay.say(1, ["hello"]) is None
    assert relay.ended(1, -9) is False, "Ray Train is to start it again"
    assert relay.begin(0, 2) == 1
    assert [e["kind"] for e in relay.take()] == ["lines", "restart"] and relay.take() == []
    assert relay.ended(1, 2) is True and relay.say(0, []) == 0, "what cannot get better stops the others"
    assert relay.ended(0, 130) is True
    assert relay.codes() == {1: 2, 0: 130}
    relay = Relay()
    relay.ask_to_stop()
    first, second = relay.say(0, []), relay.say(1, [])
    assert first is not None and second is not None and 0 < second <= first, "both at one moment, whenever they ask"


@pytest.mark.usefixtures("environment")
class TestOnRay:
    pytestmark = on_ray

    def test_workers_meet_and_a_killed_one_is_started_again(self, tmp_path: Path) -> None:
        code, out, err = run(tmp_path, "20", "0.01", "crash=1@5")
        assert code == 0 and (tmp_path / "step.txt").read_text() == "20", err
        assert "rank 1 was killed by SIGKILL: restarting all workers from the last checkpoint (restart 1 of 3)" in out
        assert "\ndone, rank 0 of 2" in out and "[rank 1] done, rank 1 of 2" in out
        assert "restart 1" in (tmp_path / "runs/toy/logs/rank-1.log").read_text()

    def test_what_cannot_get_better_is_not_tried_again(self, tmp_path: Path) -> None:
        code, out, err = run(tmp_path, "3", "0", "exit=1@2")
        assert code == 2 and "WorkerFailed: [rank 1] the recipe is wrong" in err and "the recipe is wrong" not in out
        assert not (tmp_path / "started-1-1.json").exists()

    def test_a_signal_reaches_all_workers_which_save(self, tmp_path: Path) -> None:
        with start(tmp_path, "100000", "0.02") as process:
            deadline = time.monotonic() + 120
            while not (tmp_path / "step.txt").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "Interrupted: SIGTERM: all 2 workers saved" in err
        assert f"saved at step {(tmp_path / 'step.txt').read_text()}" in (tmp_path / "runs/toy/logs/rank-1.log").read_text()

    def test_two_ctrl_c_say_that_workers_were_at_work_and_how_far(self, tmp_path: Path) -> None:
        with start(tmp_path, "100000", "0.02", "deaf=1") as process:
            while not (tmp_path / "step.txt").exists() and process.poll() is None:
                time.sleep(0.1)
            (tmp_path / "runs/toy/checkpoints/step-000004").mkdir(parents=True)
            for _ in range(2):  # a second one while the first is looked at would be one and the same
                process.send_signal(signal.SIGINT)
                time.sleep(1)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and re.search(r"[12] of 2 were still running \(the last checkpoint is of step 4\)", err), err

    def test_more_than_the_cluster_has_is_refused(self, tmp_path: Path) -> None:
        code, _, err = run(tmp_path, "3", cpus_per_worker=4000)
        assert code == 8 and "do not fit into this Ray" in err

    def test_no_cluster_at_the_address_is_an_error(self, tmp_path: Path) -> None:
        code, _, err = run(tmp_path, "3", address="127.0.0.1:1")
        assert code == 8 and "no Ray answers at 127.0.0.1:1" in err

    def test_a_cluster_of_another_version_is_an_error(self, tmp_path: Path) -> None:
        code = (
            "import os; os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'; os.environ['RAY_USAGE_STATS_ENABLED'] = '0'; import ray, sys\n"
            "print(ray.init(address='local', num_cpus=1, include_dashboard=False).address_info['gcs_address'], flush=True); sys.stdin.read()"
        )
        ours = (
            "import os; os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'; import ray, sys; ray.__version__ = '0.0.1'\n"
            "from tauon.launch.ray import connected\n"
            "with connected(sys.argv[1]): pass"
        )
        command = [sys.executable, "-W", "ignore", "-c", code]
        with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as cluster:
            assert cluster.stdout is not None
            address = cluster.stdout.readline().strip()
            found = subprocess.run([sys.executable, "-W", "ignore", "-c", ours, address], text=True, capture_output=True, timeout=60)
            cluster.communicate("", timeout=60)
        assert "LaunchError" in found.stderr and "has another version than this machine" in found.stderr, found.stderr
        assert "0.0.1" in found.stderr and "pip install ray==" in found.stderr
