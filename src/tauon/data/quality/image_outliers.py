"""Images that show nothing, and images unlike the others: noise, inverted brightness, another subject.

Each image is described by a few numbers (brightness, contrast, roughness, distance to the nearest other image), and is an outlier if one of them is far
from those of all. An inverted photograph looks like a photograph to these numbers, and is not found; an inverted digit or X-ray is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.dedup.images import thumbnails
from tauon.data.quality.base import DataView, Finding, QualityCheck, counted, examples_of, show
from tauon.data.quality.columns import robust_distance

__all__ = ["BlankImages", "ImageOutliers", "blank_images", "blank_rows", "odd_images"]

SPREAD = 0.01
"""Standard deviation of the pixels, as a share of black to white, below which an image shows nothing."""
FAR, BEYOND = 5.0, 1.5
"""An image is far from the others from this many robust standard deviations on, and from this many times the distance that 5% of them exceed."""
REFERENCE = 4000
"""Images among which the nearest is sought."""
_LEAST = 50


@register("blank-images")
class BlankImages(QualityCheck):
    """Images of one colour."""

    kinds = ("images",)
    title = "Blank images"

    def find(self, view: DataView) -> Iterator[Finding]:
        rows = tuple((i,) for i in blank_rows(view).tolist())
        if rows:
            message = (
                f"{counted(len(rows), 'image')} blank: all pixels have nearly the same value. For training, the cleaning filter `blank` of a recipe leaves "
                "them out"
            )
            yield Finding("blank images", "warn", message, rows, examples_of(view, rows, lambda i: show(view, i)))


@register("image-outliers")
class ImageOutliers(QualityCheck):
    """Images unlike the others in brightness, contrast, roughness or everything."""

    kinds = ("images",)
    title = "Images unlike the others"

    def find(self, view: DataView) -> Iterator[Finding]:
        odd: dict[int, str] = view.once("odd", lambda: odd_images(view))
        if odd:
            rows = tuple((i,) for i in odd)
            reasons = [*odd.values()]
            message = (
                f"{counted(len(rows), 'image')} unlike the others: damaged, inverted, or of something else. Unusual is not wrong: look whether they "
                "belong here"
            )
            yield Finding("outliers", "warn", message, rows, examples_of(view, rows, lambda i: show(view, i), lambda k: reasons[k]))


def blank_rows(view: DataView) -> NDArray[np.int64]:
    """Return the images of a view that show nothing."""
    assert view.images is not None
    images = view.images
    found: NDArray[np.int64] = view.once("blank", lambda: blank_images(images))
    return found


def blank_images(images_NCHW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the images that show nothing."""
    spread = np.array([float(image.std(axis=(1, 2), dtype=np.float64).max()) for image in images_NCHW]) / 255
    return np.flatnonzero(spread < SPREAD)


def odd_images(view: DataView) -> dict[int, str]:
    """Return images unlike the others, with the reason. Blank ones are not among them, and do not count as others."""
    assert view.images is not None
    rows = np.setdiff1d(np.arange(len(view)), blank_rows(view))
    if len(rows) < _LEAST:
        return {}
    odd: dict[int, str] = {}
    for name, values in _described(view.images, rows).items():
        distance = robust_distance(values)
        for k in np.flatnonzero(distance > max(FAR, BEYOND * float(np.percentile(distance, 95)))).tolist():
            low, high = np.percentile(values, [5, 95])
            odd.setdefault(int(rows[k]), f"{name} is {values[k]:.2f}, usual {low:.2f} to {high:.2f}")
    return dict(sorted(odd.items()))


def _described(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    brightness, contrast, rough, small = [], [], [], []
    for a in range(0, len(rows), 1024):
        some = images[rows[a : a + 1024]]
        grey = some.mean(1, dtype=np.float32) / 255
        brightness.append(grey.mean((1, 2)))
        contrast.append(grey.std((1, 2)))
        steps = (np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))) / 2
        rough.append(steps / np.maximum(contrast[-1], 1e-6))
        small.append(thumbnails(some))
    return {
        "brightness (0 to 1)": np.concatenate(brightness).astype(np.float64),
        "contrast (0 to 1)": np.concatenate(contrast).astype(np.float64),
        "roughness (steps between neighbouring pixels / contrast)": np.concatenate(rough).astype(np.float64),
        "difference from the most similar images (0 to 1)": _nearest(np.concatenate(small)),
    }


def _nearest(small_NF: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the root mean square distance of each thumbnail to the fifth nearest of a sample, so that a few copies are no company."""
    sample = np.unique(np.linspace(0, len(small_NF) - 1, min(len(small_NF), REFERENCE)).astype(np.int64))
    others, norms, out = small_NF[sample], (small_NF[sample] ** 2).sum(1), np.empty(len(small_NF))
    for a in range(0, len(small_NF), 2048):
        some = small_NF[a : a + 2048]
        square = np.maximum((some**2).sum(1)[:, None] + norms - 2 * some @ others.T, 0)
        out[a : a + 2048] = np.sqrt(np.partition(square, 5, axis=1)[:, 5] / small_NF.shape[1])
    return out
