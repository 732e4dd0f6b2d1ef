"""Tables with columns of numbers, categories and dates -> data sets. Everything is fitted on the training rows alone and comes along in
`DataSplits.preprocess`, from which `data/replay.py` does it again.

Reading files is the sources' business, fitting columns that of `columns.py`, scaling that of `arrays.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.array_preparation import target_scale_of
from tauon.data.arrays import ArrayDataset, Normalizer, check_arrays, count_repeats
from tauon.data.bounds import limits_of
from tauon.data.choice import choice_facts, choose, in_order
from tauon.data.columns import Encoder, take
from tauon.data.config import DataConfig
from tauon.data.facts import content_of, feature_facts, told
from tauon.data.files import canonical
from tauon.data.label_leaks import suspects
from tauon.data.labels import decide_labels, label_facts, read_labels, renumbered
from tauon.data.numbers import NumberForm, as_numbers, stands_for_missing
from tauon.data.preparation import DataSplits, count_as_read
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, SourceConfig, Table
from tauon.data.spelling import nfc, spelling
from tauon.data.split import PARTS, Part, refuse_new_classes, split_rows
from tauon.data.table_numbers import decimal_marks, read_numbers
from tauon.errors import DataError

__all__ = ["prepare_tables"]

_VERSION = 2


def prepare_tables(config: DataConfig, sources: dict[Part, SourceConfig], seed: int, *, scale_targets: bool = False) -> DataSplits:
    """Read, split, fit on the training rows, encode every part."""
    tables, group_N, forms, said = _read(config, sources)
    main = tables["train"]
    rows, split_facts = split_rows(main.targets, config.split, [p for p in PARTS if p not in sources], group_N)
    refuse_new_classes(main.targets, main.label_names, rows, f"column {main.label!r}")
    for part in tables:
        if part != "train":
            tables[part] = _aligned(tables[part], main, part)

    training = rows["train"]
    classes = len(main.label_names) if main.classes else 0
    encoder, encoded = Encoder.fit(
        {name: take(values, training) for name, values in main.columns.items()}, main.targets[training], config.table,
        declared=main.categorical, classes=classes, where=_places(main, training), seed=config.split.seed, forms=forms,
    )  # fmt: skip
    names, codes = encoder.names, encoder.codes
    kind = "standard" if config.normalize == "auto" else config.normalize
    features: dict[Part, NDArray[np.float64]] = {"train": _within_float32(encoded, encoder, "train")}
    bounds = {nfc(name): limits for name, limits in config.bounds.items()}
    known = (*main.columns, *(() if main.classes else main.label_names))
    limits = limits_of(bounds, names, encoder.scaled, known) if bounds or kind == "bounds" else None
    normalizer = Normalizer.fit(features["train"], kind, encoder.scaled, limits)
    targets: dict[Part, NDArray[Any]] = {"train": main.targets[training]}
    target_scale, target_facts, target_notes = target_scale_of(config, targets["train"], main.label_names, scale_targets)
    unseen: dict[str, dict[str, int]] = {}
    for part in (p for p in PARTS[1:] if p in rows or p in tables):
        table = tables.get(part, main)
        mine = rows[part] if part in rows else np.arange(len(table))
        features[part], unseen[part] = _encoded(table, mine, encoder, part)
        targets[part] = table.targets[mine]

    _refuse_changing_codes(config, encoder)
    choice = choose(config, main, training, (len(names),), seed)
    steps = [dump(a) for a in config.augment]
    count_as_read(config, [["augment", str(i), name] for i, step in enumerate(steps) for name in step])
    parts: dict[Part, ArrayDataset] = {}
    for part, x in features.items():
        whole = check_arrays(Arrays(x, targets[part], names, main.label_names), f"the {part} part", training=part == "train")
        groups = None if group_N is None else group_N[training]
        training_only = {"augments": config.augment, "groups": groups, **choice} if part == "train" else {}
        parts[part] = ArrayDataset(
            whole, np.arange(len(x)), normalizer, seed=seed, categories=codes, target_scale=target_scale, **training_only
        )
    if config.table.group is not None:
        parts["train"].facts["group"] = nfc(config.table.group)
    contents = {p: content_of(Arrays(x, targets[p], names, main.label_names)) for p, x in features.items()}
    made_of = hashlib.sha256(canonical([_VERSION, contents]).encode()).hexdigest()
    said.notes += target_notes + _odd_categories(encoder)
    said.warnings += _suspects(features["train"], targets["train"], encoder, classes)
    facts: dict[str, Any] = {
        "kind": "table", "sources": {p: s.describe() for p, s in sources.items()},
        "split": split_facts | {
            "own_parts": [p for p in sources if p != "train"],
            "rows_also_in_train": {p: count_repeats(features["train"], x) for p, x in features.items() if p != "train"},
        },
        "parts": {p: d.facts for p, d in parts.items()}, "columns": encoder.facts(),
        "unseen_categories": {p: counts for p, counts in unseen.items() if counts},
        "normalize": {"kind": kind, "why": "features are not bytes" if config.normalize == "auto" else "as set"}
        | ({"bounds": dict(config.bounds)} if config.bounds else {}), **target_facts,
        "table": dump(config.table), "augment": steps, "content": made_of,
        **choice_facts(config, main.label_names, choice), "features": feature_facts(features["train"], names),
        "input_shape": [len(names)], "labels": list(main.label_names), **said.facts,
        **told(said.left_out, said.notes, said.warnings),
    }  # fmt: skip
    preprocess = {
        "kind": "table", "columns": encoder.to_json(), "normalize": normalizer.to_json(), "labels": list(main.label_names),
        "features": list(names), "input_shape": [len(names)], "targets": "classes" if main.classes else "values",
        "missing": list(main.missing),
    } | ({} if target_scale is None else {"target_scale": target_scale.to_json()})  # fmt: skip
    whose = [] if group_N is None else [hashlib.sha256(group_N[training].tobytes()).hexdigest()]
    chosen_how = choice_facts(config, main.label_names, choice).values()
    decides = [made_of, *whose, normalizer.to_json(), encoder.to_json(), steps, seed, *chosen_how]
    decides += [] if target_scale is None else [target_scale.to_json()]
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), parts["train"].spec, facts,
        hashlib.sha256(canonical(decides).encode()).hexdigest(), None, preprocess,
    )  # fmt: skip


@dataclass
class _Said:
    """What is to be told of how the files were read."""

    left_out: dict[Part, tuple[str, ...]]
    notes: list[str]
    warnings: list[str]
    facts: dict[str, Any]


def _read(
    config: DataConfig, sources: dict[Part, SourceConfig]
) -> tuple[dict[Part, Table], NDArray[np.int64] | None, dict[str, NumberForm], _Said]:
    """(the tables, the training one with its numbers read, whose each of its rows is, how its numbers are written, what is to be told)."""
    tables = {part: _load(source, part) for part, source in sources.items()}
    left_out = {part: table.left_out for part, table in tables.items()}
    tables, facts, notes, warnings = _same_targets(tables)
    group_N, tables = _grouped(tables, None if config.table.group is None else nfc(config.table.group))
    found = read_numbers(tables["train"], _places(tables["train"], np.arange(len(tables["train"]))))
    tables["train"] = in_order(found.table, config.label_order)
    notes += [note for table in tables.values() for note in table.notes]
    return tables, group_N, found.forms, _Said(left_out, notes + found.notes, warnings + found.warnings, facts)


def _encoded(table: Table, rows: NDArray[np.int64], encoder: Encoder, part: Part) -> tuple[NDArray[np.float64], dict[str, int]]:
    """(rows that the encoder was not fitted on as numbers, how many values of each column it has not seen)."""
    chosen, where = {c.name: take(table.columns[c.name], rows) for c in encoder.columns}, _places(table, rows)
    for c in (c for c in encoder.columns if c.kind == "number"):
        chosen[c.name] = as_numbers(chosen[c.name], lambda i, name=c.name: where(i, name), c.form, table.missing)  # type: ignore[misc]
    return _within_float32(encoder(chosen, where), encoder, part), encoder.unseen(chosen)


def _suspects(features_NF: NDArray[np.float64], targets: NDArray[Any], encoder: Encoder, classes: int) -> list[str]:
    """Columns that give the label away. Those encoded by the target itself are none."""
    outputs = [(c, codes) for c in encoder.columns for _, codes, _ in c.outputs()]
    own = np.array([c.encoding != "target" for c, _ in outputs], bool)
    names = [c.name for c, _ in outputs if c.encoding != "target"]
    coded_F = np.array([bool(codes) for _, codes in outputs], bool)[own]
    return suspects(features_NF if own.all() else features_NF[:, own], targets, names, classes, coded_F)


def _odd_categories(encoder: Encoder) -> list[str]:
    """A note on categories that may be missing values."""
    odd = [f"{word!r} in {c.name}" for c in encoder.columns for word in c.categories if stands_for_missing(word)]
    said = ", ".join(odd[:10]) + (f" and {len(odd) - 10:,} more" if len(odd) > 10 else "")
    return [f"{said}: counted as categories. If they stand for missing values, name them under data.source.missing"] if odd else []


def _refuse_changing_codes(config: DataConfig, encoder: Encoder) -> None:
    for name, used in (("augment", config.augment), ("mix", config.mix)):
        if used and any(encoder.codes):
            raise DataError(
                f"data.{name} changes numbers, and some columns hold codes of categories. Leave it out, or take categories: onehot"
            )


def _same_targets(tables: dict[Part, Table]) -> tuple[dict[Part, Table], dict[str, Any], list[str], list[str]]:
    """(the tables, facts, notes, warnings): what the labels are is decided over all parts together."""
    labelled = {part: t for part, t in tables.items() if len(t.labels)}
    main = labelled.get("train")
    if main is None:
        return tables, {}, [], []
    every = [label for t in labelled.values() for label in t.labels]
    where = f"{main.places[0].rpartition(',')[0]}: column {main.label!r}"
    kind = decide_labels(every, main.target, where, main.numbers, lambda: decimal_marks(main.columns, main.numbers))
    made = dict(tables)
    for part, table in labelled.items():
        targets, names = read_labels(table.labels, kind, f"{table.places[0].rpartition(',')[0]}: column {table.label!r}")
        made[part] = replace(table, targets=targets, label_names=names or (table.label,))
    if kind.values:
        words = kind.form.words()
        return made, {}, [f"numbers in {main.label}: {words}"] if words else [], []
    facts, warnings = label_facts(every, sorted({n for p in labelled for n in made[p].label_names}), f"column {main.label!r}")
    return made, {"label_spelling": facts}, [], warnings


def _load(source: SourceConfig, part: Part) -> Table:
    report(f"read {part}", 0)
    table = source.table()
    if table is None:
        raise DataError(f"the {part} source {source.kind_!r} has no columns of its own, but the training source has; take one of its kind")
    n = source.limit
    if n is not None:
        columns = {k: v[:n] for k, v in table.columns.items()}
        table = replace(table, columns=columns, targets=table.targets[:n], places=table.places[:n], labels=table.labels[:n])
    return table


def _grouped(tables: dict[Part, Table], column: str | None) -> tuple[NDArray[np.int64] | None, dict[Part, Table]]:
    """(number of whose each training row is, the tables without the column that says so)."""
    if column is None:
        return None, tables
    main = tables["train"]
    values = main.columns.get(column)
    if values is None:
        raise DataError(f"data.table.group: {column!r} is none of the columns that are read: {', '.join(main.columns)}. Add it to features")
    if len(main.columns) == 1:
        raise DataError(f"data.table.group: {column!r} is the only column, and whose a row is is no feature. Read others, too")
    if None in values:
        at = _places(main, np.arange(len(main)))([*values].index(None), column)
        raise DataError(f"{at} is missing, and data.table.group needs to know whose each row is. Fill it in, or leave the row out")
    _, group_N = np.unique([spelling(v) for v in values], return_inverse=True)
    without: dict[Part, Table] = {}
    for part, table in tables.items():
        columns = {k: v for k, v in table.columns.items() if k != column}
        without[part] = replace(table, columns=columns, categorical=tuple(c for c in table.categorical if c != column))
    return group_N.astype(np.int64), without


def _aligned(table: Table, main: Table, part: Part) -> Table:
    """`table` with the training set's class numbers; it must have its columns."""
    gone = [c for c in main.columns if c not in table.columns]
    if gone:
        raise DataError(f"the {part} source has no column {gone[0]!r}, and the training source has. It has {', '.join(table.columns)}")
    if table.classes != main.classes:
        raise DataError(
            f"the {part} source has targets {table.targets.dtype}, the training source {main.targets.dtype}; both must be of one kind"
        )
    if not main.classes or table.label_names == main.label_names:
        return table
    targets = renumbered(table.targets, table.label_names, main.label_names, part)
    return replace(table, targets=targets, label_names=main.label_names)


def _places(table: Table, rows: NDArray[np.int64]) -> Callable[[int, str], str]:
    def where(i: int, column: str) -> str:
        return f"{table.places[rows[i]]}: column {column!r}" if len(table.places) else f"row {rows[i]}: column {column!r}"

    return where


def _within_float32(encoded: NDArray[np.float64], encoder: Encoder, part: Part) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        narrow = encoded.astype(np.float32)
    bad = ~np.isfinite(narrow)
    if bad.any():
        i, j = (int(k) for k in np.argwhere(bad)[0])
        raise DataError(
            f"the {part} part: row {i}, column {encoder.names[j]!r} is {encoded[i, j]:g}, which no float32 holds. Scale it down"
        )
    return encoded
