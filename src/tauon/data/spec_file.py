"""A file with what data of several places have in common: shapes, classes, and the preprocessing, which is then applied instead of fitted.

It has no row. `tauon federate spec` writes it (`federated/spec.py`); `data.spec` names it. With `data.rows: false` nothing else is read: the splits
have shapes and preprocessing, and one made-up example of zeros, for a coordinator whose model is trained by others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import atomic_write
from tauon.config import count_as_read
from tauon.data.arrays import Normalizer
from tauon.data.columns import Encoder
from tauon.data.config import DataConfig
from tauon.data.files import canonical
from tauon.data.labels import renumbered
from tauon.data.sources.base import Arrays, Table
from tauon.data.splits import DataSplits
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = [
    "FORMAT",
    "KINDS",
    "NoRows",
    "agreed_labels",
    "preprocessing_of",
    "read_spec",
    "refuse_other_features",
    "without_rows",
    "write_spec",
]

FORMAT = "tauon-data-spec-1"
KINDS = ("arrays", "table")
"""Kinds of data that can have such a file."""


def write_spec(path: Path | str, spec: DataSpec, preprocess: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
    """Write the file. `more`: values of one place, which `tauon federate spec --merge` reads and does not pass on."""
    record = {"format": FORMAT, "spec": asdict(spec), "preprocess": dict(preprocess)} | dict(more or {})
    atomic_write(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_spec(path: Path | str, *, kind: str | None = None) -> tuple[DataSpec, dict[str, Any], dict[str, Any]]:
    """Return (shapes, preprocessing, everything) of a file. `DataError` if it is not one, or not for data of `kind`."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["spec"].items()}
        spec, preprocess = DataSpec(**tuples), dict(record["preprocess"])
        Normalizer.from_json(preprocess["normalize"])
        if preprocess["kind"] == "table":
            Encoder.from_json(preprocess["columns"])
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}. It is made by: tauon federate spec") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path} is not a file of `tauon federate spec`: {err}") from err
    if kind is not None and preprocess["kind"] != kind:
        raise DataError(f"{path} is for data of kind {preprocess['kind']!r}, but these are {kind!r}")
    return spec, preprocess, record


def preprocessing_of(config: DataConfig, kind: str) -> dict[str, Any] | None:
    """Return the preprocessing of `data.spec`, or None. The settings that it replaces count as read: a recipe keeps those that it was fitted with."""
    if config.spec is None:
        return None
    _ = config.normalize, config.bounds, config.normalize_targets
    count_as_read(config.table)
    return read_spec(config.spec, kind=kind)[1]


def agreed_labels(table: Any, preprocess: Mapping[str, Any], path: str) -> Any:
    """Return `Arrays` or a `Table` with the class numbers of the file. `DataError` for a class that it does not have."""
    assert isinstance(table, Arrays | Table)
    if table.classes != (preprocess["targets"] == "classes"):
        raise DataError(f"the targets are {'classes' if table.classes else 'values'}, but in {path} they are {preprocess['targets']}")
    names = tuple(preprocess["labels"])
    if not table.classes or table.label_names == names:
        return table
    odd = [name for name in table.label_names if name not in names]
    if odd:
        raise DataError(
            f"these data have the label {odd[0]!r}, which {path} does not have. Its labels: {', '.join(names)}. Merge the files of all sites again"
        )
    return replace(table, targets=renumbered(table.targets, table.label_names, names, "training"), label_names=names)


def refuse_other_features(names: tuple[str, ...], shape: tuple[int, ...], preprocess: Mapping[str, Any], path: str) -> None:
    """Raise `DataError` if examples have other columns or another shape than in the file."""
    if list(names) != list(preprocess["features"]) or list(shape) != list(preprocess["input_shape"]):
        gone = [n for n in preprocess["features"] if n not in names] + [n for n in names if n not in preprocess["features"]]
        more = f" (for example column {gone[0]!r})" if gone else ""
        raise DataError(
            f"these data have examples of shape {list(shape)}, but {path} has {preprocess['input_shape']}, or other columns{more}"
        )


class NoRows:
    """A data set without data: its examples are zeros of the right shape. Nothing is trained on them."""

    def __init__(self, spec: DataSpec, *, classes: bool) -> None:
        self.spec, self.classes = spec, classes
        self.facts: dict[str, Any] = {"rows": 0}

    def __len__(self) -> int:
        return 1

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return zeros, with weight 1."""
        import torch

        n, outputs = len(index), self.spec.outputs or 1
        targets = torch.zeros(n, dtype=torch.int64) if self.classes else torch.zeros((n, outputs) if outputs > 1 else (n,))
        return Batch(torch.zeros(n, *(self.spec.input_shape or ())), targets, torch.ones(n))


def without_rows(config: DataConfig) -> DataSplits:
    """Return splits with the shapes and the preprocessing of `data.spec`, and no data."""
    assert config.spec is not None
    spec, preprocess, _ = read_spec(config.spec)
    count_as_read(config)  # a recipe is the same for those who have data
    facts = {
        "kind": preprocess["kind"], "sources": {}, "split": {}, "parts": {"train": {"rows": 0}}, "labels": list(spec.labels),
        "input_shape": list(spec.input_shape or ()), "notes": [f"no data were read: shapes and preprocessing are those of {config.spec}"],
    }  # fmt: skip
    fingerprint = hashlib.sha256(canonical(["no rows", asdict(spec), preprocess]).encode()).hexdigest()
    return DataSplits(NoRows(spec, classes=preprocess["targets"] == "classes"), None, None, spec, facts, fingerprint, None, preprocess)
