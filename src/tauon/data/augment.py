"""Augmentation: small random changes of the training images, deterministic in (seed, epoch, example).

The whole batch is changed at once, with elementwise operations and one resampling only, so that an example comes out the same
whatever batch it is in. Consecutive geometric augmentations move the sampling points one after the other and the image is
resampled once: cheaper, and less blurred, than once for each.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Fraction, Registered, register
from tauon.data.counter import key, normal, uniform
from tauon.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffineConfig", "AugmentConfig", "Draws", "ElasticConfig", "FlipConfig", "NoiseConfig", "ShiftConfig", "augment"]


@dataclass(frozen=True)
class Draws:
    """Random numbers of one augmentation: a pure function of (seed, place in the list, epoch, example)."""

    seed: int
    place: int
    epoch: int
    index: NDArray[np.int64]
    """Examples of the batch, (B)."""

    def _counters(self, n: int) -> NDArray[np.uint64]:
        return (self.index[:, None] * n + np.arange(n)).astype(np.uint64)

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """(B, n) in [low, high)."""
        drawn = uniform(key(self.seed, "augment", self.place, self.epoch, "uniform", n), self._counters(n))
        return drawn * np.float32(high - low) + np.float32(low)

    def normal(self, n: int) -> NDArray[np.float32]:
        """(B, n), mean 0, variance 1."""
        return normal(key(self.seed, "augment", self.place, self.epoch, "normal", n), self._counters(n))


class AugmentConfig(Registered, family="augment"):
    """One random change of an example. Members override `move` (geometric) or `change`."""

    geometric: ClassVar[bool] = False
    """Whether it moves sampling points (`move`) instead of changing values (`change`). Needs images."""
    images_only: ClassVar[bool] = False

    def move(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Sampling points (B, H, W) in pixels from the image's middle, to the right and down."""
        raise NotImplementedError

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        """Normalised features (B, ...), float32."""
        raise NotImplementedError


def augment(
    features: Tensor, steps: Sequence[AugmentConfig], *, seed: int, epoch: int, index: NDArray[np.int64], outside: Tensor | None = None
) -> Tensor:
    """Apply `steps` in turn to a batch of float32 features. Points outside an image read as `outside` (C, 1, 1), default 0."""
    at = 0
    while at < len(steps):
        if not steps[at].geometric:
            features = steps[at].change(features, Draws(seed, at, epoch, index))
            at += 1
            continue
        stop = next((i for i in range(at, len(steps)) if not steps[i].geometric), len(steps))
        x, y = _pixels(features)
        for place in range(at, stop):
            x, y = steps[place].move(x, y, Draws(seed, place, epoch, index))
        features = _resample(features, x, y) if outside is None else _resample(features - outside, x, y) + outside
        at = stop
    return features


def check_shape(steps: Sequence[AugmentConfig], shape: tuple[int, ...]) -> None:
    """`DataError` if a step needs images and examples of `shape` are none."""
    for place, step in enumerate(steps):
        if (step.geometric or step.images_only) and len(shape) != 3:
            raise DataError(
                f"data.augment.{place}: {step.kind_} needs images (channels, height, width), but an example has shape {shape}. Leave it out"
            )


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    B, _, H, W = images.shape
    y = (torch.arange(H, dtype=torch.float32) - (H - 1) / 2).view(1, H, 1).expand(B, H, W)
    x = (torch.arange(W, dtype=torch.float32) - (W - 1) / 2).view(1, 1, W).expand(B, H, W)
    return x, y


def _resample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import grid_sample

    _, _, H, W = images.shape
    grid = torch.stack([x * (2 / W), y * (2 / H)], dim=-1)  # align_corners=False: -1 and 1 are the outer edges
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@register("shift")
class ShiftConfig(AugmentConfig):
    """Move by whole pixels, each direction drawn evenly; what comes in is 0."""

    pixels: int = Field(default=2, ge=1)
    """Largest move, in pixels."""
    geometric: ClassVar[bool] = True

    def move(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        import torch

        p = self.pixels
        by = torch.from_numpy(np.floor(draws.uniform(2, -p, p + 1)))
        return x - by[:, 0, None, None], y - by[:, 1, None, None]


@register("affine")
class AffineConfig(AugmentConfig):
    """Rotate, scale, shear and move; each amount drawn evenly from its range. Bilinear."""

    degrees: float = Field(default=10.0, ge=0, le=180)
    """Largest rotation either way."""
    scale: Fraction = Field(default=0.1, ge=0, lt=1)
    """Size between 1 - scale and 1 + scale."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest slant either way, in degrees."""
    translate: Fraction = Field(default=0.0, ge=0, lt=1)
    """Largest move either way, as a share of width and height."""
    geometric: ClassVar[bool] = True

    def move(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        import torch

        H, W = x.shape[1:]
        u = draws.uniform(5, -1, 1)
        angle, slant = np.radians(u[:, 0] * self.degrees), np.tan(np.radians(u[:, 1] * self.shear))
        size = 1 + u[:, 2] * self.scale
        x = x - torch.from_numpy(u[:, 3] * np.float32(self.translate * W))[:, None, None]
        y = y - torch.from_numpy(u[:, 4] * np.float32(self.translate * H))[:, None, None]
        # the picture is turned by +angle, so the points it is read from are turned by -angle, and divided by the size
        cos, sin, lean = (
            torch.from_numpy(v.astype(np.float32))[:, None, None] for v in (np.cos(angle) / size, np.sin(angle) / size, slant)
        )
        x, y = x * cos + y * sin, y * cos - x * sin
        return x + y * lean, y


@register("elastic")
class ElasticConfig(AugmentConfig):
    """Bend smoothly, as handwriting varies (Simard, Steinkraus & Platt 2003): a random displacement at each point of a coarse
    lattice, spread over the pixels by cubic B-splines.
    """

    pixels: float = Field(default=1.0, gt=0)
    """Root mean square displacement, in pixels, in each direction."""
    spacing: float = Field(default=6.0, gt=1)
    """Distance of the lattice's points, in pixels: larger is smoother."""
    geometric: ClassVar[bool] = True

    def move(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        import torch

        H, W = x.shape[1:]
        rows, cols = _spline(H, self.spacing), _spline(W, self.spacing)
        B, h, w = len(draws.index), rows.shape[1], cols.shape[1]
        knots = torch.from_numpy(draws.normal(2 * h * w).reshape(B, 2, h, w)) * self.pixels
        # sums written out term by term: a matrix product may round an example differently in another batch
        along = sum((knots[:, :, :, j, None] * cols[:, j] for j in range(w)), torch.zeros(()))
        field = sum((along[:, :, i, None, :] * rows[:, i, None] for i in range(h)), torch.zeros(()))
        return x + field[:, 0], y + field[:, 1]


def _spline(n: int, spacing: float) -> Tensor:
    """(n, knots) weights of the uniform cubic B-spline at n pixels, scaled so that unit normal knots give unit variance."""
    import torch

    knots = int(np.ceil((n - 1) / spacing)) + 4
    t = np.abs((np.arange(n)[:, None] - (n - 1) / 2) / spacing - (np.arange(knots) - (knots - 1) / 2))
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return torch.from_numpy(weights.astype(np.float32))


@register("flip")
class FlipConfig(AugmentConfig):
    """Mirror left and right."""

    share: Fraction = Field(default=0.5, gt=0, le=1)
    """Share of the images that are mirrored."""
    images_only: ClassVar[bool] = True

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        mirrored = torch.from_numpy(draws.uniform(1)[:, 0] < self.share)
        return torch.where(mirrored[:, None, None, None], features.flip(-1), features)


@register("noise")
class NoiseConfig(AugmentConfig):
    """Add independent normal noise to each feature."""

    std: float = Field(default=0.1, gt=0)
    """Standard deviation, in units of the normalised features (1 is one standard deviation after `normalize: standard`)."""

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        drawn = torch.from_numpy(draws.normal(int(np.prod(features.shape[1:], dtype=np.int64)))).view_as(features)
        return features + drawn * self.std
