"""`privacy.statistics`: noisy means and deviations of a table's columns of numbers, charged like a training step.

The data is prepared with `normalize: bounds`, which reads no data. After the run's releases are reserved, one Gaussian answer
(`preparation.private_statistics`) over the training rows is drawn from the run's key and written to `statistics.json` in its folder. From
then on all splits, the checkpoint's `preprocess`, a resume, evaluation and serving scale by it. Nothing is drawn twice.

Not here: other things learned from a table (categories, imputed values, constant columns). The guarantee does not cover them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.artifacts import read_json, write_json
from tauon.config import Config, dump
from tauon.data import ArrayDataset, DataConfig, DataSplits, HalfConfig, Normalizer, without_augmentation
from tauon.errors import DataError, Problem, RecipeError, RunError
from tauon.privacy.accounting import Release
from tauon.privacy.noise import NoiseSource
from tauon.privacy.preparation import private_statistics
from tauon.types import Dataset

__all__ = [
    "StatisticsConfig",
    "announced",
    "apply_statistics",
    "copy_statistics",
    "discard_statistics",
    "draw_statistics",
    "fits_nothing",
    "read_statistics",
    "refuse_statistics",
    "scaled_columns",
]

NAME = "statistics.json"
FORMAT = "tauon-statistics-1"


class StatisticsConfig(Config):
    """Noisy means and deviations for `data.normalize: standard`."""

    noise: float = Field(20.0, ge=0.1, le=1e6)
    """Noise multiplier (standard deviation / sensitivity) of the one answer for all columns. 20 costs an epsilon of 0.16 alone (delta 1e-5),
    and much less when composed with training; the error of each mean is then 22 sqrt(columns) / examples of half its bounds."""

    @property
    def release(self) -> Release:
        """What it tells."""
        return Release(self.noise, "full")


def refuse_statistics(data: DataConfig, input_kind: str) -> Iterator[tuple[str, str]]:
    """(field, message) for each setting of `data` that does not work with private statistics."""
    kind = data.raw_value("normalize")
    if input_kind != "arrays":
        yield (
            "privacy.statistics",
            f"are means and deviations of a table's columns, but the task needs {input_kind}. Remove privacy.statistics.",
        )
    elif kind == "bounds":
        yield (
            "privacy.statistics",
            "are not needed: data.normalize=bounds learns nothing from the data. Remove privacy.statistics, or set data.normalize=standard.",
        )
    elif kind != "standard":
        yield "data.normalize", f"is {kind}, but privacy.statistics are means and deviations. Set standard, or remove privacy.statistics."
    elif not data.raw_value("bounds"):
        message = 'are missing; privacy.statistics need public bounds of each column. Set what is known: {age: [18, 100], "*": [0, 1]}.'
        yield "data.bounds", message
    if data.raw_value("normalize_targets") == "standard":
        message = "learns the mean and the deviation of the target without noise. Set bounds, and add the target's range to data.bounds."
        yield "data.normalize_targets", f"standard {message}"


def fits_nothing(data: DataConfig) -> DataConfig:
    """Return `data` with `normalize: bounds`, so that preparing it learns no statistics; the noisy ones are applied later."""
    return data.model_copy(update={"normalize": "bounds"})


def announced(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts for the report about data prepared by `fits_nothing`."""
    why = "noisy means and deviations (privacy.statistics), drawn when training starts"
    return dict(facts) | {"normalize": facts["normalize"] | {"kind": "standard", "why": why}}


def scaled_columns(preprocess: Mapping[str, Any]) -> int:
    """Number of columns with statistics. Raises `RecipeError` if there is none."""
    found = Normalizer.from_json(preprocess["normalize"]).columns
    count = 0 if found is None else len(found)
    if not count:
        raise RecipeError([Problem("privacy.statistics", "need columns of numbers, but the table has none. Remove privacy.statistics.")])
    return count


def draw_statistics(folder: Path, splits: DataSplits, config: StatisticsConfig, source: NoiseSource) -> dict[str, Any]:
    """Read the statistics of the run in `folder`, or draw them from `source` and write them. `splits`: made with `normalize: bounds`."""
    before = read_statistics(folder, splits, config)
    if before is not None:
        return before
    base = Normalizer.from_json(splits.preprocess["normalize"])
    assert base.columns is not None
    settings = _settings(splits, config)
    # Other data or settings get other noise, even with the same key: two answers with the same noise would reveal the exact difference.
    name = f"statistics/{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}"
    found, _ = private_statistics(_unit_features(splits.train, base.columns), (-1.0, 1.0), noise=config.noise, source=source, name=name)
    middle, half = (a[base.columns].astype(np.float64) for a in (base.center, base.scale))
    record = {
        "format": FORMAT, "settings": settings, "examples": len(splits.train), "mean": (middle + half * found.mean).tolist(),
        "std": (half * found.std).tolist(), "error": (half * found.error).tolist(),
    }  # fmt: skip
    write_json(folder / NAME, record)
    return record


def read_statistics(folder: Path, splits: DataSplits, config: StatisticsConfig, *, needed: bool = False) -> dict[str, Any] | None:
    """Read the statistics of the run in `folder`; None if none were drawn. `splits`: made with `normalize: bounds`.

    Raises:
        RunError: drawn for other data or settings, or missing although the run has trained with them (`needed`).
        DataError: the file was edited.
    """
    path = folder / NAME
    if not path.exists():
        if needed:
            raise RunError(f"{path} is missing, but the run has trained with it. Restore it, or start over with --fresh.")
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path}: expected the format {FORMAT}. Restore it, or start over with --fresh.")
    now = _settings(splits, config)
    there = record.get("settings")
    if there != now:
        odd = ", ".join(k for k in now if not isinstance(there, dict) or there.get(k) != now[k])
        raise RunError(
            f"{path} was drawn for other data or settings ({odd}), and drawing again would cost more budget. Restore them, start over with --fresh, "
            "or give another name (name=...)."
        )
    for key in ("mean", "std"):
        try:
            values = np.asarray(record.get(key), np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (len(now["columns"]),) or not np.isfinite(values).all() or (key == "std" and not (values > 0).all()):
            raise DataError(f"{path}: {key} was edited: expected {len(now['columns'])} finite numbers. Restore it.")
    return record


def apply_statistics(splits: DataSplits, record: Mapping[str, Any]) -> DataSplits:
    """Scale all splits by the noisy statistics, in place; return them with the matching preprocess, facts and fingerprint."""
    base = Normalizer.from_json(splits.preprocess["normalize"])
    center, scale = base.center.copy(), base.scale.copy()
    center[base.columns], scale[base.columns] = (np.asarray(record[k], np.float64) for k in ("mean", "std"))
    scaled = replace(base, kind="standard", center=center, scale=scale)
    for part in (splits.train, splits.validation, splits.test):
        for dataset in _arrays_in(part):
            dataset.scale_by(scaled)
    made_of = hashlib.sha256(f"{splits.fingerprint}/{json.dumps(scaled.to_json(), sort_keys=True)}".encode()).hexdigest()
    return replace(splits, preprocess=splits.preprocess | {"normalize": scaled.to_json()}, fingerprint=made_of)


def discard_statistics(folder: Path) -> None:
    """Delete statistics that nothing was trained with. The key stays, so the same run would draw the same values again."""
    (folder / NAME).unlink(missing_ok=True)


def copy_statistics(source: Path, target: Path, half: HalfConfig) -> None:
    """Copy the statistics of an audit's target to a reference model, which trains on half of the data: an attacker has them from the checkpoint."""
    if (source / NAME).exists() and not (target / NAME).exists():
        record = read_json(source / NAME)
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / NAME, record | {"settings": record["settings"] | {"half": _half(dump(half)), "canaries": None}})


def _settings(splits: DataSplits, config: StatisticsConfig) -> dict[str, Any]:
    """Everything the answer depends on: the rows and their bounds."""
    base, facts = splits.preprocess["normalize"], splits.facts
    return {
        "noise": config.noise, "content": facts["content"], "half": _half(facts.get("half")), "canaries": facts.get("canaries"),
        "columns": base["columns"], "limits": base["limits"],
    }  # fmt: skip


def _half(facts: Mapping[str, Any] | None) -> list[int] | None:
    return None if facts is None else [facts["number"], facts["seed"]]


def _unit_features(train: Dataset, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, K) features of all training examples, unscaled, between -1 and 1."""
    shown = without_augmentation(train)
    pieces = [shown.batch(np.arange(i, min(i + 4096, len(shown)))).inputs.numpy()[:, columns] for i in range(0, len(shown), 4096)]
    return np.concatenate(pieces).astype(np.float64)


def _arrays_in(dataset: Any) -> Iterator[ArrayDataset]:
    """All table data sets that `dataset` is or wraps (canaries, a subset)."""
    seen: set[int] = set()
    waiting = [dataset]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            waiting += one
        elif hasattr(type(one), "batch") and id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, ArrayDataset):
                yield one
            else:
                waiting += vars(one).values()
