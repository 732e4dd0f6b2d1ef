"""The columns of a table as a person knows them, from the model's inputs and back: numbers in their units, categories by name.

A column that was encoded as several inputs (one for each category) is one readable column. What cannot be decoded (a mean target in place of a
category, parts of a date) stays the number that the model gets, under the name of the column.

Shapes: N rows, F inputs of the model, K readable columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data import Encoder, Normalizer
from tauon.explain.features.columns import Feature, describe_features

__all__ = ["MISSING", "ReadableTable"]

MISSING = "missing or unseen"
"""Name of code 0."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Source:
    """One readable column."""

    name: str
    first: int
    """Its first input."""
    width: int
    categories: tuple[str, ...] = ()
    onehot: bool = False


@dataclass(frozen=True)
class ReadableTable:
    """Inputs of a model of tables <-> readable columns."""

    sources: tuple[_Source, ...]
    normalizer: Normalizer

    @classmethod
    def of(cls, preprocess: Mapping[str, Any], width: int) -> ReadableTable:
        """Return the readable columns that `DataSplits.preprocess` describes. `width`: number of inputs."""
        normalizer = Normalizer.from_json(dict(preprocess["normalize"]))
        if preprocess.get("kind") != "table":
            names = list(preprocess.get("features") or ())
            names = names if len(names) == width else [f"feature {j}" for j in range(width)]
            return cls(tuple(_apart([_Source(str(name), j, 1) for j, name in enumerate(names)])), normalizer)
        sources: list[_Source] = []
        at = 0
        for column in Encoder.from_json(preprocess["columns"]).columns:
            outputs = column.outputs()
            n = len(outputs) - int(column.indicator)
            if column.kind == "category" and column.encoding in ("codes", "ordinal"):
                sources.append(_Source(column.name, at, 1, (MISSING, *column.categories)))
            elif column.kind == "category" and column.encoding == "onehot":
                sources.append(_Source(column.name, at, n, (MISSING, *column.categories), onehot=True))
            else:
                sources += [_Source(_plain(column.name, outputs[i][0], column.kind), at + i, 1) for i in range(n)]
            if column.indicator:
                sources.append(_Source(outputs[-1][0], at + n, 1))
            at += len(outputs)
        return cls(tuple(_apart(sources)), normalizer)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the readable columns, K."""
        return tuple(s.name for s in self.sources)

    @property
    def groups(self) -> list[int]:
        """Readable column of each input, F."""
        return [k for k, s in enumerate(self.sources) for _ in range(s.width)]

    def features(self, readable_NK: Floats, fixed: Collection[str] = ()) -> tuple[Feature, ...]:
        """Describe the readable columns by training rows. `fixed`: columns that cannot change."""
        categories = {s.name: s.categories for s in self.sources if s.categories}
        return describe_features(readable_NK, self.names, categories=categories, fixed=fixed)

    def read(self, inputs_NF: NDArray[Any]) -> Floats:
        """Return the readable columns NK of inputs NF."""
        raw = self._unscaled(np.asarray(inputs_NF, np.float64))
        columns = []
        for s in self.sources:
            block = raw[:, s.first : s.first + s.width]
            if s.onehot:
                columns.append(np.where(block.max(1, initial=0) > 0.5, block.argmax(1) + 1, 0).astype(np.float64))
            elif s.categories:
                columns.append(np.clip(np.round(block[:, 0]), 0, len(s.categories) - 1))
            else:
                columns.append(block[:, 0] if self.normalizer.quantiles is not None else _clean(block[:, 0]))
        return np.stack(columns, 1)

    def inputs(self, readable_NK: Floats) -> NDArray[np.float32]:
        """Return the inputs NF of readable columns NK."""
        readable_NK = np.asarray(readable_NK, np.float64)
        raw = np.zeros((len(readable_NK), len(self.groups)))
        for k, s in enumerate(self.sources):
            if s.onehot:
                codes = readable_NK[:, k].astype(np.int64)
                there = np.flatnonzero(codes > 0)
                raw[there, s.first + codes[there] - 1] = 1
            else:
                raw[:, s.first] = readable_NK[:, k]
        return self.normalizer(raw)

    def _unscaled(self, inputs: Floats) -> Floats:
        n = self.normalizer
        if n.quantiles is not None and n.columns is not None:
            import torch

            raw = inputs.copy()
            end = 2e-7  # beyond it the scale is cut off: the lowest and the highest value of training
            at = np.linspace(0, 1, len(n.quantiles))
            for found, j in zip(n.quantiles.T, n.columns.tolist(), strict=True):
                share = torch.special.ndtr(torch.from_numpy(inputs[:, j].copy())).numpy()
                raw[:, j] = np.interp(np.where(share < end, 0, np.where(share > 1 - end, 1, share)), at, found)
            return raw
        if n.kind == "none":
            return inputs
        return inputs * n.scale.astype(np.float64) + n.center.astype(np.float64)


def _apart(sources: Sequence[_Source]) -> Iterator[_Source]:
    """Number the later ones of columns that have the same name: "age missing" may be a column and a flag of another."""
    taken: set[str] = set()
    for s in sources:
        name, n = s.name, 1
        while name in taken:
            n += 1
            name = f"{s.name} ({n})"
        taken.add(name)
        yield replace(s, name=name)


def _plain(name: str, output: str, kind: str) -> str:
    return output if kind == "date" or output == name else f"{name} (mean target {output.removeprefix(name).lstrip('.')})"


def _clean(values: Floats) -> Floats:
    """Undo the rounding of float32: 0.30000001192 -> 0.3."""
    rounded = np.array([float(f"{v:.6g}") for v in values.tolist()])
    return np.where(np.abs(rounded - values) <= 1e-6 * np.maximum(np.abs(values), 1e-3), rounded, values)
