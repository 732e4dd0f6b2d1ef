"""Seconds of one federated round, 1,001,364 parameters, three sites as processes: Tauon's coordinator and sites against Flower's message API.

A round: the coordinator sends the weights, each site makes one SGD step on 32 rows with an MLP of torch, sends its weights back, and the coordinator
takes their mean. Both ends on this machine, one thread each, over loopback.

    ours    `serve` and three processes with `join`: TLS, keys of sites; the process of a site lives as long as the run
    peer    Flower 1.41 as its documentation sets it up: `flower-superlink`, three `flower-supernode`, `flwr run` of an app with a `ClientApp` that builds
            the model and a `ServerApp` with its `FedAvg`; without TLS and without keys (`--insecure`), which favours it

Medians of ours over 20 rounds after 2, of the peer over 4 rounds after the first (in which programs are installed).

    python -m benchmarks.fed_round [--quick]      needs flwr 1.41; `ratio` is the peer's time over ours
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from pathlib import Path

SITES = ["a", "b", "c"]
FLOOR = 4.0
"""Of the peer's time over ours: ours takes at most a quarter."""
WORK = """
import torch
from torch import nn

def build():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 214), nn.ReLU(), nn.Linear(214, 10))

def step(model):
    x, y = torch.randn(32, 784), torch.randint(0, 10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""
"""The work of a site, the same text on both sides."""
CLIENT = """
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from benchapp.work import build, step

app = ClientApp()

@app.train()
def train(message: Message, context: Context):
    model = build()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    step(model)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 32})})
    return Message(content=content, reply_to=message)
"""
SERVER = """
import time
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from benchapp.work import build

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context):
    def after_round(number, arrays):
        with open({times!r}, "a") as file:
            file.write(f"{{number}} {{time.time()}}\\n")

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(build().state_dict()), num_rounds={rounds}, evaluate_fn=after_round)
"""
PROJECT = """
[project]
name = "benchapp"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "benchapp.server:app"
clientapp = "benchapp.client:app"

[tool.flwr.app.config]
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_site(port: str, folder: str, name: str) -> None:
    """A site's process."""
    from tauon.federated import Message
    from tauon.federated.flower import join

    work: dict[str, object] = {}
    exec(WORK, work)
    model = work["build"]()  # type: ignore[operator]

    class Trainer:
        def answer(self, message: Message) -> Message:
            model.load_state_dict(dict(message.tensors))
            work["step"](model)  # type: ignore[operator]
            return message.answer("trained", {"examples": 32}, {k: v.detach() for k, v in model.state_dict().items()})

    join(f"127.0.0.1:{port}", Trainer(), key=Path(folder) / f"{name}.key", authority=Path(folder) / "ca.crt")


def ours(rounds: int, folder: Path) -> list[float]:
    import torch

    from tauon.federated import Message
    from tauon.federated.flower import make_authority, make_server_certificate, make_site_key, serve

    work: dict[str, object] = {}
    exec(WORK, work)
    weights = {k: v.detach() for k, v in work["build"]().state_dict().items()}  # type: ignore[operator]
    make_authority(folder)
    make_server_certificate(folder, ["127.0.0.1"])
    (folder / "roster").write_text("".join(make_site_key(folder, name) + "\n" for name in SITES))
    seconds = []
    with processes() as started, serve("127.0.0.1:0", folder=folder, roster=folder / "roster") as coordinator:
        for name in SITES:
            command = [sys.executable, "-m", "benchmarks.fed_round", "--site", str(coordinator.port), str(folder), name]
            started.append(subprocess.Popen(command))
        coordinator.wait_for(3, timeout=60)
        for number in range(1, rounds + 3):
            start = time.perf_counter()
            nonce = secrets.token_hex(16)
            answers = coordinator.ask({name: Message("train", number, nonce, {}, weights) for name in SITES}, timeout=60)
            updates = [answer.tensors for answer in answers.values() if isinstance(answer, Message)]
            assert len(updates) == 3, answers
            weights = {name: torch.stack([u[name] for u in updates]).mean(0) for name in weights}
            seconds.append(time.perf_counter() - start)
    return seconds[2:]


def scripts() -> Path:
    """Folder of Flower's commands, which start each other by name."""
    for file in metadata.files("flwr") or []:
        if file.name == "flower-superlink":
            return Path(str(file.locate())).resolve().parent
    raise SystemExit("flwr 1.41 is not installed")


def peer(rounds: int, folder: Path) -> list[float]:
    app, times, port = folder / "app" / "benchapp", folder / "times", free_port()
    app.mkdir(parents=True)
    for name, text in (
        ("__init__", ""),
        ("work", WORK),
        ("client", CLIENT),
        ("server", SERVER.format(times=str(times), rounds=rounds)),
    ):
        (app / f"{name}.py").write_text(text)
    (app.parent / "pyproject.toml").write_text(PROJECT)
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environ = {
        **os.environ,
        "PATH": f"{scripts()}:{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }
    log = (folder / "flower.log").open("wb")
    with log, processes() as started:

        def start(*command: str) -> None:
            started.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=folder))

        start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        wait_for_port(port)
        for _ in SITES:
            start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
        done = subprocess.run(["flwr", "run", str(app.parent), "bench"], env=environ, capture_output=True, text=True, cwd=folder)
        give_up = time.monotonic() + 60 + 20 * rounds
        while not times.is_file() or len(times.read_text().splitlines()) < rounds + 1:
            if time.monotonic() > give_up or done.returncode:
                raise SystemExit(f"Flower made no rounds:\n{done.stdout}{done.stderr}\n{(folder / 'flower.log').read_text()[-3000:]}")
            time.sleep(0.2)
    stamps = [float(line.split()[1]) for line in times.read_text().splitlines()]
    return [b - a for a, b in pairwise(stamps[1:])]


def wait_for_port(port: int) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("flower-superlink did not start")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--site", nargs=3)
    options = parser.parse_args()
    if options.site:
        return run_site(*options.site)
    with tempfile.TemporaryDirectory() as mine, tempfile.TemporaryDirectory() as theirs:
        own = ours(5 if options.quick else 20, Path(mine))
        other = peer(3 if options.quick else 5, Path(theirs))
    a, b = statistics.median(own), statistics.median(other)
    print(f"ours {a:.3f} s a round ({min(own):.3f} to {max(own):.3f}), Flower {b:.3f} s ({min(other):.3f} to {max(other):.3f})")
    result = {"claim": "fed_round", "ours": round(a, 3), "peer": round(b, 3), "ratio": round(b / a, 1), "floor": FLOOR}
    print(json.dumps(result | {"unit": "s a round, 1M parameters, 3 sites"}))


if __name__ == "__main__":
    main()
