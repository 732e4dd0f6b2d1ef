"""Maps of a model whose weights are sharded over processes (FSDP2) equal those of the plain model, and training resumes behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tauon.explain import METHODS, Cases, Work
from tauon.testing import run_processes

pytestmark = pytest.mark.distributed

OPTIONS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "integrated_gradients": {"tolerance": 0.002},
    "kernel_shap": {},
    "smoothgrad": {"samples": 4},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True)) for _ in range(2)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def cases_of_net(model: nn.Module) -> Cases:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    features = torch.arange(6)
    return Cases(model, x, lambda x, rows: model(x), torch.arange(5) % 3, torch.zeros(1, 6), features, (6,), "table", link="softmax")


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of a step of training, gathered."""
    model.train()
    model(cases_of_net(model).inputs).square().mean().backward()
    found = {}
    for name, p in model.named_parameters():
        assert p.requires_grad and p.grad is not None, name
        found[name] = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
    model.zero_grad(set_to_none=True)
    return found


def explained(trained_before: bool) -> dict[str, tuple[Tensor, ...]]:
    """What a rank finds: name -> (map of the sharded model, of the plain one); gradients of a later step, too."""
    plain, sharded = Net(), Net()
    mesh = init_device_mesh("cpu", (2,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    if trained_before:
        gradients(sharded)
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, options in OPTIONS.items():
        found[name] = tuple(METHODS[name].run(cases_of_net(m), Work(at_once=16), **options).values for m in (sharded, plain))
    assert all(isinstance(p, DTensor) and p.requires_grad and p.grad is None for p in sharded.parameters())
    assert all(m.training for m in sharded.modules())
    a, b = gradients(sharded), gradients(plain)
    return found | {f"gradient of {name}": (a[name], b[name]) for name in b}


@pytest.mark.parametrize("trained_before", [False, True])
def test_maps_of_a_sharded_model_equal_those_of_the_plain_one(trained_before: bool) -> None:
    for rank in run_processes(explained, 2, 60, trained_before):
        for name, (sharded, plain) in rank.items():
            torch.testing.assert_close(sharded, plain, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
