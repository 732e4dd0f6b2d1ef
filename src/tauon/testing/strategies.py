"""The contract of a federated strategy: what every way of combining updates keeps."""

from __future__ import annotations

import torch

from tauon.federated import StrategyConfig, Update

__all__ = ["check_strategy"]


def check_strategy(strategy: StrategyConfig, *, sites: int = 7) -> None:
    """Raise `AssertionError` if a strategy breaks its contract.

    The combined update has the names, shapes and dtypes of the sites' updates, is finite, does not depend on the order of the sites, and leaves their
    updates and its own state as they were. What it sends to sites follows from its state.

    >>> from tauon.federated.strategies import FedAvg
    >>> check_strategy(FedAvg())
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    updates = [
        Update(
            f"site-{i}", {n: torch.randn(s, generator=generator) for n, s in shapes.items()}, float(i + 1), examples=10 * (i + 1), steps=5, loss=1.0 + i,
            first_loss=2.0 + i,
        )
        for i in range(sites)
    ]  # fmt: skip
    before = [{n: t.clone() for n, t in u.tensors.items()} for u in updates]
    strategy.refuse(sites)
    state = strategy.state(weights)
    held = {n: t.clone() for n, t in state.items()}
    combined = strategy.combine(updates)
    assert {n: (tuple(t.shape), t.dtype) for n, t in combined.items()} == {n: (s, torch.float32) for n, s in shapes.items()}, (
        "names, shapes, dtypes"
    )
    assert all(t.isfinite().all() for t in combined.values()), "an update that is not finite"
    backwards = strategy.combine(updates[::-1])
    assert all(torch.allclose(combined[n], backwards[n], atol=1e-5) for n in shapes), "the order of the sites changes the result"
    assert all(torch.equal(u.tensors[n], b[n]) for u, b in zip(updates, before, strict=True) for n in shapes), (
        "the sites' updates were changed"
    )
    assert all(torch.equal(state[n], held[n]) for n in state), "combining changed the state, which `after` does"
    assert set(strategy.send(state)) <= {*state, *(f"control/{n}" for n in shapes)}, "sends what is not in its state"
