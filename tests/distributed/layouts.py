"""A tiny job on any layout, for the tests of equality: the same weights, the same batches, `steps` steps, the whole weights back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from tauon.config import parse
from tauon.distributed import Layout, Mesh, ParallelConfig, World, local_part, local_slices, reshard
from tauon.models import ModelConfig
from tauon.optim import OptimConfig
from tauon.plan import Plan
from tauon.tasks import Classification, LanguageModelling, MaskedLanguageModelling
from tauon.testing import tiny_batch
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, train_step
from tauon.types import Batch, DataSpec

TEXT = DataSpec(vocab=51, seq_len=16)  # a vocabulary that two processes cannot share evenly
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3)
GPT = {"kind": "gpt", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "mlp": "swiglu"}
GPT2 = {"kind": "gpt2", "layers": 2, "width": 32, "heads": 4}
CNN = {"kind": "cnn", "channels": [8, 16], "groups": 4}
RESNET = {"kind": "resnet20"}
VIT = {"kind": "vit", "patch": 2, "layers": 2, "width": 32, "heads": 4}
# Adam divides a gradient by its size. Where that is no larger than rounding, rounding would decide the step: eps is above it.
ADAMW = {"kind": "adamw", "lr": 1e-3, "clip_norm": 0.5, "eps": 1e-6}
# Muon rounds to bf16: what differs in the last bit may differ by 2^-8 of a step, so the step is small.
MUON = {"kind": "muon", "lr": 2e-4, "adamw_lr": 1e-3, "eps": 1e-6}
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 0.5}


class Batches:
    """Batches of a step as a rank sees them: its rows of the same whole batch. Text is packed: documents of six tokens, some of weight 0."""

    def __init__(self, spec: DataSpec, rows: int, rank: int, world: int, packed: bool, masked: bool = False) -> None:
        self.spec, self.rows, self.rank, self.world, self.packed, self.masked = spec, rows, rank, world, packed, masked

    def batch_at(self, step: int) -> Batch:
        batch = tiny_batch(self.spec, rows=self.rows, seed=step, masked=self.masked)
        if self.packed and self.spec.seq_len is not None:
            segments = (torch.arange(self.spec.seq_len) // 6).int().expand(self.rows, -1).clone()
            weights = batch.weights.clone()
            weights[0, :5] = 0
            batch = replace(batch, segments=segments, weights=weights)
        batch = replace(batch, draws=torch.arange(self.rows) + 1000 * step)  # what private steps draw dropout from
        share = self.rows // self.world
        return batch.rows(self.rank * share, (self.rank + 1) * share)


def make_job(
    sizes: dict[str, int], parallel: dict[str, Any], model: dict[str, Any], optim: dict[str, Any], spec: DataSpec, *, rows: int = 8,
    micro: int = 8, packed: bool = True, steps: int = 10, ema: float | None = None, checkpointing: bool = False, freeze: tuple[str, ...] = (),
    precision: str = "fp32",
) -> TrainJob:  # fmt: skip
    """A job for this process of the layout; `micro` counts examples of all processes together."""
    world = World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
    mesh = Mesh(Layout(**sizes), world)
    config = parse(ModelConfig, model).resolve(spec)
    masked = "masked-tokens" in config.input_kind
    task = MaskedLanguageModelling() if masked else LanguageModelling() if spec.vocab else Classification()
    source = Batches(spec, rows, mesh.data_rank, mesh.layout.data, packed, masked)
    plan = Plan(steps, torch.device("cpu"), precision, False, max(1, micro // mesh.layout.data), 1, 1, 1)
    train = TrainConfig(steps=steps, batch=rows, ema=ema, activation_checkpointing=checkpointing, freeze=freeze)
    return build_job(
        JobConfig(config, parse(OptimConfig, optim), train, task, spec, 3),
        source,
        plan,
        mesh=mesh,
        parallel=parse(ParallelConfig, parallel),
    )


def whole(t: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor in pieces, on every rank that holds a piece: sums of disjoint parts, without DTensor's own gathering."""
    if t is local_part(t):
        return t.detach().clone()
    out = torch.zeros(t.shape, dtype=t.dtype)
    count = torch.zeros(t.shape, dtype=torch.float32)
    out[local_slices(t)] = local_part(t).detach()
    count[local_slices(t)] = 1
    for dim in range(t.device_mesh.ndim):  # type: ignore[attr-defined]
        group = t.device_mesh.get_group(dim)  # type: ignore[attr-defined]
        dist.all_reduce(out, group=group)
        dist.all_reduce(count, group=group)
    return out / count


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Ten steps; losses, gradient norms, and the weights that this process has (all of them but in a pipeline)."""
    case = dict(case)
    steps = case.pop("steps", 10)
    job = make_job(case.pop("sizes"), case.pop("parallel"), case.pop("model"), case.pop("optim"), case.pop("spec"), steps=steps, **case)
    job.model.train()
    seen = []
    for step in range(steps):
        metrics = train_step(job, job.loader.batch_at(step))
        seen.append((metrics["loss"], metrics["grad_norm"]))
    reshard(job.model)
    return {"steps": seen, "weights": {k: whole(v) for k, v in job.model.state_dict().items()}, "examples": job.examples}


def run_cases(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Several cases in one set of processes, as starting processes costs more than they do."""
    torch.set_num_threads(1)
    return {name: run_case(case) for name, case in cases.items()}
