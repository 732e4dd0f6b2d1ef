"""Groups of processes that live side by side and take turns, so that all of them see the same machine. For the benchmarks of layouts.

Each group trains the same GPT on the same random tokens, on a layout of its own. Who waits, sleeps.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

SEQ, VOCAB = 256, 8192
SIZES = {"kind": "gpt", "layers": 6, "width": 320, "heads": 5, "vocab": VOCAB, "seq_len": SEQ, "tied": True}
"""10 million parameters."""


@dataclass(frozen=True)
class Setting:
    """What a group trains, and how."""

    processes: int
    threads: int
    layout: dict[str, int] = field(default_factory=dict)
    batch: int = 16
    """Examples of a step, all processes together."""
    sizes: dict[str, Any] = field(default_factory=lambda: dict(SIZES))
    private: bool = False
    """Clipped by example and noised."""


class Tokens:
    """Random tokens: what is in them costs nothing and changes nothing here."""

    def __init__(self, batch: int, rank: int, world: int) -> None:
        self.batch, self.rank, self.share = batch, rank, batch // world

    def batch_at(self, step: int) -> Any:
        import torch

        from tauon.types import Batch

        ids = torch.randint(0, VOCAB, (self.batch, SEQ + 1), generator=torch.Generator().manual_seed(step))
        return Batch(ids[:, :-1], ids[:, 1:], torch.ones(self.batch, SEQ)).rows(self.rank * self.share, (self.rank + 1) * self.share)


def make_job(setting: Setting, rank: int) -> Any:
    """The job of one rank; the process group is there already."""
    import torch

    from tauon.config import parse
    from tauon.distributed import Layout, Mesh, MeshParallel, World
    from tauon.models import ModelConfig
    from tauon.optim import AdamWConfig
    from tauon.plan import Plan, weights_are_few
    from tauon.tasks import LanguageModelling
    from tauon.train import JobConfig, TrainConfig, build_job
    from tauon.types import DataSpec

    mesh = Mesh(Layout(**setting.layout), World(rank, setting.processes, rank, setting.processes))
    share = setting.batch // mesh.layout.data
    plan = Plan(10**6, torch.device("cpu"), "fp32", False, share, 1, 1, setting.threads)
    config = TrainConfig(steps=10**6, batch=setting.batch, compile=False, precision="fp32")
    source = Tokens(setting.batch, mesh.data_rank, mesh.layout.data)
    spec, model = DataSpec(vocab=VOCAB, seq_len=SEQ), parse(ModelConfig, setting.sizes)
    plan.reshard_after_forward = not weights_are_few(model.resolve(spec), plan.device, mesh.layout, setting.processes)
    job = build_job(JobConfig(model, AdamWConfig(), config, LanguageModelling(), spec, 0), source, plan, mesh=mesh, parallel=MeshParallel())
    job.model.train()
    return _private(job, setting.batch) if setting.private else job


def _private(job: Any, batch: int) -> Any:
    from tauon.privacy import make_private
    from tauon.privacy.clipped import FlatClipping
    from tauon.privacy.noise import Constant, NoisePlan, NoiseSource

    return make_private(
        job, FlatClipping(), NoisePlan(Constant(), 1.0, job.policy.total_steps), NoiseSource.secure(), expected=lambda step: batch
    )


def steps(job: Any, n: int) -> dict[str, float]:
    """Take `n` steps: their seconds, the last loss, and the bytes of what this process holds right after a backward pass."""
    from tauon.distributed import local_part
    from tauon.train import train_step

    held = [0]
    functions = job.functions

    def look(job: Any) -> None:
        functions.exchange(job)
        tensors = [t for p in job.model.parameters() for t in (p, p.grad, *job.optimizer.state.get(p, {}).values()) if t is not None]
        held[0] = sum(local_part(t).numel() * t.element_size() for t in tensors)

    began = time.perf_counter()
    metrics: dict[str, Any] = {}
    for i in range(n):
        if i == n - 1:
            job.functions = replace(functions, exchange=look)
        metrics = train_step(job, job.loader.batch_at(job.step))
    job.functions = functions
    return {"seconds": time.perf_counter() - began, "loss": metrics["loss"], "held": float(held[0])}


def _rank(rank: int, port: int, setting: Setting, act: Callable[..., Any], pipe: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "GOMP_SPINCOUNT": "10000"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(setting.processes)}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(setting.threads)
    if setting.processes > 1:
        dist.init_process_group("gloo", rank=rank, world_size=setting.processes)
    job = make_job(setting, rank)
    while True:
        order = pipe.recv()
        if order is None:
            break
        if setting.processes > 1:
            dist.barrier()
        pipe.send(act(job, *order))
    if setting.processes > 1:
        dist.destroy_process_group()


class Ranks:
    """Processes of one setting. `turn(...)` has every rank call `act(job, ...)`, by default `steps(job, n)`."""

    def __init__(self, setting: Setting, act: Callable[..., Any] = steps) -> None:
        self.setting = setting
        context = multiprocessing.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.pipes, self.processes = [], []
        os.environ["OMP_NUM_THREADS"] = str(setting.threads)
        for rank in range(setting.processes):
            mine, theirs = context.Pipe()
            process = context.Process(target=_rank, args=(rank, port, setting, act, theirs), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)

    def turn(self, *order: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def take_turns(ours: Setting, peer: Setting, rounds: int, block: int) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Two groups, `rounds` times `block` steps each in turn, after one round that warms up.

    (seconds of each round, last answers of all ranks), both by `ours` and `peer`.
    """
    groups = {"ours": Ranks(ours), "peer": Ranks(peer)}
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    last: dict[str, list[dict[str, float]]] = {}
    try:
        for number in range(rounds + 1):
            for name in list(groups) if number % 2 else list(groups)[::-1]:
                last[name] = groups[name].turn(block)
                if number:
                    seconds[name].append(max(a["seconds"] for a in last[name]))
    finally:
        for group in groups.values():
            group.close()
    return seconds, last
