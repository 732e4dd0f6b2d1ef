"""How training chooses, weighs and mixes examples that have classes: the keys `sampling`, `class_weights`, `mix` and `label_order`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.arrays import TrainingOptions
from tauon.data.balance import BalancedOrder, class_weights
from tauon.data.config import DataConfig
from tauon.data.mix import Mixer
from tauon.data.sources.base import Arrays, Table
from tauon.errors import DataError

__all__ = ["choice_facts", "training_options"]


def training_options(
    config: DataConfig, main: Arrays | Table, rows: NDArray[np.int64], shape: tuple[int, ...], seed: int
) -> TrainingOptions:
    """How training samples, weights, mixes and augments examples. `rows`: of `main`, the training part; `shape` is that of an example."""
    asked, weights, mix = config.sampling, config.class_weights, config.mix
    plain = TrainingOptions(seed=seed, augments=config.augment)
    if not main.classes:
        for name, used in (("sampling", asked != "shuffle"), ("class_weights", weights is not None), ("mix", mix is not None)):
            if used:
                raise DataError(f"data.{name} needs classes, but the targets are numbers. Remove it, or set data.source.target=class")
        return plain
    targets, classes = main.targets[rows], len(main.label_names)
    return replace(
        plain,
        order=BalancedOrder(targets, seed) if asked == "balanced" else None,
        weights=None if weights is None else class_weights(targets, weights, main.label_names),
        mixer=None if mix is None else Mixer(mix, seed=seed, classes=classes, shape=shape),
    )


def choice_facts(config: DataConfig, labels: Sequence[str], options: TrainingOptions) -> dict[str, Any]:
    """Facts for the report, if anything was chosen."""
    facts: dict[str, Any] = {}
    if config.raw_value("sampling") != "shuffle":
        facts["sampling"] = config.raw_value("sampling")
    if options.weights is not None:
        facts["class_weights"] = dict(zip(labels, options.weights.tolist(), strict=True))
    if config.raw_value("mix") is not None:
        facts["mix"] = dump(config.raw_value("mix"))
    if config.raw_value("label_order"):
        facts["label_order"] = list(config.raw_value("label_order"))
    return facts
