"""Images as fixed features: `data.scattering`. Computed once per image, stored in the cache, and used for training instead of pixels.

Nothing is fitted, so no privacy budget is spent, and a linear model of these features is better than a private network on the
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
from tauon.data.files import canonical, write_plain_json
from tauon.data.progress import report
from tauon.data.sources.base import Arrays
from tauon.errors import DataError

__all__ = ["ScatteringConfig", "features_of", "with_features"]

_ROWS = 16
_VERSION = 1


class ScatteringConfig(Config):
    """Wavelet scattering coefficients of images (C, H, W) -> (C K, H / 2^scales, W / 2^scales), K = 1 + L J + L^2 J (J - 1) / 2."""

    scales: Count = Field(2, ge=1, le=6)
    """J: the image is averaged over 2^J pixels."""
    angles: Count = Field(8, ge=1, le=32)
    """L: number of wavelet directions."""
    groups: Count | None = Field(27, ge=1)
    """Number of groups for normalising the coefficients, per image, like group norm. None: no normalising."""

    def problems(self) -> Iterator[tuple[str, str]]:
        from tauon.data.scattering import coefficients

        groups, K = self.raw_value("groups"), coefficients(self.raw_value("scales"), self.raw_value("angles"))
        if groups is not None and K % groups:
            yield "groups", f"{groups} does not divide the {K} coefficients. Use a divisor of {K}."


def features_of(pictures: NDArray[Any], config: ScatteringConfig, *, pixels: bool = False) -> NDArray[np.float32]:
    """Return coefficients of images (B, C, H, W), bytes (or numbers like these: `pixels`) or numbers from 0 to 1: float32."""
    import torch
    from torch.nn.functional import group_norm

    from tauon.data.scattering import Scattering

    transform = Scattering(*pictures.shape[-2:], J=config.scales, L=config.angles)
    found = np.empty((len(pictures), *transform.shape(pictures.shape[1])), np.float32)
    for start in range(0, len(pictures), _ROWS):
        x = torch.from_numpy(np.array(pictures[start : start + _ROWS])).float()  # a copy: arrays from files may be read-only
        out = transform(x / 255 if pixels or pictures.dtype == np.uint8 else x)
        if config.groups is not None:
            out = group_norm(out, config.groups * pictures.shape[1])
        found[start : start + _ROWS] = out.numpy()
    return found


def with_features(table: Arrays, config: ScatteringConfig, what: str) -> Arrays:
    """Return the table with features instead of images, float16 on disk: computed once, found in the cache afterwards."""
    pictures = table.features
    if pictures.ndim != 4 or min(pictures.shape[2:]) < 2 ** (config.scales + 1):
        raise DataError(
            f"data.scattering: needs images (channels, height, width) of at least {2 ** (config.scales + 1)} pixels per side, but an example has shape "
            f"{pictures.shape[1:]}. Lower scales, or remove data.scattering"
        )
    how = {
        "scales": config.scales,
        "angles": config.angles,
        "groups": config.groups,
    }  # read the settings even if the result is in the cache
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
        write_plain_json(temporary / "features.json", {"rows": len(pictures), "scattering": how})

    obtain(folder, "features.json", build)
    features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return replace(table, features=features, feature_names=(), pixels=False)
