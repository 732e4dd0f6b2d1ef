"""Augmentations of images: crops, rotation, colours, erasing, RandAugment. Each draw is a function of (seed, epoch, example), computed
for the whole batch; formulas are in `pictures.py`, geometry in `augment.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, Fraction, register
from tauon.data import pictures
from tauon.data.augment import AugmentConfig, Draws, Points, resample
from tauon.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ColourConfig", "CropConfig", "CutoutConfig", "EraseConfig", "RandAugmentConfig", "ResizedCropConfig", "RotateConfig"]


@register("crop")
class CropConfig(AugmentConfig):
    """Pad every side, then crop the original size at a uniformly random place (He et al. 2015 pad CIFAR by 4)."""

    padding: Count = Field(default=4, ge=1, le=4096)
    """Pixels on every side."""
    fill: Literal["black", "reflect", "edge"] = "black"
    """Content of the padding: black, the image mirrored at its edge, or its edge repeated."""
    images_only: ClassVar[bool] = True
    space = "any"
    rearranges = True

    def refuse(self, shape: tuple[int, ...], where: str) -> None:
        if self.raw_value("fill") == "reflect" and self.raw_value("padding") >= min(shape[1:]):
            raise DataError(
                f"{where}: {self.padding} pixels of padding cannot be mirrored in an image of {shape[1]} x {shape[2]}. Lower padding, or set fill: edge"
            )

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        p, source = self.padding, features.numpy()
        B, C, H, W = source.shape
        if self.fill != "black":
            wide = np.pad(source, ((0, 0), (0, 0), (p, p), (p, p)), mode=self.fill)
        else:
            wide = np.zeros((B, C, H + 2 * p, W + 2 * p), source.dtype)
            if draws.outside is not None:
                wide += draws.outside.numpy()
            wide[:, :, p : p + H, p : p + W] = source
        y, x = np.floor(draws.uniform(2, 0, 2 * p + 1)).astype(np.int64).T
        return torch.from_numpy(sliding_window_view(wide, (H, W), axis=(2, 3))[np.arange(B), :, y, x])


@register("resized-crop")
class ResizedCropConfig(AugmentConfig):
    """Crop a rectangle of random area and aspect ratio and resize it to the whole image (Szegedy et al. 2014, arXiv:1409.4842). Bilinear."""

    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the rectangle, uniform on a log scale."""
    geometric: ClassVar[bool] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("area", "ratio"):
            low, high = self.raw_value(name)
            if not 0 < low <= high:
                yield name, f"[{low:g}, {high:g}] is not a range above 0. Give two positive numbers, the smaller first."

    def move(self, points: Points, draws: Draws) -> None:
        u = draws.uniform(4).astype(np.float64)
        height, width = points.height, points.width
        area = (self.area[0] + u[:, 0] * (self.area[1] - self.area[0])) * height * width
        ratio = np.exp(math.log(self.ratio[0]) + u[:, 1] * math.log(self.ratio[1] / self.ratio[0]))
        w, h = np.minimum(np.sqrt(area * ratio), width), np.minimum(np.sqrt(area / ratio), height)
        matrix = np.zeros((len(u), 2, 3))
        matrix[:, 0, 0], matrix[:, 1, 1] = w / width, h / height
        matrix[:, 0, 2], matrix[:, 1, 2] = (u[:, 2] - 0.5) * (width - w), (u[:, 3] - 0.5) * (height - h)
        points.transform(matrix)


@register("rotate")
class RotateConfig(AugmentConfig):
    """Rotate about the centre by a uniform random angle; new pixels are black. Bilinear."""

    degrees: float = Field(default=15.0, gt=0, le=180)
    """Largest angle in either direction, in degrees."""
    geometric: ClassVar[bool] = True

    def move(self, points: Points, draws: Draws) -> None:
        points.transform(_turned(np.radians(draws.uniform(1, -1, 1)[:, 0].astype(np.float64) * self.degrees)))


@register("colour")
class ColourConfig(AugmentConfig):
    """Change brightness, contrast, saturation and hue, in this order, each by a factor drawn uniformly from 1 - amount to 1 + amount."""

    brightness: float = Field(default=0.2, ge=0, le=1)
    """Amount of brightness; 0: none."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """Amount of contrast, about the image's mean grey."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Amount of saturation. Needs colours."""
    hue: Fraction = Field(default=0.0, ge=0, le=0.5)
    """Largest rotation of the hue in either direction, as a share of the circle. Needs colours."""
    images_only: ClassVar[bool] = True
    space = "pixels"

    def problems(self) -> Iterator[tuple[str, str]]:
        if not any(self.raw_value(n) for n in ("brightness", "contrast", "saturation", "hue")):
            yield "brightness", "all four amounts are 0, so nothing changes. Set one, or remove colour."

    def refuse(self, shape: tuple[int, ...], where: str) -> None:
        if shape[0] not in (1, 3):
            raise DataError(f"{where} works on images of 1 or 3 channels, but these have {shape[0]}. Remove it")
        if shape[0] == 1 and (self.raw_value("saturation") or self.raw_value("hue")):
            raise DataError(f"{where}: grey images have neither saturation nor hue. Set both to 0")

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        import torch

        u = torch.from_numpy(draws.uniform(4, -1, 1))
        for i, (amount, act) in enumerate(
            ((self.brightness, pictures.brightness), (self.contrast, pictures.contrast), (self.saturation, pictures.saturation))
        ):
            if amount:
                features = act(features, 1 + amount * u[:, i])
        return pictures.hue(features, self.hue * u[:, 3]) if self.hue else features


@register("erase")
class EraseConfig(AugmentConfig):
    """Set a rectangle of random area, shape and place to 0, the mean after normalize: standard (Zhong et al. 2017, arXiv:1708.04896)."""

    share: Fraction = Field(default=0.5, gt=0, le=1)
    """Share of the images in which it happens."""
    area: tuple[Fraction, Fraction] = (0.02, 0.33)
    """Smallest and largest share of the image area."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width of the rectangle, uniform on a log scale."""
    images_only: ClassVar[bool] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("area", "ratio"):
            low, high = self.raw_value(name)
            if not 0 < low <= high:
                yield name, f"[{low:g}, {high:g}] is not a range above 0. Give two positive numbers, the smaller first."

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        H, W = features.shape[2:]
        u = draws.uniform(5).astype(np.float64)
        area = (self.area[0] + u[:, 1] * (self.area[1] - self.area[0])) * H * W
        ratio = np.exp(math.log(self.ratio[0]) + u[:, 2] * math.log(self.ratio[1] / self.ratio[0]))
        h = np.clip(np.round(np.sqrt(area * ratio)), 1, H)
        w = np.clip(np.round(np.sqrt(area / ratio)), 1, W)
        top, left = np.floor(u[:, 3] * (H - h + 1)), np.floor(u[:, 4] * (W - w + 1))
        h = np.where(u[:, 0] < self.share, h, 0)
        return _without(features, top, top + h, left, left + w)


@register("cutout")
class CutoutConfig(AugmentConfig):
    """Set a square about a random pixel to 0, the mean after normalize: standard; it may extend over the edge (arXiv:1708.04552)."""

    size: Count = Field(default=8, ge=1, le=4096)
    """Side of the square, in pixels."""
    images_only: ClassVar[bool] = True

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        H, W = features.shape[2:]
        u = draws.uniform(2).astype(np.float64)
        top, left = np.floor(u[:, 0] * H) - self.size // 2, np.floor(u[:, 1] * W) - self.size // 2
        return _without(features, top, top + self.size, left, left + self.size)


_GEOMETRIC = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
_COLOURS = ("identity", "brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")


@register("randaugment")
class RandAugmentConfig(AugmentConfig):
    """Several changes in turn, each drawn for each image from 14 of one strength (Cubuk et al. 2019, arXiv:1909.13719; torchvision's ranges).

    identity, shear and shift along both axes, rotate, brightness, saturation, contrast, sharpness, posterize, solarize, autocontrast,
    equalize. Bilinear, black outside.
    """

    changes: Count = Field(default=2, ge=1, le=16)
    """Number of changes per image (N)."""
    magnitude: float = Field(default=9.0, ge=0, le=30)
    """Strength of each (M), 0 to 30."""
    images_only: ClassVar[bool] = True
    space = "pixels"

    def refuse(self, shape: tuple[int, ...], where: str) -> None:
        if shape[0] not in (1, 3):
            raise DataError(f"{where} works on images of 1 or 3 channels, but these have {shape[0]}. Remove it")

    def change(self, features: Tensor, draws: Draws) -> Tensor:
        u = draws.uniform(2 * self.changes)
        names = _GEOMETRIC + _COLOURS
        features = features.clone()
        for turn in range(self.changes):
            which = np.minimum((u[:, 2 * turn] * len(names)).astype(np.int64), len(names) - 1)
            sign = np.where(u[:, 2 * turn + 1] < 0.5, -1.0, 1.0)
            moved = which < len(_GEOMETRIC)
            if moved.any():
                features[moved] = self._moved(features[moved], which[moved], sign[moved])
            for number, name in enumerate(_COLOURS[1:], len(_GEOMETRIC) + 1):
                rows = which == number
                if rows.any():
                    features[rows] = self._coloured(name, features[rows], sign[rows])
        return features

    def _moved(self, x: Tensor, which: NDArray[np.int64], sign: NDArray[np.float64]) -> Tensor:
        H, W = x.shape[2:]
        m = sign * self.magnitude / 30
        matrix = _turned(np.where(which == 4, np.radians(30 * m), 0.0))
        matrix[:, 0, 1] += np.where(which == 0, 0.3 * m, 0)
        matrix[:, 1, 0] += np.where(which == 1, 0.3 * m, 0)
        matrix[:, 0, 2] += np.where(which == 2, np.trunc(150 / 331 * W * m), 0)
        matrix[:, 1, 2] += np.where(which == 3, np.trunc(150 / 331 * H * m), 0)
        return resample(x, Points(matrix, H, W))

    def _coloured(self, name: str, x: Tensor, sign: NDArray[np.float64]) -> Tensor:
        import torch

        m = self.magnitude / 30
        factor = torch.from_numpy((1 + 0.9 * m * sign).astype(np.float32))
        if name == "posterize":
            return pictures.posterize(x, torch.full((len(x),), 8 - round(self.magnitude / (30 / 4))))
        if name == "solarize":
            return pictures.solarize(x, torch.full((len(x),), 1 - m))
        if name == "autocontrast":
            return pictures.autocontrast(x)
        if name == "equalize":
            return pictures.equalize(x)
        act = {
            "brightness": pictures.brightness, "saturation": pictures.saturation, "contrast": pictures.contrast,
            "sharpness": pictures.sharpness,
        }[name]  # fmt: skip
        return act(x, factor)


def _turned(angle_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (B, 2, 3): points rotated about the centre by -angle, so that the image rotates by +angle."""
    cos, sin, zero = np.cos(angle_B), np.sin(angle_B), np.zeros_like(angle_B)
    return np.stack([np.stack([cos, sin, zero], -1), np.stack([-sin, cos, zero], -1)], 1)


def _without(
    x: Tensor, top: NDArray[np.float64], bottom: NDArray[np.float64], left: NDArray[np.float64], right: NDArray[np.float64]
) -> Tensor:
    """Set rectangles of each image to 0."""
    import torch

    y, column = np.arange(x.shape[2]), np.arange(x.shape[3])
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    cols = (column >= left[:, None]) & (column < right[:, None])
    return x.masked_fill(torch.from_numpy(rows[:, None, :, None] & cols[:, None, None, :]), 0.0)
