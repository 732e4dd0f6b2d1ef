"""Regression targets scaled to order 1: (target - center) / scale, from the training part alone.

The scale is in `DataSpec`, for evaluation in the units of the data, and in `DataSplits.preprocess`, for prediction
(`replay.outputs_in_units`). A series scales its columns itself (`series.py`); classes have no scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.errors import Problem, RecipeError

__all__ = ["TargetKind", "TargetScale", "fit_target_scale", "target_names"]

TargetKind = Literal["auto", "standard", "bounds", "none"]


@dataclass(frozen=True)
class TargetScale:
    """target -> (target - center) / scale, for each of K targets."""

    center: tuple[float, ...]
    scale: tuple[float, ...]
    public: bool = False
    """Whether it follows from the recipe, so that it reveals nothing about the data."""

    @classmethod
    def fit(cls, targets: NDArray[Any]) -> TargetScale:
        """Return mean and standard deviation of each column of N or N x K targets. A constant target is only centred.

        >>> TargetScale.fit(np.array([1.0, 3.0]))
        TargetScale(center=(2.0,), scale=(1.0,), public=False)
        """
        wide = targets.reshape(len(targets), -1).astype(np.float64)
        center = wide.mean(0)
        deviation = np.sqrt(np.square(wide - center).mean(0))
        deviation = np.where(deviation > 1e-12 * np.maximum(np.abs(center), 1e-300), deviation, 1.0)
        return cls(tuple(center.tolist()), tuple(deviation.tolist()))

    @classmethod
    def within(cls, limits: Sequence[tuple[float, float]]) -> TargetScale:
        """Map the (lowest, highest) value of each target to -1 and 1. Nothing is clipped.

        >>> TargetScale.within([(0.0, 10.0)])
        TargetScale(center=(5.0,), scale=(5.0,), public=True)
        """
        return cls(tuple((low + high) / 2 for low, high in limits), tuple((high - low) / 2 for low, high in limits), public=True)

    def __call__(self, targets: NDArray[Any]) -> NDArray[np.float32]:
        """Return N or N x K targets in the model's scale."""
        center, scale = self._as_columns(targets.ndim - 1)
        return ((targets.astype(np.float64) - center) / scale).astype(np.float32)

    def undo(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return outputs N, N x K or N x K x ... (quantiles) in the units of the data.

        >>> TargetScale((5.0,), (2.0,)).undo(np.array([[1.0], [-1.0]])).tolist()
        [[7.0], [3.0]]
        """
        center, scale = self._as_columns(outputs.ndim - 1)
        return np.asarray(outputs, np.float64) * scale + center

    def _as_columns(self, dimensions: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shape = (-1, *(1 for _ in range(dimensions - 1))) if dimensions else ()
        center, scale = np.array(self.center), np.array(self.scale)
        return center.reshape(shape), scale.reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs; JSON values only."""
        return {"center": list(self.center), "scale": list(self.scale), "public": self.public}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TargetScale:
        """What `to_json` gave."""
        return cls(tuple(data["center"]), tuple(data["scale"]), data["public"])


def target_names(labels: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Return names of the target columns, as `data.bounds` uses them: the source's, or target, target0, target1, ...

    >>> target_names((), 2)
    ('target0', 'target1')
    """
    if len(labels) == outputs:
        return tuple(labels)
    return ("target",) if outputs == 1 else tuple(f"target{k}" for k in range(outputs))


def fit_target_scale(
    targets: NDArray[Any], labels: Sequence[str], *, kind: TargetKind, normalize: str, bounds: Mapping[str, tuple[float, float]]
) -> tuple[TargetScale | None, dict[str, Any], list[str]]:
    """Return (scale, facts for `data.json`, note) of regression targets; no scale for classes, and if targets are not scaled.

    Args:
        targets: the training part's, N or N x K, in the units of the data.
        labels: names of the target columns.
        kind: `data.normalize_targets`.
        normalize: `data.normalize`; with `bounds` nothing about scaling may be estimated from the data.
        bounds: `data.bounds`.

    Raises:
        RecipeError: bounds of a target are needed and missing.
    """
    if np.issubdtype(targets.dtype, np.integer):
        return None, {}, []
    names = target_names(labels, 1 if targets.ndim == 1 else targets.shape[1])
    resolved, why = _resolve(kind, names, normalize, bounds)
    if resolved == "none":
        return None, {"normalize_targets": {"kind": "none", "why": why}}, []
    scale = TargetScale.within([bounds[n] for n in names]) if resolved == "bounds" else TargetScale.fit(targets)
    shown = [f"{n} is scaled as (value - {c:.6g}) / {s:.6g}" for n, c, s in zip(names, scale.center, scale.scale, strict=True)][:4]
    more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
    note = f"{'; '.join(shown)}{more} (data.normalize_targets: {resolved}, {why}). Metrics and predictions are in the original units."
    return scale, {"normalize_targets": {"kind": resolved, "why": why, "names": list(names)} | scale.to_json()}, [note]


def _resolve(kind: TargetKind, names: Sequence[str], normalize: str, bounds: Mapping[str, tuple[float, float]]) -> tuple[TargetKind, str]:
    """Return (kind without auto, reason)."""
    missing = [n for n in names if n not in bounds]
    if kind == "auto" and not missing:
        return "bounds", "data.bounds gives the range"
    if kind == "auto" and normalize != "bounds":
        return "standard", "the default for numbers to predict"
    if missing and kind in ("auto", "bounds"):
        said = (
            f"has no range for the target {', '.join(missing[:8])}, and with normalize: bounds no scale may be estimated from the data. "
            f"Set it (data.bounds: {{{missing[0]}: [low, high]}}), or set data.normalize_targets: none if its values are of order 1."
        )
        raise RecipeError([Problem("data.bounds", said)])
    return kind, "as set"
