"""Pictures as fixed features: `data.scattering`. Worked out once for each picture by itself, kept in the cache, and learned from instead of pixels.

Nothing is fitted, so that nothing is spent of a privacy budget, and a linear model of these features is better than a private network of the
pixels (Tramèr & Boneh 2021, arXiv:2011.11660). The transform is in `scattering.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count
from tauon.data.cache import cache_root, obtain
from tauon.data.files import canonical, write_json
from tauon.data.progress import report
from tauon.data.sources.base import Arrays
from tauon.errors import DataError

__all__ = ["ScatteringConfig", "features_of", "with_features"]

_ROWS = 16
_VERSION = 1


class ScatteringConfig(Config):
    """Wavelet scattering coefficients of pictures (C, H, W) -> (C K, H / 2^scales, W / 2^scales), K = 1 + L J + L^2 J (J - 1) / 2."""

    scales: Count = Field(2, ge=1, le=6)
    """J: the picture is averaged over 2^J pixels."""
    angles: Count = Field(8, ge=1, le=32)
    """L: directions of the wavelets."""
    groups: Count | None = Field(27, ge=1)
    """Coefficients are normalised in so many groups, each picture by itself, as group norm does. None: left as they are."""

    def problems(self) -> Iterator[tuple[str, str]]:
        from tauon.data.scattering import coefficients

        groups, K = self.raw_value("groups"), coefficients(self.raw_value("scales"), self.raw_value("angles"))
        if groups is not None and K % groups:
            yield "groups", f"{groups} groups of {K} coefficients come out uneven. Take a divisor of {K}."


def features_of(pictures: NDArray[Any], config: ScatteringConfig, *, pixels: bool = False) -> NDArray[np.float32]:
    """Coefficients of pictures (B, C, H, W), bytes (or numbers as these: `pixels`) or numbers from 0 to 1: float32."""
    import torch
    from torch.nn.functional import group_norm

    from tauon.data.scattering import Scattering

    transform = Scattering(*pictures.shape[-2:], J=config.scales, L=config.angles)
    found = np.empty((len(pictures), *transform.shape(pictures.shape[1])), np.float32)
    for start in range(0, len(pictures), _ROWS):
        x = torch.from_numpy(np.array(pictures[start : start + _ROWS])).float()  # a copy: what a file gave may be read only
        out = transform(x / 255 if pixels or pictures.dtype == np.uint8 else x)
        if config.groups is not None:
            out = group_norm(out, config.groups * pictures.shape[1])
        found[start : start + _ROWS] = out.numpy()
    return found


def with_features(table: Arrays, config: ScatteringConfig, what: str) -> Arrays:
    """The table with features in place of its pictures, float16 on disk: worked out once, found in the cache afterwards."""
    pictures = table.features
    if pictures.ndim != 4 or min(pictures.shape[2:]) < 2 ** (config.scales + 1):
        raise DataError(
            f"data.scattering: needs pictures (channels, height, width) of {2 ** (config.scales + 1)} pixels at least, and an example has shape "
            f"{pictures.shape[1:]}. Take fewer scales, or leave it out"
        )
    how = {"scales": config.scales, "angles": config.angles, "groups": config.groups}  # read, also where all is in the cache
    digest = hashlib.sha256(canonical([_VERSION, how, str(pictures.dtype), list(pictures.shape), *(["pixels"] * table.pixels)]).encode())
    digest.update(np.ascontiguousarray(pictures).data)
    folder = cache_root() / "features" / digest.hexdigest()[:32]

    def build(temporary: Path) -> None:
        out: NDArray[Any] | None = None
        for start in range(0, len(pictures), 128 * _ROWS):
            part = features_of(pictures[start : start + 128 * _ROWS], config, pixels=table.pixels)
            if out is None:
                shape = (len(pictures), *part.shape[1:])
                out = np.lib.format.open_memmap(temporary / "features.npy", mode="w+", dtype=np.float16, shape=shape)
            out[start : start + len(part)] = part
            report(f"features of {what}", min(start + 128 * _ROWS, len(pictures)), len(pictures))
        write_json(temporary / "features.json", {"rows": len(pictures), "scattering": how})

    obtain(folder, "features.json", build)
    features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return replace(table, features=features, feature_names=(), pixels=False)
