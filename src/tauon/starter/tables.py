"""CSV and similar: rows with a label, or a date and numbers (a time series)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.config import parse
from tauon.data import ColumnLook, SourceConfig, TableLook, inspect_table
from tauon.data.sources.index_column import is_nameless
from tauon.data.sources.series import IncompleteSeries
from tauon.errors import DataError
from tauon.starter.draft import Draft, held_out, training
from tauon.starter.text import text_classes

__all__ = ["LABELS", "is_table", "table"]

_TWO_READINGS = "two readings"
TABLES = (".csv", ".tsv", ".data")
LABELS = ("label", "target", "class", "y", "outcome", "diagnosis", "category", "result", "churn", "default", "sentiment")
"""Column names that are probably labels."""


def is_table(place: Path) -> bool:
    return place.is_file() and place.name.removesuffix(".gz").lower().endswith(TABLES)


def table(place: Path, label: str | None, name: str) -> Draft:
    look = inspect_table(place)
    date = next((c for c in look.columns if c.kind == "date" and c.missing == 0 and c.distinct == look.rows), None)
    numbers = [c for c in look.columns if c.kind == "number"]
    others = [c for c in look.columns if c is not date and c not in numbers and not is_nameless(c.name)]
    if label is None and date is not None and numbers and not others and look.rows >= 100:
        return _series(place, look, date, name)
    texts = [c for c in look.columns if c.kind == "text"]
    target = _label(place, look, label)
    if (
        len(texts) == 1
        and target.kind == "category"
        and all(c in (texts[0], target) or c.kind in ("identifier", "constant") for c in look.columns)
    ):
        return text_classes(place, look, texts[0].name, target, name)
    return _rows(place, look, target, name)


def _label(place: Path, look: TableLook, label: str | None) -> ColumnLook:
    by_name = {c.name: c for c in look.columns}
    listed = ", ".join(f"{c.name} ({c.kind})" for c in look.columns)
    if label is not None:
        if label not in by_name:
            raise DataError(f"{place}: no column {label!r}. Available: {listed}")
        return by_name[label]
    found = [c for c in look.columns if c.name.lower() in LABELS]
    if len(found) != 1:
        raise DataError(f"{place}: cannot decide which column to predict. Name it with --label-from. Available: {listed}")
    return found[0]


def _of_file(look: TableLook, place: Path, kind: str) -> dict[str, Any]:
    source: dict[str, Any] = {"kind": kind, "path": str(place)}
    if look.delimiter != ",":
        source["delimiter"] = look.delimiter
    if not look.header:
        source["header"] = False
    return source


def _rows(place: Path, look: TableLook, target: ColumnLook, name: str) -> Draft:
    dropped = [c for c in look.columns if c.kind in ("identifier", "text", "constant") and c is not target]
    classes = target.kind == "category" or (target.kind == "number" and target.distinct <= 20 and target.distinct * 10 <= look.rows)
    if target.missing:
        raise DataError(f"{place}: {target.missing:,} rows have no {target.name!r}. Remove them first: the label must be known")
    if target.kind in ("identifier", "constant", "text", "date"):
        raise DataError(f"{place}: column {target.name!r} cannot be predicted: it is of kind {target.kind} ({target.why})")
    if _TWO_READINGS in target.why:
        raise DataError(f"{place}: column {target.name!r} cannot be predicted yet: {target.why}. Write its numbers in one way")
    source = _of_file(look, place, "csv") | {"label": target.name, "target": "class" if classes else "value"}
    if dropped:
        source["drop"] = [c.name for c in dropped]
    if len(look.missing) > 1:
        source["missing"] = list(look.missing)
    data: dict[str, Any] = {"source": source}
    why = [f"{c.name or 'The column without a name'} is left out: {c.why}." for c in dropped[:8]]
    why += [f"{c.name}: {c.why}." for c in look.columns if c.kind == "category" and _TWO_READINGS in c.why]
    why += [f"Numbers in {c.name} are written with {c.numbers}." for c in look.columns if c.numbers][:8]
    table: dict[str, Any] = {}
    inputs = [c for c in look.columns if c is not target and c not in dropped]
    if any(c.missing and c.kind == "number" for c in inputs):
        table["impute"] = "median"
        why.append("Missing numbers become the median of the training rows.")
    dates = [c.name for c in inputs if c.kind == "date"]
    if dates:
        table["dates"] = ["month", "weekday"]
        why.append(f"Of {', '.join(dates)}, month and weekday are read.")
    if table:
        data["table"] = table
    data["split"], sentence = held_out(look.rows)
    why.append(sentence)
    made = Draft(name, f"{target.name} from {len(inputs)} columns of {place.name}, {look.rows:,} rows")
    made.set("data", data, *why)
    said = f"{target.distinct} different values: classes." if classes else "Numbers: their value is predicted."
    made.set("task", "classification" if classes else "regression", f"{target.name}: {said}")
    words = any(c.kind == "category" for c in inputs)
    model = {"kind": "wide-and-deep", "hidden": [32], "dropout": 0.2} if words else {"kind": "mlp", "hidden": [64, 64], "dropout": 0.1}
    made.set(
        "model",
        model,
        "Text columns have embeddings, in addition to a linear model of all columns."
        if words
        else "All inputs are numbers: two hidden layers.",
    )
    made.set("optim", {"kind": "adamw", "lr": 0.003, "schedule": {"kind": "cosine", "warmup": "5%", "final": 0}})
    train, sentence = training(look.rows, batch=64, seen=60_000, most=100)
    made.set("train", train, sentence)
    return made


def _series(place: Path, look: TableLook, date: ColumnLook, name: str) -> Draft:
    columns = [c.name for c in look.columns if c.kind == "number"]
    horizon = max(1, min(24, look.rows // 50))
    context = max(2, min(96, 4 * horizon))
    made = Draft(name, f"What comes next in {place.name}: the next {horizon} steps of {len(columns)} series from the last {context}")
    source: dict[str, Any] = {"kind": "series", "path": str(place), "date": date.name}
    if look.delimiter != ",":
        source["delimiter"] = look.delimiter
    if len(look.missing) > 1:
        source["missing"] = list(look.missing)
    why = [
        f"{date.name} is a date and all else numbers: a time series. The end of it is held out.",
        "Column to predict alone: source.targets.",
    ]
    try:
        parse(SourceConfig, source).series()
    except IncompleteSeries:
        source["fill"] = "forward"
        why.append("It has gaps: they are filled with the previous value.")
    split, window = {"validation": "10%", "test": "20%"}, {"context": context, "horizon": horizon}
    made.set("data", {"source": source, "split": split, "window": window}, *why)
    made.set("task", "forecasting")
    made.set("model", "dlinear", "A linear map of trend and remainder: hard to beat, and fast. patchtst needs longer series.")
    made.set("optim", {"kind": "adam", "lr": 0.003, "schedule": {"kind": "cosine", "warmup": 0, "final": 0}})
    train, sentence = training(max(1, round(look.rows * 0.7) - context - horizon), batch=32, seen=60_000, most=30)
    made.set("train", train, sentence)
    return made
