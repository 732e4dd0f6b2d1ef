"""Augmentation: small random changes of the training images, deterministic in (seed, epoch, example).

The whole batch is changed at once, with elementwise operations and one resampling only, so that an example does not depend on the batch
it is in. Consecutive geometric augmentations move the sampling points one after the other and the image is resampled once: cheaper, and
less blurred, than once for each. Colour augmentations work on images from 0 to 1 (bytes / 255), like Pillow's formulas; all others on
normalised features. Augmentations for images only are in `augment_images.py`.
Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Fraction, Registered, register
from tauon.data.counter import key, normal, uniform
from tauon.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AffineConfig",
    "AugmentConfig",
    "Draws",
    "ElasticConfig",
    "FlipConfig",
    "NoiseConfig",
    "Pixels",
    "Points",
    "ShiftConfig",
    "augment",
]


@dataclass(frozen=True)
class Draws:
    """Random numbers of one augmentation: a pure function of (seed, position in the list, epoch, example)."""

    seed: int
    place: int
    epoch: int
    index: NDArray[np.int64]
    """Examples of the batch, (B)."""
    outside: Tensor | None = None
    """Value outside an image, in the units of the features, (C, 1, 1); None: 0."""

    def part(self, rows: NDArray[np.bool_]) -> Draws:
        """Return the draws of some rows of the batch."""
        return replace(self, index=self.index[rows])

    def _counters(self, n: int) -> NDArray[np.uint64]:
        return (self.index[:, None] * n + np.arange(n)).astype(np.uint64)

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """(B, n) in [low, high)."""
        drawn = uniform(key(self.seed, "augment", self.place, self.epoch, "uniform", n), self._counters(n))
        return drawn * np.float32(high - low) + np.float32(low)

    def normal(self, n: int) -> NDArray[np.float32]:
        """(B, n), mean 0, variance 1."""
        return normal(key(self.seed, "augment", self.place, self.epoch, "normal", n), self._counters(n))


@dataclass(frozen=True)
class Pixels:
    """Converts between normalised features and images from 0 to 1."""

    center: NDArray[np.float32]
    """(C, 1, 1), of the normaliser, as is `scale`."""
    scale: NDArray[np.float32]

    def normal(self, pictures: Tensor) -> Tensor:
        """Convert images from 0 to 1 to normalised features, in place."""
        import torch

        scale = torch.from_numpy(self.scale)
        return pictures.mul_(255 / scale).sub_(torch.from_numpy(self.center) / scale)

    def unit(self, features: Tensor) -> Tensor:
        """Convert normalised features to images from 0 to 1; a copy."""
        import torch

        return (features * (torch.from_numpy(self.scale) / 255)).add_(torch.from_numpy(self.center) / 255).clamp_(0, 1)

    def outside(self) -> Tensor | None:
        """Return a byte of 0, normalised; None if that is 0."""
        import torch

        return torch.from_numpy(-self.center / self.scale) if self.center.any() else None


@dataclass
class Points:
    """Where each pixel of the batch is read from: a matrix per example, and a displacement per pixel.

    In pixels from the image centre, to the right and down. Kept separate until the end: a matrix costs nothing.
    """

    matrix: NDArray[np.float64]
    """(B, 2, 3): rows x and y; columns x, y, 1."""
    height: int
    width: int
    displaced: Tensor | None = None
    """(B, 2, H, W), x before y."""

    def transform(self, matrix: NDArray[np.float64]) -> None:
        """Map each point p of example b to matrix[b] @ (p, 1); matrix is (B, 2, 3)."""
        import torch

        moved = matrix[:, :, :2] @ self.matrix
        moved[:, :, 2] += matrix[:, :, 2]
        self.matrix = moved
        if self.displaced is not None:
            m = torch.from_numpy(matrix.astype(np.float32))[:, :, :2, None, None]
            x, y = self.displaced[:, 0], self.displaced[:, 1]
            self.displaced = torch.stack([m[:, 0, 0] * x + m[:, 0, 1] * y, m[:, 1, 0] * x + m[:, 1, 1] * y], dim=1)

    def displace(self, by: Tensor) -> None:
        """Add (B, 2, H, W) pixels to the points."""
        self.displaced = by if self.displaced is None else self.displaced + by

    def grid(self) -> Tensor:
        """Return (B, H, W, 2) in the convention of grid_sample with align_corners=False: -1 and 1 are the outer edges of the image."""
        import torch

        unit = np.array([2 / self.width, 2 / self.height])[None, :, None]
        x, y = np.arange(self.width) - (self.width - 1) / 2, np.arange(self.height) - (self.height - 1) / 2
        along = torch.from_numpy((self.matrix[:, :, :1] * x * unit).astype(np.float32))  # (B, 2, W)
        down = torch.from_numpy(((self.matrix[:, :, 1:2] * y + self.matrix[:, :, 2:]) * unit).astype(np.float32))  # (B, 2, H)
        B = len(self.matrix)
        if self.displaced is None:
            out = torch.empty(B, self.height, self.width, 2)
            for axis in (0, 1):
                torch.add(along[:, axis, None, :], down[:, axis, :, None], out=out[..., axis])
            return out
        last = torch.empty(self.height, self.width, 2, B)  # batch last, as displacements are in memory
        along_2WB, down_2HB = along.permute(1, 2, 0).contiguous(), down.permute(1, 2, 0).contiguous()
        displaced_HW2B = self.displaced.permute(2, 3, 1, 0)
        for axis, size in ((0, self.width), (1, self.height)):
            torch.add(along_2WB[axis], down_2HB[axis, :, None], out=last[:, :, axis])
            last[:, :, axis].add_(displaced_HW2B[:, :, axis], alpha=2 / size)
        return last.view(-1, B).t().contiguous().view(B, self.height, self.width, 2)


class AugmentConfig(Registered, family="augment"):
    """Base class of random changes of an example. Subclasses override `move` (geometric) or `change`."""

    geometric: ClassVar[bool] = False
    """Whether it moves sampling points (`move`) instead of changing values (`change`). Needs images."""
    images_only: ClassVar[bool] = False
    space: ClassVar[Literal["normal", "pixels", "any"]] = "normal"
    """Input of `change`: normalised features; images from 0 to 1, which needs images of bytes; or either."""

    rearranges: ClassVar[bool] = False
    """Whether `change` only moves values, and brings in `Draws.outside`: it then also works on bytes, before normalising."""

    def refuse(self, shape: tuple[int, ...], where: str) -> None:
        """Raise `DataError` if it cannot work on images of `shape`."""

    series_only: ClassVar[bool] = False
    """Whether it changes a window of a series, context and future together: see `series_augment.py`."""

    def move(self, points: Points, draws: Draws) -> None:
        """Move the sampling points. They move against the image: to rotate it to the right, rotate the points to the left."""
        raise NotImplementedError

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        """Change features (B, ...), float32, in the space that the class declares."""
        raise NotImplementedError


def augment(
    features: Tensor, steps: Sequence[AugmentConfig], *, seed: int, epoch: int, index: NDArray[np.int64], outside: Tensor | None = None,
    pixels: Pixels | None = None, first: int = 0,
) -> Tensor:  # fmt: skip
    """Apply `steps` from number `first` on, in turn, to a batch of float32 features. Points outside an image read as `outside` (C, 1, 1),
    default 0.

    `pixels` is needed by steps that work on images from 0 to 1, and `features` are then such images to begin with. The result is normalised.
    """
    at, unit = first, pixels is not None
    while at < len(steps):
        step = steps[at]
        if pixels is not None and not step.geometric and step.space == ("normal" if unit else "pixels"):
            features, unit = (pixels.normal(features), False) if unit else (pixels.unit(features), True)
        edge = None if unit else outside
        if not step.geometric:
            features = step.change(features, Draws(seed, at, epoch, index, edge))
            at += 1
            continue
        B, _, H, W = features.shape
        points = Points(np.tile(np.eye(2, 3), (B, 1, 1)), H, W)
        while at < len(steps) and steps[at].geometric:
            steps[at].move(points, Draws(seed, at, epoch, index))
            at += 1
        features = resample(features, points) if edge is None else resample(features - edge, points) + edge
    return pixels.normal(features) if unit and pixels is not None else features


def rearrange(
    images: Tensor, steps: Sequence[AugmentConfig], *, seed: int, epoch: int, index: NDArray[np.int64]
) -> tuple[Tensor, int]:  # fmt: skip
    """Apply the first of `steps` that only rearrange pixels to images of bytes; return them and the number of steps done. The result is that of
    `augment` after normalising, bit for bit, for a quarter of the memory.
    """
    done = 0
    while done < len(steps) and steps[done].rearranges:
        images = steps[done].change(images, Draws(seed, done, epoch, index))
        done += 1
    return images, done


def check_shape(steps: Sequence[AugmentConfig], shape: tuple[int, ...], dtype: Any = np.uint8) -> None:
    """Raise `DataError` if a step needs images, or images of bytes, and examples of `shape` are not."""
    for place, step in enumerate(steps):
        where = f"data.augment.{place}: {step.kind_}"
        if step.series_only:
            raise DataError(f"{where} is only for time series. Remove it")
        if (step.geometric or step.images_only or step.space == "pixels") and len(shape) != 3:
            raise DataError(f"{where} needs images (channels, height, width), but an example has shape {shape}. Remove it")
        if step.space == "pixels" and dtype != np.uint8:
            raise DataError(f"{where} needs images of bytes (0 to 255), but the features are {np.dtype(dtype)}. Remove it")
        step.refuse(shape, where)


def resample(images: Tensor, points: Points) -> Tensor:
    """Sample the images at these points, bilinear; 0 outside."""
    from torch.nn.functional import grid_sample

    return grid_sample(images, points.grid(), mode="bilinear", padding_mode="zeros", align_corners=False)


@register("shift")
class ShiftConfig(AugmentConfig):
    """Shift by whole pixels, uniform in each direction; new pixels are 0."""

    pixels: int = Field(default=2, ge=1)
    """Largest shift, in pixels."""
    geometric: ClassVar[bool] = True

    def move(self, points: Points, draws: Draws) -> None:
        p = self.pixels
        matrix = np.tile(np.eye(2, 3), (len(draws.index), 1, 1))
        matrix[:, :, 2] = -np.floor(draws.uniform(2, -p, p + 1))
        points.transform(matrix)


@register("affine")
class AffineConfig(AugmentConfig):
    """Rotate, scale, shear and shift; each amount uniform in its range. Bilinear."""

    degrees: float = Field(default=10.0, ge=0, le=180)
    """Largest rotation in either direction, in degrees."""
    scale: Fraction = Field(default=0.1, ge=0, lt=1)
    """Size between 1 - scale and 1 + scale."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest shear in either direction, in degrees."""
    translate: Fraction = Field(default=0.0, ge=0, lt=1)
    """Largest shift in either direction, as a share of width and height."""
    geometric: ClassVar[bool] = True

    def move(self, points: Points, draws: Draws) -> None:
        u = draws.uniform(5, -1, 1).astype(np.float64)
        angle, slant, size = np.radians(u[:, 0] * self.degrees), np.tan(np.radians(u[:, 1] * self.shear)), 1 + u[:, 2] * self.scale
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        # points rotate by -angle, shrink by the size, then shear: x + shear * y
        linear = np.stack([np.stack([cos - slant * sin, sin + slant * cos], -1), np.stack([-sin, cos], -1)], 1)
        away = u[:, 3:] * self.translate * [points.width, points.height]
        points.transform(np.concatenate([linear, -np.einsum("bij,bj->bi", linear, away)[:, :, None]], axis=2))


@register("elastic")
class ElasticConfig(AugmentConfig):
    """Deform smoothly, as handwriting varies (Simard, Steinkraus & Platt 2003): a random displacement at each point of a coarse
    lattice, interpolated by cubic B-splines.
    """

    pixels: float = Field(default=1.0, gt=0)
    """Root mean square displacement, in pixels, in each direction."""
    spacing: float = Field(default=6.0, gt=1)
    """Distance of the lattice's points, in pixels: larger is smoother."""
    geometric: ClassVar[bool] = True

    def move(self, points: Points, draws: Draws) -> None:
        import torch

        rows, cols = _spline(points.height, self.spacing), _spline(points.width, self.spacing)
        B, h, w = len(draws.index), len(rows), len(cols)
        drawn = torch.from_numpy(draws.normal(2 * h * w) * np.float32(self.pixels)).view(B, 2, h * w)
        knots = drawn.permute(2, 1, 0).reshape(h, w, 2 * B)  # batch last: each sum below is over one stretch of memory
        # explicit sums: a matrix product may round an example differently in another batch
        along = torch.zeros(h, points.width, 2 * B)
        for j, (near, weights) in enumerate(cols):
            along[:, near].addcmul_(knots[:, j, None], weights[:, None])
        field = torch.zeros(points.height, points.width, 2 * B)
        for i, (near, weights) in enumerate(rows):
            field[near].addcmul_(along[i], weights[:, None, None])
        points.displace(field.view(points.height, points.width, 2, B).permute(3, 2, 0, 1))


@lru_cache(maxsize=16)
def _spline(n: int, spacing: float) -> list[tuple[slice, Tensor]]:
    """Return, for each knot of a uniform cubic B-spline over n pixels, the pixels that it affects and its weights there.

    Scaled so that unit normal knots give unit variance at each pixel.
    """
    import torch

    knots = int(np.ceil((n - 1) / spacing)) + 4
    t = np.abs((np.arange(n)[:, None] - (n - 1) / 2) / spacing - (np.arange(knots) - (knots - 1) / 2))
    weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    found = []
    for column in weights.astype(np.float32).T:
        reached = np.flatnonzero(column)
        near = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
        found.append((near, torch.from_numpy(column[near].copy())))
    return found


@register("flip")
class FlipConfig(AugmentConfig):
    """Mirror horizontally or vertically."""

    share: Fraction = Field(default=0.5, gt=0, le=1)
    """Share of the images that are mirrored."""
    axis: Literal["horizontal", "vertical"] = "horizontal"
    """horizontal: left becomes right; vertical: top becomes bottom."""
    images_only: ClassVar[bool] = True
    space = "any"
    rearranges = True

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        mirrored = torch.from_numpy(draws.uniform(1)[:, 0] < self.share)
        return torch.where(mirrored[:, None, None, None], features.flip(-1 if self.axis == "horizontal" else -2), features)


@register("noise")
class NoiseConfig(AugmentConfig):
    """Add independent normal noise to each feature."""

    std: float = Field(default=0.1, gt=0)
    """Standard deviation, in units of the normalised features (1 is one standard deviation after `normalize: standard`)."""

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        drawn = torch.from_numpy(draws.normal(int(np.prod(features.shape[1:], dtype=np.int64)))).view_as(features)
        return features + drawn * self.std
