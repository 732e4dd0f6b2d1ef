"""Steps and checks that several kinds of data share: augmentations, the target scale, settings that need documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.augment import AugmentConfig
from tauon.data.config import DataConfig
from tauon.data.kinds.base import Request
from tauon.data.read_keys import count_as_read
from tauon.data.spec_file import read_spec
from tauon.data.spelling import nfc
from tauon.data.split import SplitConfig
from tauon.data.targets import TargetScale, fit_target_scale
from tauon.errors import DataError

__all__ = ["FEATURE_KEYS", "augment_steps", "fit_targets", "refuse_arrays_by_document", "refuse_split_by_document"]

FEATURE_KEYS = ("spec", "normalize", "bounds", "normalize_targets", "augment", "mix", "sampling", "class_weights", "label_order")
"""Keys of `data` for features with a class or a value, both arrays and tables."""


def augment_steps(config: DataConfig, fits: Callable[[AugmentConfig], bool] | None = None, refusal: str = "") -> list[dict[str, Any]]:
    """Return `data.augment` as plain data. `DataError` for one that does not fit: its name and `refusal` ("is not for texts. Use ...")."""
    steps = [dump(step) for step in config.augment]
    for place, step in enumerate(config.augment):
        if fits is not None and not fits(step):
            raise DataError(f"data.augment.{place}: {step.kind_} {refusal}")
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])  # training batches read them later
    return steps


def refuse_split_by_document(config: DataConfig, words: str) -> Iterator[tuple[str, str]]:
    """Problems of kinds whose texts are rows: they have no documents to split by."""
    split: SplitConfig = config.raw_value("split")
    if split.raw_value("by") == "document":
        yield "split.by", f"document is only for running text; {words} are split by row or position"


def refuse_arrays_by_document(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Problems of kinds with rows of features: they have no documents to split by."""
    split: SplitConfig = config.raw_value("split")
    if split.raw_value("by") == "document":
        yield "split.by", "document is only for text; arrays are split by row or position"


def fit_targets(request: Request, targets: NDArray[Any], labels: tuple[str, ...]) -> tuple[TargetScale | None, dict[str, Any], list[str]]:
    """Return `fit_target_scale` with the recipe's settings, if the task wants scaled targets."""
    if not request.scale_targets:
        return None, {}, []
    config = request.config
    if config.spec is not None:
        found = read_spec(config.spec)[1].get("target_scale")
        return None if found is None else TargetScale.from_json(found), {}, []
    bounds = {nfc(n): b for n, b in config.bounds.items()}
    return fit_target_scale(targets, labels, kind=config.normalize_targets, normalize=config.normalize, bounds=bounds)
