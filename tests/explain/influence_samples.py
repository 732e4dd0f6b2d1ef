"""Small models and data for the tests of influence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.models.families.mlp import Perceptron
from tauon.types import Batch, DataSpec


class Rows:
    """A data set in memory."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.spec = DataSpec(input_shape=tuple(x.shape[1:]), outputs=int(y.max()) + 1 if y.dtype == torch.int64 else 1)
        self.facts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Batch:
        i = torch.as_tensor(np.asarray(index))
        return Batch(self.x[i], self.y[i], torch.ones(len(i)), index=i)

    def all(self) -> Batch:
        return self.batch(np.arange(len(self)))


def blobs(n: int, classes: int = 3, width: int = 6, seed: int = 0, spread: float = 1.0) -> Rows:
    """Classes around centres that depend on nothing but `classes` and `width`."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 1.5
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    return Rows(centres[y] + spread * torch.randn(n, width, generator=g), y)


def perceptron(sizes: tuple[int, ...], seed: int = 0, activation: str = "relu") -> Perceptron:
    model = Perceptron(sizes, activation)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (1 / p.shape[-1]) ** 0.5)
    return model


def fit(model: nn.Module, data: Rows, steps: int = 200, lr: float = 0.5, decay: float = 0.0) -> nn.Module:
    """Full-batch gradient descent on cross-entropy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def one_by_one(model: nn.Module, value: Any, batch: Batch) -> dict[str, Tensor]:
    """Each example's gradient by autograd, one example after the other, in evaluation mode."""
    was = model.training
    model.eval()
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(batch)):
        grads = torch.autograd.grad(value(model, batch.rows(i, i + 1)).sum(), list(parameters.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters.values(), strict=True)])
    model.train(was)
    return {name: torch.stack([r[k] for r in rows]) for k, name in enumerate(parameters)}


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that must be as it was after an explanation."""
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "classes": [type(m) for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random": torch.get_rng_state(),
        "extra": [sorted(m.__dict__) for m in model.modules()],
    }


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("modes", "classes", "hooks", "requires", "extra"):
        assert a[key] == b[key], key
    assert torch.equal(a["random"], b["random"])
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
    for x, y in zip(a["grads"], b["grads"], strict=True):
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y))
