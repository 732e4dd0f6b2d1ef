"""Muon over several processes: the same weights as in one, each matrix computed once, state by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tauon.distributed import Traffic
from tauon.optim import MuonConfig, load_optimizer, optimizer_tensors
from tauon.optim.muon import MultiOptimizer, Muon
from tauon.optim.owners import shard_size
from tauon.testing import run_processes

SHAPES = {"blocks.0": (6, 4), "blocks.1": (5, 7), "blocks.2": (3, 9), "blocks.3": (2, 2), "blocks.4": (5, 7)}
STEPS = 4
CONFIG = MuonConfig(lr=0.05, weight_decay=0.1, adamw_lr=0.01)


class Named(nn.Module):
    """Five matrices for Muon, two of them of one shape, and a bias for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(n, m, bias=m == 6) for m, n in SHAPES.values()])

    def forward(self, x: Tensor) -> Tensor:
        return sum((b(x[:, : b.in_features]).square().mean() for b in self.blocks), torch.zeros(()))


def model() -> Named:
    torch.manual_seed(0)
    return Named()


def gradient(name: str, shape: torch.Size, step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step * 100 + sum(map(ord, name))))


def run(net: nn.Module, optimizer: MultiOptimizer, first: int = 0, last: int = STEPS) -> nn.Module:
    """Steps with gradients that depend on the name and step alone, placed as the parameters are."""
    for step in range(first, last):
        for name, p in net.named_parameters():
            g = gradient(name, p.shape, step)
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
        optimizer.step()
    return net


def placed(net: nn.Module, mesh: Any, placements: list[Any]) -> nn.Module:
    for module in net.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            where = [Shard(0) if isinstance(x, Shard) and p.ndim == 1 else x for x in placements]
            module.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, where)))
    return net


def whole(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach().clone() for n, p in net.named_parameters()}


def build(net: nn.Module) -> MultiOptimizer:
    optimizer = CONFIG.build(net)
    assert isinstance(optimizer, MultiOptimizer)
    return optimizer


def spread(net: nn.Module, traffic: Traffic) -> MultiOptimizer:
    optimizer = build(net)
    for part in optimizer.parts:
        if isinstance(part, Muon):
            part.group, part.traffic = dist.group.WORLD, traffic
    return optimizer


def counted(monkey: list[int]) -> None:
    """Count Newton-Schulz runs of this process."""
    import tauon.optim.muon as muon

    true = muon._zeropower_via_newtonschulz

    def count(*args: Any) -> Tensor:
        monkey[0] += 1
        return true(*args)

    muon._zeropower_via_newtonschulz = count


def on_two_ranks() -> dict[str, Any]:
    calls = [0]
    counted(calls)
    out: dict[str, Any] = {}

    def case(name: str, net: nn.Module) -> None:
        calls[0] = 0
        traffic = Traffic()
        optimizer = spread(net, traffic)
        run(net, optimizer)
        out[name] = {"weights": whole(net), "calls": calls[0], "sent": dict(traffic.total)}

    mesh = init_device_mesh("cpu", (2,))
    case("replicated", model())
    case("rows", placed(model(), mesh, [Shard(0)]))
    case("columns", placed(model(), mesh, [Shard(1)]))
    case("all", placed(model(), mesh, [Replicate()]))
    case("one wide", placed(model(), init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b")), [Shard(1), Shard(0)]))

    net = model()
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = build(net)
    for step in range(STEPS):
        x = torch.randn(4, 9, generator=torch.Generator().manual_seed(step))
        net(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    out["trained"] = whole(net)

    first = placed(model(), mesh, [Shard(0)])
    began = build(first)
    run(first, began, 0, 2)
    tensors, numbers = optimizer_tensors(began, first)
    out["state"] = {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in tensors.items()}
    second = placed(model(), mesh, [Shard(0)])
    with torch.no_grad():
        for p, q in zip(second.parameters(), first.parameters(), strict=True):
            p.copy_(q)
    other = build(second)
    load_optimizer(other, second, out["state"], numbers)
    out["resumed"] = whole(run(second, other, 2, STEPS))
    return out


def on_four_ranks() -> dict[str, dict[str, Tensor]]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    out = {}
    for name, places in {"both": [Shard(0), Shard(1)], "rows twice": [Shard(0), Shard(0)], "hybrid": [Replicate(), Shard(0)]}.items():
        net = placed(model(), mesh, places)
        out[name] = whole(run(net, build(net)))
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    net = model()
    return whole(run(net, build(net)))


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(on_two_ranks, 2, 400)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=0)


def test_alone_it_is_torchs_muon_bit_for_bit() -> None:
    ours, theirs = model(), model()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.05, momentum=0.95, nesterov=True, weight_decay=0.1)
    optimizer = build(ours)
    assert [type(p).__name__ for p in optimizer.parts] == ["Muon", "AdamW"]  # by these names a checkpoint knows whose state it holds
    run(ours, optimizer)
    for step in range(STEPS):
        for name, p in theirs.named_parameters():
            p.grad = gradient(name, p.shape, step)
        muon.step()
    for (n, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if p.ndim == 2:
            assert torch.equal(p, q), n


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["replicated", "rows", "columns", "all", "one wide"])
def test_two_processes_give_the_weights_of_one_bit_for_bit(ranks: list[dict[str, Any]], alone: dict[str, Tensor], layout: str) -> None:
    for rank in ranks:
        same(rank[layout]["weights"], alone)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["replicated", "rows", "columns", "all", "one wide"])
def test_each_matrix_is_computed_once_a_step(ranks: list[dict[str, Any]], layout: str) -> None:
    assert sum(rank[layout]["calls"] for rank in ranks) == STEPS * len(SHAPES)
    assert max(rank[layout]["calls"] for rank in ranks) == STEPS * 3


@pytest.mark.distributed
def test_bytes_are_those_stated(ranks: list[dict[str, Any]]) -> None:
    """Replicated: pairs by size (35, 35), (27, 24), (4): the longer of each pair. Rows: what goes to the other process, twice."""
    assert ranks[0]["replicated"]["sent"] == {"all-gather": STEPS * 2 * (35 + 27 + 4)}
    sent = sum(r["rows"]["sent"]["all-to-all"] for r in ranks)
    assert sent == STEPS * 2 * 2 * sum(
        (m - shard_size(m, 2, owner)) * n for (m, n), owner in {(5, 7): 0, (3, 9): 0, (6, 4): 1, (2, 2): 0}.items()
    ) + STEPS * 2 * 2 * 3 * 7  # the second of the two equal ones is owned by the second process  # fmt: skip


@pytest.mark.distributed
def test_training_under_fsdp2_goes_as_in_one_process(ranks: list[dict[str, Any]]) -> None:
    net = model()
    optimizer = build(net)
    for step in range(STEPS):
        x = torch.randn(4, 9, generator=torch.Generator().manual_seed(step))
        net(x).backward()
        optimizer.step()
        optimizer.zero_grad()
    for n, w in whole(net).items():
        torch.testing.assert_close(ranks[0]["trained"][n], w, rtol=0, atol=1e-6)


@pytest.mark.distributed
def test_state_is_by_name_and_goes_on_bit_for_bit(ranks: list[dict[str, Any]], alone: dict[str, Tensor]) -> None:
    net = model()
    optimizer = build(net)
    run(net, optimizer, 0, 2)
    tensors, _ = optimizer_tensors(optimizer, net)
    same(ranks[0]["state"], tensors)
    same(ranks[1]["resumed"], alone)


@pytest.mark.distributed
@pytest.mark.slow
def test_four_processes_in_two_dimensions_give_the_weights_of_one_bit_for_bit(alone: dict[str, Tensor]) -> None:
    for rank in run_processes(on_four_ranks, 4, 200):
        for weights in rank.values():
            same(weights, alone)


@pytest.mark.parametrize(("length", "world"), [(5, 2), (2, 4), (9, 4), (8, 4), (1, 3)])
def test_shards_are_those_of_torch_chunk(length: int, world: int) -> None:
    chunks = [len(c) for c in torch.arange(length).chunk(world)]
    assert [shard_size(length, world, r) for r in range(world)] == chunks + [0] * (world - len(chunks))


def test_a_group_of_one_computes_all_itself(tmp_path: Any, alone: dict[str, Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net, traffic = model(), Traffic()
        optimizer = spread(net, traffic)
        assert any(isinstance(p, Muon) and p.group is not None for p in optimizer.parts)
        same(whole(run(net, optimizer)), alone)
        assert not traffic.total
    finally:
        dist.destroy_process_group()
