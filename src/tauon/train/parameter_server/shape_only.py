"""A loader for a process that trains by others' hands: it counts examples and reads none."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from tauon.types import Batch

__all__ = ["ShapeOnlyLoader"]


class ShapeOnlyLoader:
    """Batches of the right shape with nothing in them: the driver counts examples and reads none."""

    def __init__(self, like: Batch) -> None:
        def hollow(t: Tensor | None) -> Tensor | None:
            return None if t is None else torch.zeros((), dtype=t.dtype).expand(t.shape)

        named = {f.name: hollow(getattr(like, f.name)) for f in fields(like)}
        self.batch = replace(like, **named)  # type: ignore[arg-type]

    def batch_at(self, step: int) -> Batch:
        return self.batch
