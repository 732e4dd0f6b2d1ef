"""Local SGD and DiLoCo around a job: against DDP, over a resume, with a replica that skips a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tauon.distributed import AverageOuter, DiLoCo, LocalSGD, LowCommunication
from tauon.errors import RecipeError
from tauon.models import GPTConfig, MLPConfig
from tauon.optim import AdamWConfig, Constant, OptimConfig, SGDConfig
from tauon.plan import make_plan
from tauon.tasks import Classification, LanguageModelling
from tauon.testing import run_processes
from tauon.train import JobConfig, TrainConfig, TrainJob, build_job, job_state, local_steps, restore, train, train_step, validation_loss
from tauon.types import Batch, DataSpec

TABLE = DataSpec(input_shape=(5,), outputs=3, labels=("a", "b", "c"))
TEXT = DataSpec(vocab=31, seq_len=12)
SGD = SGDConfig(lr=0.1, momentum=0.9, schedule=Constant(warmup=0))
ADAMW = AdamWConfig(lr=1e-2)


class Rows:
    """Random batches of 8 rows, a function of the step; `poisoned` has no finite loss."""

    def __init__(self, spec: DataSpec, rank: int = 0, world: int = 1, poisoned: int | None = None) -> None:
        self.spec, self.rank, self.world, self.poisoned = spec, rank, world, poisoned

    def batch_at(self, step: int) -> Batch:
        g = torch.Generator().manual_seed(step)
        if self.spec.vocab is None:
            x = torch.randn(8, 5, generator=g) * (float("nan") if step == self.poisoned else 1.0)
            whole = Batch(x, torch.randint(0, 3, (8,), generator=g), torch.ones(8))
        else:
            ids = torch.randint(0, 31, (8, 13), generator=g)
            whole = Batch(ids[:, :-1], ids[:, 1:], torch.ones(8, 12))
        share = 8 // self.world
        return whole.rows(self.rank * share, (self.rank + 1) * share)


def make(optim: OptimConfig, steps: int, loader: Any, spec: DataSpec = TABLE, **settings: Any) -> TrainJob:
    model: Any = (
        MLPConfig(hidden=(6,)).resolve(TABLE) if spec is TABLE else GPTConfig(layers=1, width=16, heads=2, vocab=31, seq_len=12, tied=True)
    )
    task: Any = Classification() if spec is TABLE else LanguageModelling()
    config = TrainConfig(**({"steps": steps, "batch": 8, "precision": "fp32", "compile": False} | settings))
    plan = make_plan(JobConfig(model, optim, config, task, spec, 5), examples=100)
    return build_job(JobConfig(model, optim, config, task, spec, 5), loader, plan)


def mine(optim: OptimConfig, steps: int, config: LowCommunication, spec: DataSpec = TABLE, **loader: Any) -> TrainJob:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return local_steps(make(optim, steps, Rows(spec, rank, world, **loader), spec), config)


def weights(job: TrainJob) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in job.model.named_parameters()}


class Saved:
    """A checkpoint in memory: what `restore` asks of one."""

    path = Path("memory")

    def __init__(self, groups: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self.held, self.state = {g: {n: t.detach().clone() for n, t in ts.items()} for g, ts in groups.items()}, state

    def groups(self) -> list[str]:
        return list(self.held)

    def tensors(self, group: str) -> dict[str, Tensor]:
        return self.held[group]

    lazy = tensors


STREAMED = DiLoCo(every=4, fragments=2, overlap=1)


def on_two_ranks() -> dict[str, Any]:
    rank = dist.get_rank()
    averaged = train(mine(SGD, 6, DiLoCo(every=1, outer=AverageOuter())))
    local = train(mine(SGD, 6, LocalSGD(every=1)))

    ddp = make(SGD, 6, Rows(TABLE, rank, 2))
    ddp.model = torch.nn.parallel.DistributedDataParallel(ddp.model)
    with_ddp = train(ddp)

    whole = train(mine(ADAMW, 11, STREAMED, TEXT))
    steps = []
    for cut in (3, 5, 6):  # after 5 steps a fragment is on its way
        first = mine(ADAMW, 11, STREAMED, TEXT)
        for _ in range(cut):
            train_step(first, first.loader.batch_at(first.step))
        second = mine(ADAMW, 11, STREAMED, TEXT)
        checkpoint: Any = Saved(*job_state(first))
        restore(second, checkpoint)
        steps.append(weights(train(second)))

    skipping = mine(SGD, 6, DiLoCo(every=2), poisoned=3 if rank == 1 else None)
    metrics = []
    while skipping.step < 6:
        metrics.append(train_step(skipping, skipping.loader.batch_at(skipping.step)))
    apart = mine(SGD, 6, DiLoCo(every=4))
    for step in range(3):
        train_step(apart, apart.loader.batch_at(step))
    return {
        "averaged": weights(averaged), "local": weights(local), "ddp": {n.removeprefix("module."): w for n, w in weights(with_ddp).items()},
        "sent": sum(averaged.traffic.total.values()), "whole": weights(whole), "resumed": steps,
        "skipping": weights(skipping), "skipped": ["skipped" in m for m in metrics], "step_bytes": [m.get("sent_bytes", 0) for m in metrics],
        "apart": weights(apart), "saved": job_state(apart)[0],
        "validation": validation_loss(apart, [Rows(TABLE).batch_at(77)]), "after": weights(apart),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(on_two_ranks, 2, 400)


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=atol)


@pytest.mark.distributed
@pytest.mark.slow
def test_averaging_after_each_step_of_sgd_is_ddp(ranks: list[dict[str, Any]]) -> None:
    alone = train(make(SGD, 6, Rows(TABLE)))
    for rank in ranks:
        close(rank["averaged"], rank["ddp"], atol=1e-6)
        close(rank["averaged"], weights(alone), atol=1e-6)
        close(rank["local"], rank["averaged"])
    assert ranks[0]["sent"] == 6 * 4 * sum(w.numel() for w in weights(alone).values())


@pytest.mark.distributed
@pytest.mark.slow
def test_a_resume_at_any_step_ends_with_the_same_weights_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for resumed in rank["resumed"]:
            close(resumed, rank["whole"])
    close(ranks[0]["whole"], ranks[1]["whole"])  # the last step brings all together


@pytest.mark.distributed
@pytest.mark.slow
def test_a_replica_that_skips_a_step_still_takes_part_in_the_outer_step(ranks: list[dict[str, Any]]) -> None:
    assert [r["skipped"] for r in ranks] == [[False] * 6, [False, False, False, True, False, False]]
    close(ranks[0]["skipping"], ranks[1]["skipping"])
    size = 4 * sum(w.numel() for w in ranks[0]["skipping"].values())
    assert ranks[0]["step_bytes"] == ranks[1]["step_bytes"] == [0, size, 0, size, 0, size]


@pytest.mark.distributed
@pytest.mark.slow
def test_the_anchor_is_what_is_validated_and_saved(ranks: list[dict[str, Any]]) -> None:
    """Before the first outer step: the weights that training began with, though the replicas went apart."""
    begun = make(SGD, 6, Rows(TABLE))
    assert not torch.equal(next(iter(ranks[0]["apart"].values())), next(iter(ranks[1]["apart"].values())))
    for k, rank in enumerate(ranks):
        close(rank["saved"]["model"], weights(begun))
        assert rank["validation"] == pytest.approx(validation_loss(begun, [Rows(TABLE).batch_at(77)]), abs=1e-7)
        close(rank["after"], rank["apart"])
        assert rank["saved"]["outer"].keys() == {f"momentum/{n}" for n in rank["apart"]}
        assert {n.partition("/")[0] for n in rank["saved"]["replica"]} == {f"replica-{k}"}
        close({n: rank["saved"]["replica"][f"replica-{k}/model/{n}"] for n in rank["apart"]}, rank["apart"])


def test_a_replica_that_was_not_there_starts_from_the_anchor() -> None:
    """Replica 2, of a run that one replica saved."""
    first = mine(SGD, 8, DiLoCo(every=4))
    for _ in range(5):
        train_step(first, first.loader.batch_at(first.step))
    groups, state = job_state(first)
    second = mine(SGD, 8, DiLoCo(every=4))
    other: Any = second.extra["replica"]

    class Third:
        replica, local = 2, other.loop.local

    other.loop = Third()
    checkpoint: Any = Saved(groups, state)
    restore(second, checkpoint)
    close(weights(second), dict(first.eval_weights.anchor))  # type: ignore[union-attr]
    momentum = {n: second.optimizer.state[p]["momentum_buffer"] for n, p in second.model.named_parameters()}
    close(momentum, {n: first.optimizer.state[p]["momentum_buffer"] for n, p in first.model.named_parameters()})


def test_tied_weights_are_saved_as_the_anchor_under_both_names() -> None:
    job = mine(ADAMW, 8, DiLoCo(every=4), TEXT)
    begun = {n: t.clone() for n, t in job_state(job)[0]["model"].items()}
    for step in range(2):
        train_step(job, job.loader.batch_at(step))
    saved = job_state(job)[0]["model"]
    assert saved.keys() == job.model.state_dict().keys()
    assert sum(n in ("embed.weight", "head.weight") for n in saved) == 2
    close(saved, begun)


def test_one_process_alone_needs_no_group() -> None:
    """Outer averaging of one replica is plain training."""
    alone = train(make(ADAMW, 6, Rows(TEXT), TEXT))
    outer = train(mine(ADAMW, 6, LocalSGD(every=3), TEXT))
    close(weights(alone), weights(outer), atol=1e-6)
    assert sum(outer.traffic.total.values()) == 0


def test_what_cannot_work_together_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.ema"):
        local_steps(make(SGD, 6, Rows(TABLE), ema=0.9), LocalSGD())
    with pytest.raises(RecipeError, match="divides a batch among 2 processes, but there are 1 replicas"):
        local_steps(make(SGD, 6, Rows(TABLE, 0, 2)), LocalSGD())
