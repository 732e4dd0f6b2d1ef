"""Tokens a second of the synchronous parameter server on Ray against DDP on gloo: 2 workers, one thread each, a GPT of 10 million parameters.

The same model, batches, loss, optimizer (AdamW, fused) and clipping. The peer is a plain loop around `DistributedDataParallel` in two
processes. Both sets of processes live at once and take turns in blocks of steps, so that both see the same machine; who waits, sleeps. A
block of ours ends when the servers have applied its last update. 1,024 tokens a worker and step, fp32.

    python -m benchmarks.ps_vs_ddp [--quick] [--servers N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any

WORKERS, BATCH, SEQ, VOCAB = 2, 16, 128, 8192
TOKENS = BATCH * SEQ
SIZES = {"kind": "gpt", "layers": 6, "width": 320, "heads": 5, "vocab": VOCAB, "seq_len": SEQ, "tied": True}


@dataclass(frozen=True)
class Tokens:
    """Random tokens: what is in them costs nothing and changes nothing here."""

    share: int = 0
    shares: int = 1

    def batch_at(self, step: int) -> Any:
        import torch

        from tauon.types import Batch

        ids = torch.randint(0, VOCAB, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(step))
        rows = BATCH // self.shares
        return Batch(ids[:, :-1], ids[:, 1:], torch.ones(BATCH, SEQ)).rows(self.share * rows, (self.share + 1) * rows)


@dataclass(frozen=True)
class Work:
    """The job, as the driver and each worker build it."""

    def job(self, worker: int) -> Any:
        import torch

        from tauon.config import parse
        from tauon.models import ModelConfig
        from tauon.optim import AdamWConfig
        from tauon.plan import Plan
        from tauon.tasks import LanguageModelling
        from tauon.train import JobConfig, TrainConfig, build_job
        from tauon.types import DataSpec

        plan = Plan(10**6, torch.device("cpu"), "fp32", False, BATCH, 1, 1, 1)
        spec, config = DataSpec(vocab=VOCAB, seq_len=SEQ), TrainConfig(steps=10**6, batch=BATCH, compile=False, precision="fp32")
        return build_job(JobConfig(parse(ModelConfig, SIZES), AdamWConfig(), config, LanguageModelling(), spec, 0), Tokens(), plan)

    def source(self, share: int, shares: int) -> Tokens:
        return Tokens(share, shares)


def ddp_rank(rank: int, port: int, pipe: Any) -> None:
    """The peer: told a number of steps, answers with their seconds and the last loss."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    job = Work().job(rank)
    task = job.task

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model

        def forward(self, batch: Any) -> Any:
            total, weight = task.loss(self.model, batch)
            return total / weight

    model = DistributedDataParallel(WithLoss(), gradient_as_bucket_view=True)
    source, step = Tokens(rank, WORKERS), 0
    while steps := pipe.recv():
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            loss = model(source.batch_at(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            factor = job.policy.schedule.factor(step, job.policy.total_steps)
            for group in job.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            step += 1
            value = loss.item()
        pipe.send((time.perf_counter() - began, value))
    dist.destroy_process_group()


class Peer:
    """Two DDP processes that take turns with ours."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(WORKERS):
            mine, theirs = context.Pipe()
            process = context.Process(target=ddp_rank, args=(rank, port, theirs), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)

    def steps(self, n: int) -> tuple[float, float]:
        for pipe in self.pipes:
            pipe.send(n)
        answers = [pipe.recv() for pipe in self.pipes]
        return max(a[0] for a in answers), statistics.mean(a[1] for a in answers)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.processes:
            process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 8")
    parser.add_argument("--servers", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    import torch

    from benchmarks.ps_vs_ddp import Work  # by a name that the workers know, not as __main__
    from tauon.distributed import ParameterServer
    from tauon.optim import AdamWConfig
    from tauon.train import train_step, use_parameter_server

    torch.set_num_threads(1)
    rounds, block = (3 if args.quick else 8), 6
    work = Work()
    job = work.job(-1)
    parameters = sum(p.numel() for p in job.model.parameters())
    peer = Peer()
    servers = use_parameter_server(job, ParameterServer(workers=WORKERS, servers=args.servers, threads=1), AdamWConfig(), work)
    ours_s: list[float] = []
    peer_s: list[float] = []
    with servers:

        def ours(n: int) -> tuple[float, float]:
            began = time.perf_counter()
            for _ in range(n):
                metrics = train_step(job, job.loader.batch_at(job.step))
            servers.ray.wait(servers.group.weights, num_returns=args.servers)
            return time.perf_counter() - began, metrics["loss"]

        for warm in (ours, peer.steps):
            warm(4)
        for i in range(rounds):
            for which, out in [(ours, ours_s), (peer.steps, peer_s)] if i % 2 else [(peer.steps, peer_s), (ours, ours_s)]:
                seconds, loss = which(block)
                out.append(seconds / block)
                print(f"{'ours' if out is ours_s else 'peer'}: {TOKENS * block / seconds:,.0f} tokens/s, loss {loss:.4f}", flush=True)
    peer.close()
    a, b = (TOKENS / statistics.median(s) for s in (ours_s, peer_s))
    print(f"{parameters / 1e6:.1f} million parameters, {args.servers} servers; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    result = {"claim": "ps_vs_ddp", "ours": round(a), "peer": round(b), "ratio": round(a / b, 3), "floor": 0.7, "unit": "tokens/s"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
