"""The contract of per-example clipping: norms and clipped sums equal those of one unit at a time.

from tauon.testing import check_clipping
def test_my_rule(): check_clipping(MyLayer(), lambda model, start, stop: model(x[start:stop]).square().sum(), rows=5)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tauon.privacy.clipped import ClippedSum

__all__ = ["check_clipping", "gradients_one_by_one"]

LONGER = 0.02
"""Maximum relative excess of a norm's bound over the norm."""
Loss = Callable[[nn.Module, int, int], Tensor]
"""(model, first row, end row) -> sum of the losses of these rows."""


def gradients_one_by_one(model: nn.Module, loss: Loss, rows: int, rows_per_unit: int = 1) -> dict[str, Tensor]:
    """Per-unit gradients of each trainable parameter, (U, *shape), by one backward pass per unit."""
    found: dict[str, list[Tensor]] = {}
    for start in range(0, rows, rows_per_unit):
        model.zero_grad(set_to_none=True)
        loss(model, start, start + rows_per_unit).backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                found.setdefault(name, []).append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(each) for name, each in found.items()}


def check_clipping(
    model: nn.Module, loss: Loss, rows: int, *, rows_per_unit: int = 1, microbatch: int | None = None, tolerance: float = 1e-5
) -> None:
    """Check that norms and the clipped sum of `model` equal the loop over units, also in microbatches, and that the model is restored
    afterwards. Raises `AssertionError` naming the parameter.
    """
    want = gradients_one_by_one(model, loss, rows, rows_per_unit)
    U = rows // rows_per_unit
    classes = [type(m) for m in model.modules()]
    clipped = ClippedSum(model, rows_per_unit=rows_per_unit)
    factors_U = torch.linspace(1.0, 0.1, U)
    scale = torch.stack([w.flatten(1).norm(dim=1) for w in want.values()]).norm(dim=0)  # U: norm of the complete gradient
    step = rows if microbatch is None else microbatch
    for start in range(0, rows, step):
        units = slice(start // rows_per_unit, min(rows, start + step) // rows_per_unit)
        with clipped.recording(min(rows, start + step) - start):
            loss(model, start, min(rows, start + step)).backward()
        norms, computed = clipped.squared_norms(), clipped.estimates()
        assert list(norms) == list(want), f"squared_norms() names {list(norms)}, the model {list(want)}"
        for name, bound in norms.items():
            squared = computed.get(name, bound)
            squared = torch.where(squared.isfinite(), squared, bound)  # a term without an estimate measures the gradient itself
            off = (squared.sqrt() - want[name][units].flatten(1).norm(dim=1)).abs()
            limit = tolerance * scale[units] + 1e-6 * scale.max()
            more = bound.sqrt() - squared.sqrt()
            assert bool(((more >= -limit) & (more <= limit + LONGER * bound.sqrt())).all()), (
                f"{name}: the bound of the norm is {bound.sqrt().tolist()}, the norm {squared.sqrt().tolist()}"
            )
            assert bool((off <= limit).all()), (
                f"{name}: norms {squared.sqrt().tolist()}, one by one {want[name][units].flatten(1).norm(dim=1).tolist()}"
            )
        clipped.add(factors_U[units])
        clipped.forget()
    whole = torch.stack([w.flatten(1).t().mv(factors_U).norm() for w in want.values()]).norm()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        summed = torch.einsum("u,u...->...", factors_U, want[name])
        assert p.grad is not None, f"{name} has no gradient"
        assert p.grad.shape == p.shape, f"{name}: gradient {tuple(p.grad.shape)}, parameter {tuple(p.shape)}"
        off = float((p.grad - summed).norm())
        assert off <= tolerance * float(summed.norm()) + 0.1 * tolerance * float(whole), (
            f"{name}: clipped sum off by {off / float(summed.norm()):.1e}"
        )
    clipped.detach()
    assert classes == [type(m) for m in model.modules()], "the classes of modules were not restored"
    model.zero_grad(set_to_none=True)
