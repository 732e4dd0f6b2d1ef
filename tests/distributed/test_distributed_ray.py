"""The parameter server with Ray's processes: what threads cannot stand for. One Ray for the whole file."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served_work import ToyWork

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.distributed import ParameterServer
from tauon.distributed.ray_session import import_ray, ray_session
from tauon.errors import MissingExtra, RunError, TrainingError
from tauon.optim import OptimConfig
from tauon.pipeline import run as run_recipe
from tauon.recipe import load_recipe
from tauon.tracking import read_events, timeline
from tauon.train import TrainJob, job_state, train, use_parameter_server
from toy import table_recipe, text_recipe

pytest.importorskip("ray", reason="the parameter server needs tauon[ray]")
pytestmark = [
    pytest.mark.distributed,
    # Ray leaves the pipes of the processes that it starts to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ADAMW = parse(OptimConfig, {"kind": "adamw", "lr": 1e-2})


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Eight CPUs by name, whatever there are."""
    here = [str(Path(__file__).parent), *(p for p in sys.path if p)]  # a worker finds the jobs of these tests by name
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(here))
        with ray_session(None, cpus=8) as module:
            assert signal.getsignal(signal.SIGTERM) is before  # Ray sets its own
            yield module
    assert signal.getsignal(signal.SIGTERM) is before
    gc.collect()  # see above: here, not in another test


def config(**settings: Any) -> ParameterServer:
    return parse(ParameterServer, {"threads": 1, "timeout": 800} | settings)


def train_served(
    work: ToyWork, parallel: ParameterServer, each: Any = None, on_event: Any = print
) -> tuple[TrainJob, list[dict[str, Any]]]:
    job, log = work.alone(), []
    servers = use_parameter_server(job, parallel, work.optim, work, on_note=on_event)

    def hook(job: TrainJob, info: Any) -> None:
        log.append({**info.metrics})
        if each is not None:
            each(servers, info.step)

    with servers:
        train(job, hooks=[hook])
        job_state(job)
    return job, log


def equal(a: TrainJob, b: TrainJob) -> bool:
    one, other = (job_state(j)[0] for j in (a, b))
    return all(torch.equal(one[g][k], other[g][k]) for g in ("model", "optim") for k in one[g])


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 5])
def test_processes_killed_change_no_bit_of_what_one_process_computes(ray: Any, kills: int) -> None:
    """kill -9 of a worker, and of servers so many times."""
    torch.set_num_threads(1)
    work = ToyWork("gpt", ADAMW, steps=4 + 4 * kills, microbatch=4)  # two microbatches of one process are the two workers' shares
    alone = work.alone()
    losses: list[float] = []
    train(alone, hooks=[lambda j, info: losses.append(info.metrics["loss"])])
    told: list[str] = []

    def each(servers: Any, step: int) -> None:
        if step in (3, 7, 11, 15, 19)[:kills]:
            os.kill(ray.get(servers.group.actors[step // 4 % 2].ping.remote()), signal.SIGKILL)
        if step == 5:
            os.kill(next(m.about["pid"] for m in servers.pool.workers.values() if m.about), signal.SIGKILL)

    job, log = train_served(work, config(workers=2, servers=2, replicas=1), each, told.append)
    assert [m["loss"] for m in log] == losses and equal(job, alone)
    assert sum("server" in t for t in told) == kills and sum("worker" in t for t in told) == 1, told


def test_ray_s_processes_listen_on_loopback_alone(ray: Any) -> None:
    assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    other = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    for address in other[:1]:
        with socket.socket() as s:
            s.settimeout(2)
            assert s.connect_ex((address, port)) != 0


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here_with_its_number(ray: Any) -> None:
    job = ToyWork("mlp", ADAMW).alone()
    work = ToyWork("mlp", ADAMW, breaks="no such disk")
    with (
        pytest.raises(TrainingError, match=r"worker \d: RuntimeError: no such disk"),
        use_parameter_server(job, config(workers=1), ADAMW, work),
    ):
        train(job)


def losses_of(run: Any) -> list[float]:
    return [e["loss"] for e in timeline(read_events(run.events_path)) if e["kind"] == "step"]


@pytest.mark.slow
def test_a_recipe_trains_validates_resumes_and_evaluates_as_in_one_process(ray: Any, tmp_path: Path) -> None:
    path = text_recipe(tmp_path)
    root = tmp_path / "runs"
    served_ = ["parallel={kind: parameter-server, workers: 2, servers: 2, threads: 1}"]
    one = run_recipe(load_recipe(path, ["name=one"]), root=root)
    two = run_recipe(load_recipe(path, ["name=two", *served_]), root=root)
    np.testing.assert_allclose(losses_of(two), losses_of(one), rtol=1e-5)
    assert read_json(two.folder / "evaluation.json")["metrics"].keys() == read_json(one.folder / "evaluation.json")["metrics"].keys()
    steps = [e for e in read_events(two.events_path) if e["kind"] == "step"]
    assert all(e["sent_bytes"] > 0 for e in steps)


@pytest.mark.slow
def test_the_command_line_trains_with_a_ray_of_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = table_recipe(tmp_path)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        "TAUON_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", "from tauon.cli import main; main()", "train", str(path), "--root", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(
        [*command, "parallel={kind: parameter-server, mode: async, push: bf16}"], env=env, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    import json

    assert all(json.loads(line) for line in done.stdout.splitlines())
    time.sleep(1)
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


@pytest.mark.slow
def test_digits_learned_asynchronously_reach_what_synchronous_training_reaches(ray: Any, tmp_path: Path) -> None:
    """scikit-learn's digits, logistic regression; band: two points of accuracy."""
    sections = {
        "data": {"source": {"kind": "sklearn", "name": "digits"}, "normalize": "standard", "split": {"validation": "10%", "test": "20%"}},
        "model": "logistic",
        "optim": {"kind": "adam", "lr": 3e-3},
        "train": {"steps": 300, "batch": 64, "checkpoint_every": 300, "validate_every": 300},
    }
    accuracy = {}
    for mode in ("sync", "async", "{mode: ssp, staleness: 2}"):
        parallel = f"{{kind: parameter-server, threads: 1, {mode.strip('{}') if ':' in mode else f'mode: {mode}'}}}"
        path = table_recipe(tmp_path, **sections)
        done = run_recipe(
            load_recipe(path, [f"name={mode.strip('{').split(':')[0].replace('mode', 'ssp')}", f"parallel={parallel}"]), root=tmp_path
        )
        accuracy[mode] = read_json(done.folder / "evaluation.json")["metrics"]["accuracy"]["value"]
    assert accuracy["sync"] > 0.93 and all(abs(a - accuracy["sync"]) <= 0.02 for a in accuracy.values()), accuracy


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mnist_learned_asynchronously_stays_within_half_a_point_of_synchronous(
    ray: Any, tmp_path: Path, mirror: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    accuracy = {}
    for mode in ("sync", "async"):
        settings = [
            f"name=mnist-{mode}",
            "train.epochs=5",
            "data.augment=[]",
            f"parallel={{kind: parameter-server, threads: 1, mode: {mode}}}",
        ]
        done = run_recipe(load_recipe("mnist-mlp", settings), root=tmp_path)
        accuracy[mode] = read_json(done.folder / "evaluation.json")["metrics"]["accuracy"]["value"]
    assert accuracy["sync"] > 0.965 and abs(accuracy["sync"] - accuracy["async"]) <= 0.005, accuracy


# ------------------------------------------------------------------------------------------------ no cluster, or another


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tauon\[ray\]'"):
        import_ray()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0"), r"another version .*Ray: 2.9.0.* Install ray=="),
        (ConnectionError("Could not find any running Ray instance"), r"no Ray cluster answers there .*ray start --head"),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    module = import_ray()

    def init(**settings: Any) -> None:
        raise raised

    monkeypatch.setattr(module, "is_initialized", lambda: False)
    monkeypatch.setattr(module, "init", init)
    with pytest.raises(RunError, match=message), ray_session("10.0.0.1:6379", cpus=1):
        pass
