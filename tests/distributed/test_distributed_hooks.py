"""Compressed gradients of DDP: against exact means, over many steps, over a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tauon.config import parse
from tauon.distributed import Int8Gradients, MeshParallel, ParallelConfig, PowerSGD, Traffic, register_hook
from tauon.distributed.int8 import packed_size
from tauon.errors import RecipeError
from tauon.testing import run_processes

SHAPES = [(48, 40), (48,), (30, 48), (30,), (48, 30), (48,), (30, 48), (30,), (3, 30), (3,)]  # two alike: torch keeps those together
ELEMENTS = 48 * 40 + 48 + 2 * (30 * 48 + 30) + 48 * 30 + 48 + 3 * 30 + 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(40, 48),
        nn.Tanh(),
        nn.Linear(48, 30),
        nn.Tanh(),
        nn.Linear(30, 48),
        nn.Tanh(),
        nn.Linear(48, 30),
        nn.Tanh(),
        nn.Linear(30, 3),
    )


def loss(model: nn.Module, step: int, rank: int) -> Tensor:
    g = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(6, 40, generator=g)
    out: Tensor = model(x)
    return (out - x[:, :3].sin()).square().mean()


def wrapped(name: str, cap: float = 0.004, **kwargs: Any) -> tuple[DistributedDataParallel, Traffic, Any]:
    ddp = DistributedDataParallel(network(), bucket_cap_mb=cap)  # several buckets
    traffic = Traffic()
    return ddp, traffic, register_hook(ddp, name, traffic, **kwargs)


def first_gradients(name: str) -> tuple[list[Tensor], int]:
    ddp, traffic, _ = wrapped(name)
    loss(ddp, 0, dist.get_rank()).backward()
    return [p.grad.clone() for p in ddp.parameters() if p.grad is not None], sum(traffic.total.values())


def mean_of_gradients(name: str, steps: int, **kwargs: Any) -> list[Tensor]:
    """Of the same batch again and again, weights untouched: errors that are fed back vanish as 1/steps."""
    ddp, _, kept = wrapped(name, **kwargs)
    if kept is not None and name == "powersgd":
        kept.torchs.start_powerSGD_iter = 2
    total = [torch.zeros(s) for s in SHAPES]
    for _ in range(steps):
        loss(ddp, 0, dist.get_rank()).backward()
        for t, p in zip(total, ddp.parameters(), strict=True):
            assert p.grad is not None
            t.add_(p.grad / steps)
        ddp.zero_grad()
    return total


def trained(name: str, steps: int, cut: int | None = None, **kwargs: Any) -> tuple[list[Tensor], dict[str, int]]:
    """Weights after SGD; with `cut`, saved and loaded into new objects after so many steps."""
    ddp, traffic, kept = wrapped(name, **kwargs)
    if name == "powersgd":
        kept.torchs.start_powerSGD_iter = 3
    sgd = torch.optim.SGD(ddp.parameters(), lr=0.05)
    for step in range(steps):
        if step == cut:
            weights, state = {k: v.clone() for k, v in ddp.state_dict().items()}, {k: v.clone() for k, v in kept.tensors().items()}
            ddp, traffic, kept = wrapped(name, **kwargs)
            if name == "powersgd":
                kept.torchs.start_powerSGD_iter = 3
            ddp.load_state_dict(weights)
            kept.load(state)
            sgd = torch.optim.SGD(ddp.parameters(), lr=0.05)
        sgd.zero_grad()
        loss(ddp, step, dist.get_rank()).backward()
        sgd.step()
    return [p.detach().clone() for p in ddp.parameters()], dict(traffic.total)


def after_nan(name: str) -> bool:
    """Whether gradients are finite again after a batch whose gradients are not."""
    ddp, _, kept = wrapped(name)
    if name == "powersgd":
        kept.torchs.start_powerSGD_iter = 2
    for step in range(6):
        ddp.zero_grad()
        bad = step == 3 and dist.get_rank() == 1
        (loss(ddp, step, dist.get_rank()) * (float("nan") if bad else 1.0)).backward()
        finite = all(p.grad.isfinite().all() for p in ddp.parameters() if p.grad is not None)
        assert finite == (step != 3), step
    return True


def composable() -> list[Tensor]:
    """DDP by `replicate`, as meshes apply it."""
    from torch.distributed._composable.replicate import replicate

    model = network()
    replicate(model)
    register_hook(model, "int8", Traffic())
    loss(model, 0, dist.get_rank()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def on_two_ranks() -> dict[str, Any]:
    plain = DistributedDataParallel(network())
    loss(plain, 0, dist.get_rank()).backward()
    names = ("none", "bf16", "int8", "powersgd")
    return {
        "ddp": [p.grad for p in plain.parameters()],
        "first": {n: first_gradients(n) for n in names},
        "mean": {n: {k: mean_of_gradients(n, k) for k in (8, 64)} for n in ("int8", "powersgd")},
        "trained": {n: trained(n, 12) for n in names},
        "resumed": {n: {c: trained(n, 12, cut=c)[0] for c in (1, 5, 8)} for n in ("int8", "powersgd")},
        "one bucket": {c: trained("powersgd", 12, cut=c, cap=25)[0] for c in (None, 5)},
        "whole_rank": trained("powersgd", 12, rank=64)[0],
        "nan": [after_nan(n) for n in ("int8", "powersgd")],
        "composable": composable(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(on_two_ranks, 2, 400)


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Relative, over all."""
    return sum((x - y).square().sum().item() for x, y in zip(a, b, strict=True)) ** 0.5 / sum(y.square().sum().item() for y in b) ** 0.5


@pytest.mark.distributed
@pytest.mark.slow
def test_none_is_ddp_counted(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        gradients, sent = rank["first"]["none"]
        assert all(torch.equal(a, b) for a, b in zip(gradients, rank["ddp"], strict=True))
        assert sent == 4 * ELEMENTS


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_hold_the_same_gradients_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    for name in ("none", "bf16", "int8", "powersgd"):
        for key in ("first", "trained"):
            assert all(torch.equal(a, b) for a, b in zip(ranks[0][key][name][0], ranks[1][key][name][0], strict=True)), (key, name)


@pytest.mark.distributed
@pytest.mark.slow
def test_compressed_gradients_are_near(ranks: list[dict[str, Any]]) -> None:
    exact = ranks[0]["ddp"]
    bf16, sent = ranks[0]["first"]["bf16"]
    assert 0 < distance(bf16, exact) < 0.01 and sent == 2 * ELEMENTS
    int8, sent = ranks[0]["first"]["int8"]
    assert 0 < distance(int8, exact) < 0.02
    whole_blocks = sum(packed_size(torch.Size(s).numel()) for s in SHAPES)
    assert whole_blocks <= sent <= whole_blocks + 10 * packed_size(1)  # each bucket is filled up to an even number of blocks
    assert distance(ranks[0]["composable"], exact) < 0.02


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "powersgd"])
def test_what_was_taken_is_added_later(ranks: list[dict[str, Any]], name: str) -> None:
    """With error feedback the mean of n gradients is off by (what is still owed) / n; without, by the same always."""
    few, many = (distance(ranks[0]["mean"][name][k], ranks[0]["ddp"]) for k in (8, 64))
    assert many < few / 4
    assert many < 0.05


@pytest.mark.distributed
@pytest.mark.slow
def test_powersgd_of_whole_rank_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    assert distance(ranks[0]["whole_rank"], ranks[0]["trained"]["none"][0]) < 1e-6


@pytest.mark.distributed
@pytest.mark.slow
def test_powersgd_sends_its_factors(ranks: list[dict[str, Any]]) -> None:
    """Rank 4: 4 (n + m) of the four large matrices; the last matrix (3 x 30) and the vectors whole."""
    factors = 4 * (48 + 40) + 3 * 4 * (30 + 48) + 3 * 30 + 2 * (48 + 30) + 3
    assert ranks[0]["trained"]["powersgd"][1] == {"all-reduce": 4 * (3 * ELEMENTS + 9 * factors)}


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "int8", "powersgd"])
def test_training_goes_nearly_the_same_way(ranks: list[dict[str, Any]], name: str) -> None:
    assert distance(ranks[0]["trained"][name][0], ranks[0]["trained"]["none"][0]) < 0.02


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "powersgd"])
@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_resume_goes_on_bit_for_bit(ranks: list[dict[str, Any]], name: str, cut: int) -> None:
    for rank in ranks:
        whole, resumed = rank["trained"][name][0], rank["resumed"][name][cut]
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)), distance(resumed, whole)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_resume_goes_on_bit_for_bit_where_a_bucket_holds_matrices_of_one_shape(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, resumed = rank["one bucket"][None], rank["one bucket"][5]
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)), distance(resumed, whole)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_gradient_that_is_not_finite_leaves_no_trace(ranks: list[dict[str, Any]]) -> None:
    assert [r["nan"] for r in ranks] == [[True, True]] * 2


class Group:
    """A process group of another size, as far as loading asks."""

    def rank(self) -> int:
        return 2

    def size(self) -> int:
        return 3


@pytest.mark.parametrize("make", [Int8Gradients, lambda *a: PowerSGD(*a, 4)])
def test_a_rank_that_was_not_there_owes_nothing(make: Callable[..., Any]) -> None:
    model, group = network(), Group()
    kept = make(model, Traffic(), group)
    kept.load({"rank-0/iter": torch.tensor(7), "rank-0/error/0.bias": torch.ones(48), "rank-0/q/0.weight": torch.ones(160)})
    if isinstance(kept, PowerSGD):
        assert kept.held["error/0.bias"].sum() == 0 and kept.held["q/0.weight"].sum() == 160 and kept.torchs.iter == 7
    else:
        assert kept.errors == {}


def test_compression_is_of_replicas_alone() -> None:
    assert isinstance(parse(ParallelConfig, {"replicate": 2, "compression": "int8"}), MeshParallel)
    for above in ("shard", "context", "tensor", "pipeline"):
        with pytest.raises(RecipeError, match=f"but {above} is above 1"):
            parse(ParallelConfig, {"compression": "bf16", above: 2})
    with pytest.raises(RecipeError, match="is for compression=powersgd"):
        parse(ParallelConfig, {"powersgd_rank": 8})


def test_an_unknown_name_is_refused(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="unknown compression 'fp4'"):
            register_hook(network(), "fp4", Traffic())
    finally:
        dist.destroy_process_group()
