"""A loader for the driver of a parameter server, which counts examples but does not read them."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from tauon.types import Batch

__all__ = ["ShapeOnlyLoader"]


class ShapeOnlyLoader:
    """Returns zero batches of the right shape, without reading data."""

    def __init__(self, like: Batch) -> None:
        def hollow(t: Tensor | None) -> Tensor | None:
            return None if t is None else torch.zeros((), dtype=t.dtype).expand(t.shape)

        named = {f.name: hollow(getattr(like, f.name)) for f in fields(like)}
        self.batch = replace(like, **named)  # type: ignore[arg-type]

    def batch_at(self, step: int) -> Batch:
        return self.batch
