"""Features of array data -> the model's inputs, as `kinds/arrays.py` made them: named number columns, images, arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import parse
from tauon.data.arrays import Normalizer
from tauon.data.image_features import ScatteringConfig, features_of
from tauon.data.pixel_range import PixelRange
from tauon.data.replay.base import Replay, Rows, float_batch, register_replay
from tauon.data.replay.tables import numbers_in
from tauon.errors import DataError
from tauon.types import Batch

__all__ = ["ArrayReplay"]


@register_replay("arrays")
@dataclass
class ArrayReplay(Replay):
    """Rows of named numbers; images in a column `picture`, as (H, W, channels); or whole examples in a column `array`."""

    @property
    def reads(self) -> str:  # type: ignore[override]
        if self.preprocess.get("features"):
            return "rows"
        return "pictures" if len(self.picture_shape) == 3 else "arrays"

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the images; unknown for features computed from images."""
        return () if "scattering" in self.preprocess else tuple(self.preprocess["input_shape"])

    @property
    def columns(self) -> tuple[str, ...]:
        names = tuple(self.preprocess.get("features", ()))
        return names or (("picture",) if self.reads == "pictures" else ("array",))

    def batch(self, rows: Rows) -> Batch:
        return float_batch(self, self.inputs(rows))

    def inputs(self, rows: Rows) -> NDArray[np.float32]:
        """Return (N, F) or (N, C, H, W), scaled."""
        if "array" in rows.columns and self.reads != "rows":
            values = np.asarray(rows.columns["array"])
        elif self.reads == "pictures":
            rows.need(self.columns)
            values = self._stacked(rows)
        else:
            rows.need(self.columns)
            values = self._numbers(rows)
        return self.scaled(values, rows)

    def scaled(self, values: NDArray[Any], rows: Rows) -> NDArray[np.float32]:
        """Return raw values, examples first, as the model reads them."""
        shape, pixels = tuple(self.preprocess["input_shape"]), "pixel_range" in self.preprocess
        if pixels:
            values = PixelRange.from_json(self.preprocess["pixel_range"])(values)
        if "scattering" in self.preprocess:
            made = features_of(values, parse(ScatteringConfig, self.preprocess["scattering"]), pixels=pixels)
            values = made.astype(np.float16)  # the cache of features stores float16
        if values.shape[1:] != shape:
            place = rows.where(0, self.columns[0]).rpartition(": column")[0]
            raise DataError(f"{place}: the example has shape {values.shape[1:]}, but the model was trained on {shape}")
        if values.dtype != np.uint8:
            exact = values.ndim == 2 and values.dtype not in (np.float16, np.float32)
            values = values.astype(np.float64 if exact else np.float32, copy=False)
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            if bad.any():
                raise DataError(f"{rows.where(int(np.argmax(bad)), self.columns[0])} has a value that is NaN or infinite")
        return Normalizer.from_json(self.preprocess["normalize"])(values)

    def _numbers(self, rows: Rows) -> NDArray[np.float64]:
        found = []
        for name in self.columns:
            numbers = numbers_in(rows.columns[name], lambda i, name=name: rows.where(i, name))  # type: ignore[misc]
            lost = np.isnan(numbers)
            if lost.any():
                raise DataError(
                    f"{rows.where(int(np.argmax(lost)), name)} is missing, but the model was trained without missing values. Give a value"
                )
            found.append(numbers)
        return np.stack(found, axis=1)

    def _stacked(self, rows: Rows) -> NDArray[Any]:
        """Return (N, C, H, W) from images (H, W, 1 or 3) of the training size and depth."""
        C, H, W = self.picture_shape
        deep = "pixel_range" in self.preprocess
        out: NDArray[Any] | None = None
        for i, picture in enumerate(rows.columns["picture"]):
            where = rows.where(i, "picture").rpartition(": column")[0]
            value = np.asarray(picture)
            value = value[:, :, None] if value.ndim == 2 else value
            if value.ndim != 3 or value.shape[2] not in (1, 3):
                raise DataError(f"{where}: the image has shape {value.shape}, expected (height, width) or (height, width, 1 or 3)")
            if value.shape[:2] != (H, W):
                raise DataError(
                    f"{where}: {value.shape[1]} x {value.shape[0]} pixels, but the model was trained on {W} x {H}. Resize it, or "
                    "train with data.source.size, which also resizes here"
                )
            if (value.dtype == np.uint8) == deep:
                a, b = ("8 bits per value", "more") if deep else ("more than 8 bits per value", "8")
                raise DataError(f"{where}: {a}, but the training images have {b}. Convert it")
            if C == 1 and value.shape[2] == 3:
                if not (value == value[:, :, :1]).all():
                    raise DataError(f"{where}: the image has colours, but the model was trained on grey images. Convert it to grey")
                value = value[:, :, :1]
            out = np.empty((len(rows), C, H, W), value.dtype) if out is None else out
            out[i] = np.moveaxis(value, -1, 0)  # a grey image is repeated in all channels
        assert out is not None
        return out
