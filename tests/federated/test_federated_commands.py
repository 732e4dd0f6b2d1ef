"""`tauon federate keys`, `serve` and `join` as processes on loopback: a private site among them, a site with other preprocessing, another recipe."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from tauon.artifacts import latest_checkpoint, read_json
from tauon.cli.federate import federate_command
from tauon.federated.secagg import Identity

pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]
TAUON = [sys.executable, "-u", "-m", "tauon", "federate"]
NAMES = ["s0", "s1", "s2"]


class Processes:
    """Commands that run beside the test, with what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[str]]()

    def start(self, name: str, *words: str | Path) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            environ = os.environ | {"OMP_NUM_THREADS": "1"}
            self.running[name] = subprocess.Popen([*TAUON, *map(str, words)], stdout=log, stderr=subprocess.STDOUT, env=environ, text=True)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def until(self, name: str, pattern: str, seconds: float = 300) -> re.Match[str]:
        """Wait until a process printed what matches."""
        give_up = time.monotonic() + seconds
        while (found := re.search(pattern, self.said(name))) is None:
            assert self.running[name].poll() is None and time.monotonic() < give_up, self.said(name)[-3000:]
            time.sleep(0.1)
        return found

    def end(self, name: str, seconds: float = 300) -> int:
        return self.running[name].wait(seconds)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path)
    yield found
    for process in found.running.values():
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the data of a coordinator and three sites, a recipe, and keys."""
    rng = np.random.default_rng(0)
    for name, count in (("public", 150), *zip(NAMES, (300, 200, 120), strict=True)):
        x = rng.normal(size=(count, 4))
        rows = [",".join(f"{v:.4f}" for v in r) + f",{'yes' if r.sum() > 0 else 'no'}" for r in x]
        (tmp_path / f"{name}.csv").write_text("a,b,c,d,y\n" + "\n".join(rows) + "\n")
    recipe = {
        "name": "fed",
        "data": {
            "source": {"kind": "csv", "path": str(tmp_path / "public.csv"), "label": "y"}, "normalize": "none",
            "split": {"validation": "20%", "test": "20%"},
        },
        "task": "classification", "model": {"kind": "mlp", "hidden": [8]}, "optim": {"kind": "sgd", "lr": 0.1}, "train": {"epochs": 1, "batch": 16},
        "federate": {
            "rounds": 3, "sites": 3, "timeout": 60, "attempts": 50, "weighting": {"max_examples": 300}, "secure_aggregation": {},
        },
    }  # fmt: skip
    (tmp_path / "fed.yaml").write_text(yaml.safe_dump(recipe))
    keys = tmp_path / "keys"
    subprocess.run([*TAUON, "keys", "coordinator", "127.0.0.1", "--keys", str(keys)], check=True, capture_output=True)
    for name in NAMES:
        made = subprocess.run([*TAUON, "keys", "site", name, "--keys", str(tmp_path / name)], check=True, capture_output=True, text=True)
        (keys / "roster").write_text((keys / "roster").read_text() + made.stdout)
        (tmp_path / name / "ca.crt").write_bytes((keys / "ca.crt").read_bytes())
    return tmp_path


def serve(processes: Processes, place: Path, *more: str) -> str:
    processes.start(
        "coordinator", "serve", place / "fed.yaml", "--address", "127.0.0.1:0", "--keys", place / "keys", "--root", place / "runs", *more
    )
    return "127.0.0.1:" + processes.until("coordinator", r"serving on port (\d+)")[1]


def join(processes: Processes, place: Path, address: str, name: str, *more: str) -> None:
    words = ("join", address, place / "fed.yaml", "--name", name, "--data", place / f"{name}.csv", "--keys", place / name)
    processes.start(name, *words, "--root", place / f"runs-{name}", *more)


def command(*words: str | Path) -> None:
    """`tauon federate` in this process."""
    ended = CliRunner().invoke(federate_command, [str(w) for w in words])
    assert ended.exit_code == 0, (ended.output, ended.exception)


def test_three_sites_one_of_them_private_end_with_the_same_model(processes: Processes, place: Path) -> None:
    address = serve(processes, place)
    join(processes, place, address, "s0", "privacy={noise_multiplier: 1.0, delta: 1e-4}")
    for name in NAMES[1:]:
        join(processes, place, address, name)
    for name in ("coordinator", *NAMES):
        assert processes.end(name) == 0, processes.said(name)[-3000:]
    folders = [place / "runs" / "fed", *(place / f"runs-{name}" / "fed" for name in NAMES)]
    weights = [end.tensors("model") for folder in folders if (end := latest_checkpoint(folder / "checkpoints")) is not None]
    assert len(weights) == 4 and all(torch.equal(w[n], weights[0][n]) for w in weights for n in w)
    assert 0 < read_json(folders[1] / "privacy.json")["guarantee"]["epsilon"] < 20
    rounds = read_json(folders[0] / "federate.json")["rounds"]
    assert [r["round"] for r in rounds] == [1, 2, 3] and all(known == {} for r in rounds for known in r["sites"].values())
    assert all((folder / "evaluation.json").is_file() and (folder / "report.html").is_file() for folder in folders)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("data.normalize=standard", "preprocessing"), ("optim.lr=0.3", "another recipe"), ("model.hidden=[9]", "another recipe")],
)
def test_a_site_that_trains_something_else_is_refused_in_words(processes: Processes, place: Path, setting: str, message: str) -> None:
    address = serve(processes, place, "--wait-for", "1", "federate.secure_aggregation=null", "federate.attempts=1", "federate.timeout=20")
    join(processes, place, address, "s0", setting, "federate.secure_aggregation=null", "federate.attempts=1", "federate.timeout=20")
    give_up = time.monotonic() + 300
    while message not in processes.said("s0") + processes.said("coordinator"):
        assert time.monotonic() < give_up, processes.said("s0")[-2000:] + processes.said("coordinator")[-2000:]
        time.sleep(0.2)


def test_a_site_that_is_not_in_the_roster_is_refused(processes: Processes, place: Path) -> None:
    address = serve(processes, place)
    (place / "keys" / "roster").write_text("".join(line + "\n" for line in (place / "keys" / "roster").read_text().splitlines()[1:]))
    join(processes, place, address, "s0")
    assert processes.end("s0") not in (0, None) and "roster" in processes.said("s0")


def test_a_coordinator_without_data_trains_with_the_preprocessing_of_all_sites(processes: Processes, place: Path) -> None:
    tree = yaml.safe_load((place / "fed.yaml").read_text())
    tree["data"] = tree["data"] | {"normalize": "standard"} | {"source": {"kind": "csv", "path": str(place / "nothing.csv"), "label": "y"}}
    (place / "fed.yaml").write_text(yaml.safe_dump(tree))
    for name in NAMES:
        command("spec", place / "fed.yaml", "--data", place / f"{name}.csv", "--out", place / f"{name}.json")
        pins = [f"{n}={Identity.of(place / n / f'{n}.identity').public.hex()}" for n in NAMES]
        command("keys", "pin", *pins, "--keys", place / name)
    command("merge", *(place / f"{name}.json" for name in NAMES), "--out", place / "spec.json")
    strict = "federate.secure_aggregation.first_use=false"
    address = serve(processes, place, "--spec", str(place / "spec.json"), strict)
    for name in NAMES:
        join(processes, place, address, name, "--spec", str(place / "spec.json"), strict)
    for name in ("coordinator", *NAMES):
        assert processes.end(name) == 0, processes.said(name)[-3000:]
    folders = [place / "runs" / "fed", *(place / f"runs-{name}" / "fed" for name in NAMES)]
    ends = [end for folder in folders if (end := latest_checkpoint(folder / "checkpoints")) is not None]
    first = ends[0].tensors("model")
    assert len(ends) == 4 and all(torch.equal(t, first[n]) for end in ends for n, t in end.tensors("model").items())
    assert all(end.state["preprocess"] == ends[0].state["preprocess"] for end in ends)
    found = read_json(folders[0] / "federate.json")
    assert len(found["rounds"]) == 3 and found["sites"]["all sites"]["metrics"]["accuracy"] > 0.5
    assert not (folders[0] / "evaluation.json").exists() and (folders[0] / "report.html").is_file()
    assert all((folder / "evaluation.json").is_file() for folder in folders[1:])
    assert not any("is pinned for the first time" in processes.said(name) for name in NAMES)


def test_both_ends_stop_at_the_first_signal_while_they_wait_for_each_other(processes: Processes, place: Path) -> None:
    address = serve(processes, place, "--wait", "1h")
    processes.until("coordinator", "waiting for 3 sites")
    join(processes, place, address, "s0")
    processes.until("s0", "joined the coordinator")
    for name, number in (("s0", signal.SIGINT), ("coordinator", signal.SIGTERM)):
        processes.running[name].send_signal(number)
        assert processes.end(name, 30) == 130, processes.said(name)[-2000:]
    assert "left the federation" in processes.said("s0") and "continues from the last checkpoint" in processes.said("coordinator")


def test_a_site_may_be_two_processes(processes: Processes, place: Path) -> None:
    plain = ("federate.secure_aggregation=null", "federate.rounds=2")
    address = serve(processes, place, "--wait-for", "1", *plain)
    join(processes, place, address, "s0", "--on", "local:2", *plain)
    for name in ("coordinator", "s0"):
        assert processes.end(name) == 0, processes.said(name)[-3000:]
    ends = [latest_checkpoint(place / runs / "fed" / "checkpoints") for runs in ("runs", "runs-s0")]
    first, second = (end.tensors("model") for end in ends if end is not None)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert len(list((place / "runs-s0/fed/logs").glob("rank-*.log"))) == 2
