"""Mixing examples in pairs: mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

Row r of the batch of a step is mixed with row p(r), p a permutation of the whole batch over all ranks. The permutation, the shares and
the boxes are functions of (seed, step) alone; whoever needs a partner that is another rank's prepares that example itself, so that a
batch does not depend on how many ranks share it. Targets become shares of classes, BC float32. Reads no data: the loader does.

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
    """Mix training examples in pairs, targets alike. With both, each row of a batch takes one of them, by chance."""

    mixup: float | None = Field(default=None, gt=0, le=100)
    """Features a x + (1 - a) x', a drawn from Beta(mixup, mixup) for each row; 0.2 is usual. Left out: no mixup."""
    cutmix: float | None = Field(default=None, gt=0, le=100)
    """Images only: a box of x' is pasted into x; its area is 1 - a of the picture, a from Beta(cutmix, cutmix); 1 is usual. Left out: no
    CutMix."""
    share: Fraction = Field(default=1.0, gt=0, le=1)
    """Share of the rows that are mixed at all."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("mixup") is None and self.raw_value("cutmix") is None:
            yield "mixup", "neither mixup nor cutmix is set, so nothing is mixed. Set one (mixup: 0.2, say), or drop data.mix."


@dataclass(frozen=True)
class Mixing:
    """How the rows of one global batch are mixed."""

    partner: NDArray[np.int64]
    """(G): the row that is mixed into each; itself where it stays as it is."""
    own: NDArray[np.float32]
    """(G): the share that stays."""
    box: NDArray[np.int64] | None
    """(G, 4): top, bottom, left, right of what is pasted; empty where features are blended instead."""


class Mixer:
    """Mixes the batches of one run. `classes` counts the classes; `shape` is that of an example."""

    def __init__(self, config: MixConfig, *, seed: int, classes: int, shape: tuple[int, ...]) -> None:
        """Raises `DataError` where examples are no images and CutMix is asked for."""
        self.mixup, self.cutmix, self.share = config.mixup, config.cutmix, config.share
        self.seed, self.classes, self.shape = seed, classes, shape
        if self.cutmix is not None and len(shape) != 3:
            raise DataError(f"data.mix.cutmix needs images (channels, height, width), but an example has shape {shape}. Use mixup alone")

    def plan(self, step: int, rows: int) -> Mixing:
        """For the global batch of `rows` at `step`: a pure function of (seed, step, rows)."""
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
            area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (H * W)  # at the picture's edge less than was drawn
            own = np.where(pasted & (partner != np.arange(rows)), 1 - area, own)
        return Mixing(partner, own.astype(np.float32), box)

    def mix(self, batch: Batch, other: Batch, own: NDArray[np.float32], box: NDArray[np.int64] | None) -> Batch:
        """`batch` with `other`, its partners in the same order, mixed in; `own` and `box` are those of its rows."""
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
