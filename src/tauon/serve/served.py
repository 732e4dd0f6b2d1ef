"""`Served`: one version of a predictor on a server: joined calls, its answers as JSON, and what a client must know to ask it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tauon.data import Rows
from tauon.errors import DataError
from tauon.predict import Predictor
from tauon.predict.engine import as_records
from tauon.serve.drift import Drift
from tauon.types import Batch

__all__ = ["Served"]


@dataclass
class Served:
    """A predictor and its facts."""

    predictor: Predictor
    name: str
    version: str
    """Hash of the weights: two servers with the same version answer the same."""
    place: Path
    drift: Drift | None = None
    loaded: float = field(default_factory=time.time)

    def compute(self, items: Sequence[tuple[Rows, int]]) -> Sequence[Any]:
        """Answer several requests: a list of records for each, or its own error. Requests of one kind share a call of the model; cells of a CSV
        and values of JSON are read by different rules, and are not joined.
        """
        kinds = [_kind(rows) for rows, _ in items]
        if len(set(kinds)) == 1:
            return self._computed(items)
        answers: list[Any] = [None] * len(items)
        for kind in dict.fromkeys(kinds):
            places = [i for i, own in enumerate(kinds) if own == kind]
            for i, answer in zip(places, self._computed([items[i] for i in places]), strict=True):
                answers[i] = answer
        return answers

    def _computed(self, items: Sequence[tuple[Rows, int]]) -> list[Any]:
        try:
            joined = items[0][0] if len(items) == 1 else _joined([rows for rows, _ in items])
            records = self._records(joined, sum(n for _, n in items))
        except DataError as err:
            if len(items) == 1:
                return [err]
            return [self._computed([item])[0] for item in items]  # a bad value fails its own request alone
        answers: list[Any] = []
        start = 0
        for _, n in items:
            answers.append(records[start : start + n])
            start += n
        return answers

    def _records(self, rows: Rows, n: int) -> list[dict[str, Any]]:
        batch = self.predictor.batch(rows)
        answers = self.predictor.answer(batch, padded=False)
        if self.drift is not None:
            self.drift.add(batch, answers)
        return as_records(answers, n)

    def warm_up(self) -> dict[int, float]:
        """Run the model on zeros, so that the first request does not pay for what libraries prepare; return seconds by rows."""
        found = {}
        for n in (1, 8, 64):
            batch = self._zeros(n)
            if batch is None:
                break
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                self.predictor.answer(batch, padded=False)
                seconds.append(time.perf_counter() - start)
                if sum(seconds) > 0.5:
                    break
            found[n] = min(seconds)
            if found[n] > 0.25:
                break
        return found

    def _zeros(self, n: int) -> Batch | None:
        preprocess = self.predictor.trained.preprocess
        shape = preprocess.get("input_shape")
        if preprocess.get("kind") != "arrays" or not shape:
            return None
        return Batch(torch.zeros(n, *shape), self.predictor.replay.filler(n), torch.ones(n))

    def info(self) -> dict[str, Any]:
        """Return what a client must know: kind of data, columns, answers."""
        replay, trained = self.predictor.replay, self.predictor.trained
        return {
            "name": self.name,
            "version": self.version,
            "task": trained.task.kind_,
            "reads": replay.reads,
            "columns": _columns(self.predictor),
            "labels": [str(label) for label in trained.preprocess.get("labels") or ()],
            "sample_rate": trained.preprocess.get("sample_rate"),
            "runtime": getattr(trained.model, "runtime", "torch"),
        }


def _kind(rows: Rows) -> tuple[str, ...]:
    """Return how the columns are kept: lists, or arrays of a type."""
    return tuple(
        sorted({"list" if isinstance(v, list) else str(getattr(v, "type", None) or getattr(v, "dtype", "")) for v in rows.columns.values()})
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several requests. Columns that only some of them give are left out: the model does not need them."""
    names = set(parts[0].columns).intersection(*(p.columns for p in parts[1:]))
    cut = [Rows({n: p.columns[n] for n in p.columns if n in names}, p.where, p.hidden) for p in parts]
    found = cut[0]
    for part in cut[1:]:
        found = found.then(part)
    return found


def _columns(predictor: Predictor) -> list[dict[str, Any]]:
    """Return each column of a row: its name, whether it is a number or a category, and the categories that training saw."""
    preprocess = predictor.trained.preprocess
    if predictor.replay.reads == "series":
        return [{"name": str(name), "kind": "number"} for name in preprocess["columns"]]
    if predictor.replay.reads == "texts":
        return [{"name": name, "kind": "text"} for name in predictor.columns]
    if predictor.replay.reads != "rows":
        return []
    return [{"name": name, **_column(preprocess, name)} for name in predictor.columns]


def _column(preprocess: Any, name: str) -> dict[str, Any]:
    table = preprocess.get("columns")
    for column in table.get("columns", ()) if isinstance(table, dict) else ():
        if column.get("name") == name and column.get("kind") != "number":
            return {"kind": str(column["kind"]), "values": [str(v) for v in column.get("categories") or ()][:200]}
    return {"kind": "number"}
