"""Tables and images as training examples: normalised with statistics of the training part, augmented in training.

Shape legend: N examples, B batch, F features, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.augment import AugmentConfig, Pixels, augment, check_shape, rearrange
from tauon.data.sources.base import Arrays
from tauon.data.targets import TargetScale
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

if TYPE_CHECKING:
    from torch import Tensor

    from tauon.data.balance import BalancedOrder
    from tauon.data.mix import Mixer

__all__ = ["ArrayDataset", "Normalizer", "TrainingOptions", "check_arrays", "count_repeats"]

NormalizeKind = Literal["none", "standard", "minmax", "unit", "robust", "quantile", "bounds"]

_QUANTILES = 1000
_KEPT_BYTES = 2**28
"""Most bytes of a table that is kept normalised."""
_EDGE = 1e-7  # probabilities nearer to 0 or 1 are clipped: the normal distribution is unbounded


@dataclass(frozen=True)
class Normalizer:
    """x -> (x - center) / scale, for each feature of a table and each channel of an image. Fitted on the training part only.

    `quantile` instead sends each feature's distribution to the standard normal one (scikit-learn's QuantileTransformer).
    It computes in the precision of `center`: float64 for tables, since a value like 1e9 + x loses x in float32; float32 for images.
    """

    kind: str
    center: NDArray[Any]
    """(F) float64, or (C, 1, 1) float32."""
    scale: NDArray[Any]
    quantiles: NDArray[np.float64] | None = None
    """quantile: (Q, columns) values at evenly spaced probabilities from 0 to 1."""
    columns: NDArray[np.int64] | None = None
    """Features that `quantiles` or `limits` belong to; the others are unchanged."""
    limits: NDArray[Any] | None = None
    """(2, columns) values beyond these are clipped first."""

    @classmethod
    def fit(
        cls, features: NDArray[Any], kind: NormalizeKind, only: NDArray[np.bool_] | None = None, limits: NDArray[np.float64] | None = None
    ) -> Normalizer:
        """standard: mean 0, variance 1; robust: median 0, quartiles 1 apart; minmax: 0 to 1; unit: bytes / 255; bounds: from -1 to 1, by
        `limits` alone; none: unchanged. A constant feature becomes 0. `only`: the features of a table (F) that are scaled; the others stay as
        they are. `limits`: (2, scaled features) public lowest and highest values: what lies beyond is clipped before anything is fitted.
        """
        if limits is not None:
            return cls._fit_within(features, kind, only, limits)
        if kind == "quantile":
            return cls._fit_quantiles(features, only)
        images = features.ndim > 2
        axes = (0, *range(2, features.ndim)) if images else (0,)
        shape = (features.shape[1], *(1 for _ in features.shape[2:])) if images else features.shape[1:]
        if kind == "standard":
            center = features.mean(axis=axes, dtype=np.float64)
            scale = (
                np.sqrt(np.maximum(_mean_square(features, axes) - center**2, 0)) if images else features.std(axis=axes, dtype=np.float64)
            )
        elif kind == "robust":
            low, center, high = np.percentile(features.astype(np.float64), (25, 50, 75), axis=axes)
            scale = high - low
        elif kind == "minmax":
            center = features.min(axis=axes).astype(np.float64)
            scale = features.max(axis=axes).astype(np.float64) - center
        elif kind == "unit":
            low, high = float(features.min()), float(features.max())
            if low < 0 or high > 255:
                raise DataError(
                    f"data.normalize: unit divides bytes by 255, but features range from {low:g} to {high:g}. Use standard or minmax"
                )
            center, scale = np.zeros(1), np.full(1, 255.0)
        else:
            center, scale = np.zeros(1), np.ones(1)
        center, scale = np.broadcast_to(center, (shape[0],)), np.broadcast_to(scale, (shape[0],))
        scale = np.where(scale > 1e-12 * np.maximum(np.abs(center), 1e-30), scale, 1.0)
        if only is not None:
            center, scale = np.where(only, center, 0.0), np.where(only, scale, 1.0)
        dtype = np.float32 if images else np.float64
        return cls(kind, center.reshape(shape).astype(dtype), scale.reshape(shape).astype(dtype))

    @classmethod
    def _fit_within(
        cls, features: NDArray[Any], kind: NormalizeKind, only: NDArray[np.bool_] | None, limits: NDArray[np.float64]
    ) -> Normalizer:
        columns = np.arange(features.shape[1]) if only is None else np.flatnonzero(only)
        if kind == "bounds":
            center, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
            low, high = limits
            center[columns], scale[columns] = (low + high) / 2, (high - low) / 2
        else:
            clipped = features.astype(np.float64)
            clipped[:, columns] = np.clip(clipped[:, columns], *limits)
            found = cls.fit(clipped, kind, only)
            center, scale = found.center, found.scale
        return cls(kind, center, scale, columns=columns, limits=limits)

    @classmethod
    def _fit_quantiles(cls, features: NDArray[Any], only: NDArray[np.bool_] | None) -> Normalizer:
        if features.ndim != 2:
            raise DataError(
                f"data.normalize: quantile is only for tables, but examples have shape {features.shape[1:]}. Use standard or minmax"
            )
        columns = np.arange(features.shape[1]) if only is None else np.flatnonzero(only)
        at = np.linspace(0, 1, min(_QUANTILES, len(features)))
        found = np.percentile(features[:, columns].astype(np.float64), at * 100, axis=0)
        found = np.maximum.accumulate(found, axis=0)  # rounding may have swapped neighbours
        zeros = np.zeros(features.shape[1])
        return cls("quantile", zeros, zeros + 1, found, columns)

    def _to_normal(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Map each chosen column, in place, through its distribution function, then the inverse of the normal one."""
        import torch

        assert self.quantiles is not None
        assert self.columns is not None
        at = np.linspace(0, 1, len(self.quantiles))
        for found, j in zip(self.quantiles.T, self.columns.tolist(), strict=True):
            if found[0] == found[-1]:
                features[:, j] = 0
                continue
            x = features[:, j].astype(np.float64)
            # Where many training values are equal, the probability jumps: the middle of the jump (as scikit-learn does).
            p = 0.5 * (np.interp(x, found, at) - np.interp(-x, -found[::-1], -at[::-1]))
            p = np.where(x <= found[0], 0.0, np.where(x >= found[-1], 1.0, p))
            features[:, j] = torch.special.ndtri(torch.from_numpy(np.clip(p, _EDGE, 1 - _EDGE))).numpy()
        return features.astype(np.float32, copy=False)

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return (B, ...) as float32, normalised; a copy."""
        out: NDArray[Any] = features.astype(self.center.dtype)
        if self.quantiles is not None:
            return self._to_normal(out)
        if self.limits is not None:
            out[:, self.columns] = np.clip(out[:, self.columns], *self.limits)
        if self.kind != "none":
            out -= self.center
            out /= self.scale
        return out.astype(np.float32, copy=False)

    def to_json(self) -> dict[str, Any]:
        """Return all that `from_json` needs; JSON values only."""
        some = {"quantiles": self.quantiles, "columns": self.columns, "limits": self.limits}
        dtype = {"dtype": "float64"} if self.center.dtype == np.float64 else {}
        return (
            {
                "kind": self.kind,
                "shape": list(self.center.shape),
                "center": self.center.ravel().tolist(),
                "scale": self.scale.ravel().tolist(),
            }
            | dtype
            | {name: array.tolist() for name, array in some.items() if array is not None}
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Normalizer:
        shape, dtype = tuple(data["shape"]), np.dtype(data.get("dtype", np.float32))  # images, and tables of older checkpoints
        more: dict[str, Any] = {}
        for name, kept in (("quantiles", np.dtype(np.float64)), ("limits", dtype)):
            if name in data:
                more["columns"] = np.array(data["columns"], np.int64)
                more[name] = np.array(data[name], kept).reshape(len(data[name]), len(more["columns"]))
        center, scale = (np.array(data[k], dtype).reshape(shape) for k in ("center", "scale"))
        return cls(data["kind"], center, scale, **more)


def _mean_square(features: NDArray[Any], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Process in chunks of rows, so that a large set of bytes is never copied as float64."""
    pieces = [features[i : i + 4096] for i in range(0, len(features), 4096)]
    total = sum(np.square(p, dtype=np.float64).sum(axis=axes) for p in pieces)
    return np.asarray(total / (features.size / features.shape[1]))


def check_arrays(table: Arrays, where: str, *, training: bool = True) -> Arrays:
    """Return the table with features as uint8, float32 or (not images) float64, and targets as int64 or float64. `DataError` for data that
    cannot be trained on. Models read float32, but only after normalising (`ArrayDataset.batch`).
    """
    features, targets = table.features, table.targets
    if not len(features):
        raise DataError(f"{where}: no rows. Check the file, the columns and data.source.limit")
    if len(features) != len(targets):
        raise DataError(f"{where}: {len(features):,} rows of features but {len(targets):,} targets, expected one per row")
    if features.ndim < 2 or not np.prod(features.shape[1:]):
        raise DataError(f"{where}: features have shape {features.shape}, expected (rows, features) or (rows, channels, height, width)")
    for array, what in ((features, "features"), (targets, "targets")):
        if array.dtype.kind not in "fiub":
            raise DataError(f"{where}: {what} have type {array.dtype}, expected numbers")
        if array.dtype.kind == "f":
            _refuse_nan(array, table.feature_names if what == "features" else table.label_names, f"{where}: {what}")
    if features.dtype != np.uint8:
        with np.errstate(over="ignore"):  # a float64 too large for float32 is an error below
            narrow = features.astype(np.float32, copy=False)
        _refuse_nan(narrow, table.feature_names, f"{where}: features as float32")
        exact = features.ndim == 2 and features.dtype != np.float16 and features.dtype != np.float32
        features = features.astype(np.float64, copy=False) if exact else narrow
    if table.classes:
        targets = targets.astype(np.int64, copy=False)
        _check_classes(targets, table.label_names, where, training)
    elif targets.ndim > 2:
        raise DataError(f"{where}: targets have shape {targets.shape}, expected (rows) or (rows, values)")
    else:
        targets = targets.astype(np.float64, copy=False)
    return replace(table, features=features, targets=targets)


def _refuse_nan(array: NDArray[Any], names: Sequence[str], where: str) -> None:
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count:
        row, *rest = (int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
        rows = int(bad.reshape(len(array), -1).any(axis=1).sum())
        column = (
            f"column {names[rest[0]]!r}" if len(rest) == 1 and rest[0] < len(names) else f"column {tuple(rest)}" if rest else "the column"
        )
        raise DataError(
            f"{where}: row {row}, {column} is {array[(row, *rest)]} ({count:,} such values in {rows:,} rows). "
            "Fill these values in, or remove the rows or columns"
        )


def _check_classes(targets: NDArray[np.int64], names: Sequence[str], where: str, training: bool) -> None:
    if targets.ndim != 1:
        raise DataError(f"{where}: class labels have shape {targets.shape}, expected one number per row")
    bad = np.flatnonzero((targets < 0) | (targets >= max(len(names), 1)) if names else targets < 0)
    if bad.size:
        raise DataError(f"{where}: label {targets[bad[0]]} of row {bad[0]} is out of range, expected 0 to {len(names) - 1}")
    if training and np.all(targets == targets[0]):
        name = names[targets[0]] if names else targets[0]
        raise DataError(
            f"{where}: every row has the label {name!r}, expected at least two classes. Check the label column and data.source.limit"
        )


def count_repeats(train: NDArray[Any], held: NDArray[Any]) -> int:
    """Return the number of rows of `held` that are exact copies of rows of `train`; the held-out score is too good by about their share."""
    kind = np.result_type(train, held)
    train, held = train.astype(kind, copy=False), held.astype(kind, copy=False)
    seen = {hash(row.tobytes()) for row in train}
    return sum(hash(row.tobytes()) in seen for row in held)


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training that held-out parts must not use."""

    seed: int = 0
    augments: Sequence[AugmentConfig] = ()
    weights: NDArray[np.float32] | None = None
    """Weight of each class in the loss, (C)."""
    order: BalancedOrder | None = None
    """Order for the loader if some examples are sampled more often; None: each once per epoch."""
    mixer: Mixer | None = None
    """Mixing of rows in the loader."""


class ArrayDataset:
    """Rows of a table or images. Example `i` of epoch `e` is a pure function of (seed, e, i); safe to share between threads."""

    def __init__(
        self,
        table: Arrays,
        rows: NDArray[np.int64],
        normalizer: Normalizer,
        *,
        training: TrainingOptions | None = None,
        categories: tuple[int, ...] = (),
        groups: NDArray[np.int64] | None = None,
        target_scale: TargetScale | None = None,
    ) -> None:
        """`rows` are the rows of `table` in this part; nothing is copied. `categories`: `DataSpec.categories`. `groups`: group of each of
        these rows. `target_scale`: of regression targets, in which batches return them.
        """
        options = TrainingOptions() if training is None else training
        self._pixels = table.pixels or table.features.dtype == np.uint8
        check_shape(options.augments, table.features.shape[1:], np.uint8 if self._pixels else table.features.dtype)
        self._weights, self.order, self.mixer, self.groups = options.weights, options.order, options.mixer, groups
        self._target_scale = target_scale
        self._table, self._rows, self._normalizer = table, rows, normalizer
        self._kept: NDArray[np.float32] | None = None
        self._seed, self._augments = options.seed, tuple(options.augments)
        targets = table.targets
        outputs = len(table.label_names) if table.classes else (targets.shape[1] if targets.ndim == 2 else 1)
        self.spec = DataSpec(
            input_shape=tuple(table.features.shape[1:]), outputs=outputs, labels=table.label_names, categories=categories,
            target_center=() if target_scale is None else target_scale.center, target_scale=() if target_scale is None else target_scale.scale,
        )  # fmt: skip
        self.facts: dict[str, Any] = {"rows": len(rows)}
        if table.classes:
            counts = np.bincount(targets[rows], minlength=outputs).tolist()
            self.facts["classes"] = dict(zip(table.label_names, counts, strict=True))
        else:
            mine = targets[rows].reshape(len(rows), -1).astype(np.float64)
            self.facts["targets"] = {name: getattr(mine, name)(axis=0).tolist() for name in ("mean", "std", "min", "max")}

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the examples `index`: inputs (B, F) or (B, C, H, W) float32; targets (B) int64, or float32 (B) or (B, C); weights (B) of 1."""
        import torch

        index = np.asarray(index, np.int64)
        rows = self._rows[index]
        if self._augments:
            inputs = self._augmented(self._table.features[rows], epoch, index)
        else:
            inputs = torch.from_numpy(self._scaled(index))
        values = self._table.targets[rows]
        if self._target_scale is not None:
            values = self._target_scale(values)
        targets = torch.from_numpy(values if self._table.classes else values.astype(np.float32, copy=False))
        weights = torch.ones(len(index)) if self._weights is None else torch.from_numpy(self._weights)[targets]
        return Batch(inputs, targets, weights, None, torch.from_numpy(index.copy()))

    def _scaled(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the normalised features of these examples. A table is normalised once, not in every batch again; images, which are bytes, would
        take four times their memory.
        """
        features = self._table.features
        if features.ndim > 2 or len(self._rows) * features.shape[1] * 4 > _KEPT_BYTES:
            return self._normalizer(features[self._rows[index]])
        if self._kept is None:
            self._kept = self._normalizer(features[self._rows])
        scaled: NDArray[np.float32] = self._kept[index]
        return scaled

    @property
    def normalizer(self) -> Normalizer:
        """The scaler of its features."""
        return self._normalizer

    def scale_by(self, normalizer: Normalizer) -> None:
        """Replace the scaler, for statistics that are known only after the data sets were made."""
        self._normalizer, self._kept = normalizer, None

    def without_augmentation(self) -> Self:
        """Return the same examples without augmentation, mixing or weights."""
        shown = copy.copy(self)
        shown._augments, shown._weights, shown.order, shown.mixer = (), None, None, None
        return shown

    def like(self, other: ArrayDataset) -> ArrayDataset:
        """Return the rows of `other` as training examples: augmented, weighted and mixed as its own are."""
        options = TrainingOptions(seed=self._seed, augments=self._augments, weights=self._weights, mixer=self.mixer)
        return ArrayDataset(
            other._table, other._rows, self._normalizer, training=options, categories=self.spec.categories, target_scale=self._target_scale
        )

    def as_bytes(self, inputs: Tensor) -> NDArray[np.uint8]:
        """Return images (B, C, H, W) before normalising, for display: from 0 to 255 if they were so, else stretched to that range."""
        values = inputs.numpy() * self._normalizer.scale + self._normalizer.center
        if not self._pixels:
            low, high = float(values.min()), float(values.max())
            values = (values - low) * (255 / max(high - low, 1e-30))
        pixels: NDArray[np.uint8] = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return pixels

    def _augmented(self, features: NDArray[Any], epoch: int, index: NDArray[np.int64]) -> Tensor:
        """Normalise and augment, in the order that the augmentations need: those that work on raw images run before normalising, and so do
        the first ones if they only rearrange bytes.
        """
        import torch

        first = 0
        if features.dtype == np.uint8 and features.ndim == 4:
            bytes_, first = rearrange(torch.from_numpy(features), self._augments, seed=self._seed, epoch=epoch, index=index)
            features = bytes_.numpy()

        pixels = Pixels(self._normalizer.center, self._normalizer.scale)
        unit = any(step.space == "pixels" for step in self._augments)
        inputs = torch.from_numpy(features).float().div_(255) if unit else torch.from_numpy(self._normalizer(features))
        outside = pixels.outside() if inputs.ndim == 4 else None
        return augment(
            inputs, self._augments, seed=self._seed, epoch=epoch, index=index, outside=outside, pixels=pixels if unit else None, first=first
        )
