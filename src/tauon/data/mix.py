"""Mixing examples in pairs: mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

Row r of the batch of a step is mixed with row p(r), p a permutation of the whole batch over all ranks. The permutation, the shares and
the boxes are functions of (seed, step) alone; a rank whose row has a partner on another rank prepares that example itself, so a
batch does not depend on the number of ranks. Targets become shares of classes, BC float32. Reads no data: the loader does.

Shape legend: B rows of this rank, G rows of the global batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Fraction
from tauon.data.counter import key
from tauon.data.order import permute
from tauon.errors import DataError
from tauon.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MixConfig", "Mixer", "Mixing"]


class MixConfig(Config):
    """Mix training examples in pairs, and their targets alike. With both methods, each row of a batch randomly uses one of them."""

    mixup: float | None = Field(default=None, gt=0, le=100)
    """Features a x + (1 - a) x', a drawn from Beta(mixup, mixup) for each row; 0.2 is usual. Default: no mixup."""
    cutmix: float | None = Field(default=None, gt=0, le=100)
    """Images only: a box of x' is pasted into x; its area is 1 - a of the image, a from Beta(cutmix, cutmix); 1 is usual. Default: no
    CutMix."""
    share: Fraction = Field(default=1.0, gt=0, le=1)
    """Share of the rows that are mixed at all."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("mixup") is None and self.raw_value("cutmix") is None:
            yield "mixup", "is missing: neither mixup nor cutmix is set, so nothing is mixed. Set one (mixup: 0.2), or remove data.mix."


@dataclass(frozen=True)
class Mixing:
    """Mixing of the rows of one global batch."""

    partner: NDArray[np.int64]
    """(G): partner row of each row; itself if it is not mixed."""
    own: NDArray[np.float32]
    """(G): share of the row itself."""
    box: NDArray[np.int64] | None
    """(G, 4): top, bottom, left, right of the pasted box; empty if features are blended instead."""


class Mixer:
    """Mixes the batches of one run. `classes`: number of classes; `shape`: shape of an example."""

    def __init__(self, config: MixConfig, *, seed: int, classes: int, shape: tuple[int, ...]) -> None:
        """Raises `DataError` if CutMix is set and examples are not images."""
        self.mixup, self.cutmix, self.share = config.mixup, config.cutmix, config.share
        self.seed, self.classes, self.shape = seed, classes, shape
        if self.cutmix is not None and len(shape) != 3:
            raise DataError(f"data.mix.cutmix needs images (channels, height, width), but an example has shape {shape}. Use mixup alone")

    def plan(self, step: int, rows: int) -> Mixing:
        """Return the mixing of the global batch of `rows` at `step`: a pure function of (seed, step, rows)."""
        partner = permute(np.arange(rows, dtype=np.int64), rows, key(self.seed, "mix", step))
        rng = np.random.Generator(np.random.Philox(key=key(self.seed, "mix shares", step)))
        mixed, which = rng.random(rows) < self.share, rng.random(rows)
        pasted = mixed & ((which < 0.5) if self.mixup is not None else True) if self.cutmix is not None else np.zeros(rows, bool)
        blend = rng.beta(self.mixup or 1.0, self.mixup or 1.0, rows)
        paste = rng.beta(self.cutmix or 1.0, self.cutmix or 1.0, rows)
        partner = np.where(mixed, partner, np.arange(rows))
        box = None
        own = np.where(mixed & (partner != np.arange(rows)), np.where(pasted, 1.0, blend), 1.0)
        if self.cutmix is not None:
            H, W = self.shape[1:]
            side = np.sqrt(1 - paste)
            y, x = rng.random(rows) * H, rng.random(rows) * W
            edges = [y - side * H / 2, y + side * H / 2, x - side * W / 2, x + side * W / 2]
            box = np.stack([np.clip(np.round(e), 0, most) for e, most in zip(edges, (H, H, W, W), strict=True)], axis=1).astype(np.int64)
            box[~pasted] = 0
            area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (H * W)  # smaller than drawn if the box crosses the edge
            own = np.where(pasted & (partner != np.arange(rows)), 1 - area, own)
        return Mixing(partner, own.astype(np.float32), box)

    def mix(self, batch: Batch, other: Batch, own: NDArray[np.float32], box: NDArray[np.int64] | None) -> Batch:
        """Return `batch` mixed with `other`, its partners in the same order; `own` and `box` belong to its rows."""
        import torch

        a = torch.from_numpy(own)
        wide = a.view(-1, *(1 for _ in self.shape))
        pasted = None
        blend = wide
        if box is not None:
            y, x = np.arange(self.shape[1]), np.arange(self.shape[2])
            rows = (y >= box[:, :1]) & (y < box[:, 1:2])
            cols = (x >= box[:, 2:3]) & (x < box[:, 3:])
            pasted = torch.from_numpy(rows[:, None, :, None] & cols[:, None, None, :])
            by_box = torch.from_numpy((box[:, 1] > box[:, 0]) & (box[:, 3] > box[:, 2])).view_as(wide)
            blend = torch.where(by_box, 1.0, wide)
        inputs = batch.inputs * blend + other.inputs * (1 - blend)
        if pasted is not None:
            inputs = torch.where(pasted, other.inputs, inputs)
        targets = self._shares(batch.targets) * a[:, None] + self._shares(other.targets) * (1 - a[:, None])
        weights = batch.weights * a + other.weights * (1 - a)
        return replace(batch, inputs=inputs, targets=targets, weights=weights)

    def _shares(self, targets_B: Tensor) -> Tensor:
        from torch.nn.functional import one_hot

        return one_hot(targets_B, self.classes).float()
