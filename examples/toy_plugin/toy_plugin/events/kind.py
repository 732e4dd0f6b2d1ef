"""Sequences of events as a kind of data: read, split by sequence, fitted on the training part, and encoded again when a model predicts.

Shape legend: N sequences, B batch, T events, F features of an event: one for each type, then the logarithm of the time before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tauon.config import register
from tauon.data import ChosenRows, DataKind, Fitted, Parts, Request, SourceConfig
from tauon.errors import DataError
from tauon.types import Batch, DataSpec
from toy_plugin.events.source import Log, Logs

__all__ = ["EventDataset", "EventsKind", "inputs_from_logs"]


@register("events")
class EventsKind(DataKind[Logs]):
    """Sequences of events, each with a class."""

    input_kind, output_kind, words = "events", "events", "sequences of events"
    reads = ("seq_len",)

    def read(self, source: SourceConfig, part: str, request: Request) -> Logs:
        logs: Logs = source.logs()  # type: ignore[attr-defined] - what a source that gives events has
        n = source.limit
        if not logs.logs:
            raise DataError(f"the {part} source has no logs. Check its settings")
        return logs if n is None else Logs(logs.logs[:n], logs.targets[:n], logs.labels)

    def strata(self, data: Logs) -> NDArray[np.int64]:
        return np.array(data.targets, np.int64)  # each class is held out in proportion

    def fit(self, parts: Parts[Logs], request: Request) -> Fitted:
        train = _chosen(parts["train"])
        gaps = np.log1p([m for log in train for m in log.minutes])
        preprocess = {
            "kind": "events", "types": sorted({t for log in train for t in log.types}), "center": float(gaps.mean()),
            "scale": float(gaps.std()) or 1.0, "length": request.config.seq_len or max(len(log.types) for log in train),
            "labels": list(parts["train"].data.labels), "targets": "classes",
        }  # fmt: skip
        datasets = {part: EventDataset(preprocess, rows) for part, rows in parts.items()}
        content = {part: [repr(_chosen(rows)), rows.index.tolist()] for part, rows in parts.items()}
        digest = hashlib.sha256(repr(content).encode()).hexdigest()
        facts = {"types": preprocess["types"], "labels": preprocess["labels"], "events": preprocess["length"]}
        return Fitted({**datasets}, digest, [preprocess, request.seed], preprocess, facts)


class EventDataset:
    """Sequences of one length. Example `i` is the same in every epoch."""

    def __init__(self, preprocess: Mapping[str, Any], rows: ChosenRows[Logs]) -> None:
        logs, labels = _chosen(rows), tuple(preprocess["labels"])
        self._inputs_NTF = torch.from_numpy(inputs_from_logs(preprocess, logs))
        self._targets_N = torch.tensor([rows.data.targets[i] for i in rows.index])
        self.spec = DataSpec(input_shape=tuple(self._inputs_NTF.shape[1:]), outputs=len(labels), labels=labels)
        counts = np.bincount(self._targets_N.numpy(), minlength=len(labels)).tolist()
        self.facts: dict[str, Any] = {"sequences": len(logs), "classes": dict(zip(labels, counts, strict=True))}

    def __len__(self) -> int:
        return len(self._targets_N)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The sequences `index`: inputs BTF float32, targets B int64, weights B of 1."""
        i = torch.from_numpy(np.array(index, np.int64))
        return Batch(self._inputs_NTF[i], self._targets_N[i], torch.ones(len(i)), index=i)


def inputs_from_logs(preprocess: Mapping[str, Any], logs: Sequence[Log]) -> NDArray[np.float32]:
    """(N, T, F): the last T events of each log, zeros before the first; a type that training never saw has no one. Training and prediction."""
    number = {name: i for i, name in enumerate(preprocess["types"])}
    T = preprocess["length"]
    inputs = np.zeros((len(logs), T, len(number) + 1), np.float32)
    for row, log in enumerate(logs):
        last = list(zip(log.types, log.minutes, strict=True))[-T:]
        for at, (name, minutes) in enumerate(last, T - len(last)):
            if name in number:
                inputs[row, at, number[name]] = 1
            inputs[row, at, -1] = (np.log1p(minutes) - preprocess["center"]) / preprocess["scale"]
    return inputs


def _chosen(rows: ChosenRows[Logs]) -> list[Log]:
    return [rows.data.logs[i] for i in rows.index]
