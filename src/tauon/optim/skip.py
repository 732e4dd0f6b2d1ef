"""Skipping a step on the device: the optimizer runs, but does not change weights, state and step counters.

Supported by torch's fused Adam, AdamW and SGD (the kernels read `found_inf`, made for loss scaling, and count no step if it is 1), and by our
optimizers with `skips_on_device`, which read it themselves. For all others the decision is made on the host, before the step, which waits for the
device: their state has counters on the host (a Python number, or a tensor on the CPU), which the device cannot change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

__all__ = ["can_skip_on_device", "put_unless", "skipped_where"]


def can_skip_on_device(optimizer: Optimizer) -> bool:
    """Whether `skipped_where` works for this optimizer's next step."""
    return all(_can_skip(part) for part in getattr(optimizer, "parts", [optimizer]))


def _can_skip(part: Optimizer) -> bool:
    if getattr(part, "skips_on_device", False):
        return True
    if not (getattr(part, "_step_supports_amp_scaling", False) and all(g.get("fused") for g in part.param_groups)):
        return False
    # Fused SGD's first step initializes the momentum: skipping it would leave uninitialized memory.
    momenta = [p for g in part.param_groups if g.get("momentum") for p in g["params"]] if isinstance(part, SGD) else []
    return all(part.state.get(p, {}).get("momentum_buffer") is not None for p in momenta if p.grad is not None)


def put_unless(bad: Tensor | None, old: Tensor, new: Tensor) -> None:
    """Set `old` to `new` in place, unless `bad`, a number on the device, is 1."""
    old.copy_(new if bad is None else torch.where(bad > 0, old, new))


@contextmanager
def skipped_where(optimizer: Optimizer, bad: Tensor) -> Iterator[None]:
    """Context in which `optimizer.step()` does nothing if `bad` (a number on the device) is 1, without reading it on the host."""
    parts: list[Any] = [*getattr(optimizer, "parts", [optimizer])]
    for part in parts:
        part.found_inf, part.grad_scale = bad, None
    try:
        yield
    finally:
        for part in parts:  # uncovers the class attribute
            del part.found_inf, part.grad_scale
