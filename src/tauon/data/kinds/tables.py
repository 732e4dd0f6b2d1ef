"""Tables with columns of numbers, categories and dates -> data sets. Everything is fitted on the training rows alone and stored in
`DataSplits.preprocess`, so that prediction applies it again.

Files are read by the sources, columns are encoded in `columns.py`, scaled in `arrays.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump, register
from tauon.data.arrays import ArrayDataset, Normalizer, TrainingOptions, check_arrays, count_repeats
from tauon.data.balance import reorder_classes
from tauon.data.bounds import limits_of
from tauon.data.choice import choice_facts, training_options
from tauon.data.columns import Encoder, take
from tauon.data.config import DataConfig
from tauon.data.dates import moments
from tauon.data.dependent_rows import refuse_dependent_rows
from tauon.data.facts import content_of, feature_facts, notices
from tauon.data.files import canonical
from tauon.data.kinds.base import ChosenRows, DataKind, Fitted, Parts, Request, changed, own_data
from tauon.data.kinds.steps import FEATURE_KEYS, augment_steps, fit_targets, refuse_arrays_by_document
from tauon.data.label_leaks import suspects
from tauon.data.labels import decide_labels, label_facts, read_labels, renumbered
from tauon.data.numbers import NumberForm, all_floats, as_numbers, stands_for_missing
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, SourceConfig, Table
from tauon.data.spec_file import agreed_labels, preprocessing_of
from tauon.data.spelling import nfc, spelling
from tauon.data.split import Part, refuse_new_classes
from tauon.data.table_numbers import decimal_marks, read_numbers
from tauon.data.targets import TargetScale
from tauon.errors import DataError

__all__ = ["TablesKind"]

_VERSION = 2


@dataclass(frozen=True)
class _Read:
    """The table of a source; for the training source, also what was decided for all of them."""

    table: Table
    group_N: NDArray[np.int64] | None = None
    """Group of each row."""
    time_N: NDArray[Any] | None = None
    """Moment of each row."""
    forms: Mapping[str, NumberForm] = field(default_factory=dict)
    """How the numbers of its columns are written."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Encoded:
    """What was fitted on the training rows, and every part as numbers."""

    encoder: Encoder
    features: dict[Part, NDArray[np.float64]]
    targets: dict[Part, NDArray[Any]]
    unseen: dict[Part, dict[str, int]]
    """Number of values in each column that were not in training."""


@register("table")
class TablesKind(DataKind[_Read]):
    """Rows with columns of numbers, text, dates or missing values, each with a class or a value."""

    input_kind, output_kind, words = "arrays", "arrays", "features and targets"
    reads = (*FEATURE_KEYS, "table")
    cleans, records = ("table",), "rows"

    @classmethod
    def takes(cls, source: SourceConfig) -> bool:
        return source.tabular()

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        if config.raw_value("scattering") is not None:
            yield "scattering", f"is only for images, but source {config.raw_value('source').kind_!r} provides a table; remove it"
        if config.raw_value("decontaminate") != DataConfig.model_fields["decontaminate"].default:
            yield "decontaminate", "is not for tables, whose equal rows in two parts are counted in the report; remove it"
        yield from refuse_arrays_by_document(config)

    def read(self, source: SourceConfig, part: Part, request: Request) -> _Read:
        report(f"read {part}", 0)
        table = source.table()
        if table is None:
            raise DataError(
                f"the {part} source {source.kind_!r} has no table columns, but the training source has; use a source of the same kind"
            )
        n = source.limit
        if n is not None:
            columns = {k: v[:n] for k, v in table.columns.items()}
            table = replace(table, columns=columns, targets=table.targets[:n], places=table.places[:n], labels=table.labels[:n])
        return _Read(table)

    def examples(self, data: _Read) -> Table:
        return data.table

    def with_examples(self, data: _Read, examples: Table) -> _Read:
        return replace(data, table=examples)

    def strata(self, data: _Read) -> NDArray[Any]:
        return data.table.targets

    def groups(self, data: _Read) -> NDArray[np.int64] | None:
        return data.group_N

    def times(self, data: _Read, request: Request) -> NDArray[Any] | None:
        return data.time_N

    def split(self, whole: Mapping[Part, _Read], request: Request) -> tuple[Parts[_Read], dict[str, Any]]:
        """Encode the labels over all sources together, then split the rows."""
        read = _decided({part: r.table for part, r in whole.items()}, request)
        main = read["train"].table
        parts, facts = super().split(read, request)
        mine = {part: rows.index for part, rows in parts.items() if rows.data is read["train"]}
        refuse_new_classes(main.targets, main.label_names, mine, f"column {main.label!r}")
        aligned = {p: r if p == "train" else replace(r, table=_aligned(r.table, main, p)) for p, r in read.items()}
        return {p: ChosenRows(aligned[p] if p in aligned else aligned["train"], rows.index) for p, rows in parts.items()}, facts

    def fit(self, parts: Parts[_Read], request: Request) -> Fitted:
        config, main, train_rows = request.config, parts["train"].data.table, parts["train"].index
        given = preprocessing_of(config, "table")
        if given is not None:
            parts = _with_labels(parts, given, str(config.spec))
            main = parts["train"].data.table
        encoded = _encode(parts, request) if given is None else _encode_as_given(parts, given, str(config.spec))
        encoder, features = encoded.encoder, encoded.features
        normalizer, scaling = _normalizer(config, main, encoded) if given is None else _given_normalizer(given, str(config.spec))
        target_scale, target_facts, target_notes = fit_targets(request, encoded.targets["train"], main.label_names)
        _refuse_changing_codes(config, encoder)
        options = training_options(config, main, train_rows, (len(encoder.names),), request.seed)
        steps = augment_steps(config)
        datasets = _datasets(parts, encoded, normalizer, options, target_scale)
        if config.table.group is not None:
            datasets["train"].facts["group"] = nfc(config.table.group)
        contents = {p: content_of(Arrays(x, encoded.targets[p], encoder.names, main.label_names)) for p, x in features.items()}
        content = hashlib.sha256(canonical([_VERSION, contents]).encode()).hexdigest()
        chosen_how = choice_facts(config, main.label_names, options)
        facts: dict[str, Any] = {
            "split": {"rows_also_in_train": {p: count_repeats(features["train"], x) for p, x in features.items() if p != "train"}},
            "columns": encoder.facts(), "unseen_categories": {p: counts for p, counts in encoded.unseen.items() if counts},
            "normalize": scaling, **target_facts, "table": dump(config.table), "augment": steps,
            **chosen_how, "features": feature_facts(features["train"], encoder.names),
            "input_shape": [len(encoder.names)], "labels": list(main.label_names), **_notices(parts, request, encoded, target_notes),
        }  # fmt: skip
        scaled = {} if target_scale is None else {"target_scale": target_scale.to_json()}
        preprocess = {
            "kind": "table", "columns": encoder.to_json(), "normalize": normalizer.to_json(), "labels": list(main.label_names),
            "features": list(encoder.names), "input_shape": [len(encoder.names)], "targets": "classes" if main.classes else "values",
            "missing": list(main.missing),
        } | scaled  # fmt: skip
        group_N = parts["train"].data.group_N
        whose = [] if group_N is None else [hashlib.sha256(group_N[train_rows].tobytes()).hexdigest()]
        decides = [*whose, normalizer.to_json(), encoder.to_json(), steps, request.seed, *chosen_how.values(), *scaled.values()]
        return Fitted({**datasets}, content, decides, preprocess, facts)


def _decided(tables: dict[Part, Table], request: Request) -> dict[Part, _Read]:
    """Return the tables with their labels read, and the number columns of the training table."""
    tables, facts, notes, warnings = _same_targets(tables)
    groups, tables = _grouped(tables, None if request.config.table.group is None else nfc(request.config.table.group))
    time_N, tables = _timed(tables, request.config)
    numbers = read_numbers(tables["train"], _places(tables["train"], np.arange(len(tables["train"]))))
    tables["train"] = reorder_classes(numbers.table, request.config.label_order)
    warnings += refuse_dependent_rows(numbers.table, request.config, request.to_split)
    notes += [note for table in tables.values() for note in table.notes]
    shown = (*notes, *numbers.notes), (*warnings, *numbers.warnings)
    return {
        p: _Read(t, groups.get(p), time_N, numbers.forms, *shown, facts) if p == "train" else _Read(t, groups.get(p))
        for p, t in tables.items()
    }


def _encode(parts: Parts[_Read], request: Request) -> _Encoded:
    """Fit the columns on the training rows, and encode every part as numbers."""
    config, train = request.config, parts["train"]
    main, rows = train.data.table, train.index
    encoder, encoded = Encoder.fit(
        {name: take(values, rows) for name, values in main.columns.items()}, main.targets[rows], config.table, declared=main.categorical,
        classes=len(main.label_names) if main.classes else 0, where=_places(main, rows), seed=config.split.seed,
        forms=dict(train.data.forms),
    )  # fmt: skip
    features: dict[Part, NDArray[np.float64]] = {"train": _within_float32(encoded, encoder, "train")}
    unseen: dict[Part, dict[str, int]] = {}
    for part, mine in parts.items():
        if part != "train":
            features[part], unseen[part] = _encoded(mine.data.table, mine.index, encoder, part)
    return _Encoded(encoder, features, {p: r.data.table.targets[r.index] for p, r in parts.items()}, unseen)


def _with_labels(parts: Parts[_Read], given: Mapping[str, Any], path: str) -> Parts[_Read]:
    """Return the parts with the class numbers of `data.spec`."""
    return changed(parts, lambda read, part: replace(read, table=agreed_labels(read.table, given, path)))


def _encode_as_given(parts: Parts[_Read], given: Mapping[str, Any], path: str) -> _Encoded:
    """Encode every part as `data.spec` says."""
    encoder = Encoder.from_json(given["columns"])
    lost = [c.name for c in encoder.columns if c.name not in parts["train"].data.table.columns]
    if lost:
        raise DataError(
            f"these data have no column {lost[0]!r}, which {path} has. Its columns: {', '.join(c.name for c in encoder.columns)}"
        )
    features: dict[Part, NDArray[np.float64]] = {}
    unseen: dict[Part, dict[str, int]] = {}
    for part, mine in parts.items():
        features[part], unseen[part] = _encoded(mine.data.table, mine.index, encoder, part)
    return _Encoded(encoder, features, {p: r.data.table.targets[r.index] for p, r in parts.items()}, unseen)


def _given_normalizer(given: Mapping[str, Any], path: str) -> tuple[Normalizer, dict[str, Any]]:
    """Return (scaler of `data.spec`, facts about it)."""
    normalizer = Normalizer.from_json(given["normalize"])
    return normalizer, {"kind": normalizer.kind, "why": f"of {path}"}


def _normalizer(config: DataConfig, main: Table, encoded: _Encoded) -> tuple[Normalizer, dict[str, Any]]:
    """Return (scaler fitted on the training rows, facts about it)."""
    kind, encoder = "standard" if config.normalize == "auto" else config.normalize, encoded.encoder
    bounds = {nfc(name): limits for name, limits in config.bounds.items()}
    known = (*main.columns, *(() if main.classes else main.label_names))
    limits = limits_of(bounds, encoder.names, encoder.scaled, known) if bounds or kind == "bounds" else None
    why = "features are not bytes" if config.normalize == "auto" else "as set"
    facts = {"kind": kind, "why": why} | ({"bounds": dict(config.bounds)} if config.bounds else {})
    return Normalizer.fit(encoded.features["train"], kind, encoder.scaled, limits), facts


def _datasets(
    parts: Parts[_Read], encoded: _Encoded, normalizer: Normalizer, options: TrainingOptions, target_scale: TargetScale | None
) -> dict[Part, ArrayDataset]:
    main, encoder = parts["train"].data, encoded.encoder
    datasets: dict[Part, ArrayDataset] = {}
    for part, x in encoded.features.items():
        training = part == "train"
        whole = Arrays(x, encoded.targets[part], encoder.names, main.table.label_names)
        groups = main.group_N[parts["train"].index] if training and main.group_N is not None else None
        datasets[part] = ArrayDataset(
            check_arrays(whole, f"the {part} part", training=training), np.arange(len(x)), normalizer,
            training=options if training else None, categories=encoder.codes, groups=groups, target_scale=target_scale,
        )  # fmt: skip
    return datasets


def _notices(parts: Parts[_Read], request: Request, encoded: _Encoded, target_notes: list[str]) -> dict[str, Any]:
    """Return notes on how the files and columns were read."""
    read, encoder = parts["train"].data, encoded.encoder
    classes = len(read.table.label_names) if read.table.classes else 0
    left_out = {p: r.table.left_out for p, r in own_data(parts, request).items()}
    notes = [*read.notes, *target_notes, *_odd_categories(encoder)]
    warnings = [*read.warnings, *_suspects(encoded.features["train"], encoded.targets["train"], encoder, classes)]
    return {**read.facts, **notices(left_out, notes, warnings)}


def _encoded(table: Table, rows: NDArray[np.int64], encoder: Encoder, part: Part) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Return (rows outside training as numbers, number of unseen values of each column)."""
    chosen, where = {c.name: take(table.columns[c.name], rows) for c in encoder.columns}, _places(table, rows)
    for c in (c for c in encoder.columns if c.kind == "number"):
        chosen[c.name] = as_numbers(chosen[c.name], lambda i, name=c.name: where(i, name), c.form, table.missing)  # type: ignore[misc]
    return _within_float32(encoder(chosen, where), encoder, part), encoder.unseen(chosen)


def _suspects(features_NF: NDArray[np.float64], targets: NDArray[Any], encoder: Encoder, classes: int) -> list[str]:
    """Return columns that leak the label. Target-encoded columns are not checked."""
    outputs = [(c, codes) for c in encoder.columns for _, codes, _ in c.outputs()]
    own = np.array([c.encoding != "target" for c, _ in outputs], bool)
    names = [c.name for c, _ in outputs if c.encoding != "target"]
    coded_F = np.array([bool(codes) for _, codes in outputs], bool)[own]
    return suspects(features_NF if own.all() else features_NF[:, own], targets, names, classes, coded_F)


def _odd_categories(encoder: Encoder) -> list[str]:
    """Return a note on categories that may be missing values."""
    odd = [f"{word!r} in {c.name}" for c in encoder.columns for word in c.categories if stands_for_missing(word)]
    listed = ", ".join(odd[:10]) + (f" and {len(odd) - 10:,} more" if len(odd) > 10 else "")
    return [f"{listed}: read as categories. If they mean missing values, list them in data.source.missing"] if odd else []


def _refuse_changing_codes(config: DataConfig, encoder: Encoder) -> None:
    for name, used in (("augment", config.augment), ("mix", config.mix)):
        if used and any(encoder.codes):
            raise DataError(
                f"data.{name} changes numbers, but some columns are category codes. Remove it, or set data.table.categories: onehot"
            )


def _same_targets(tables: dict[Part, Table]) -> tuple[dict[Part, Table], dict[str, Any], list[str], list[str]]:
    """Return (tables, facts, notes, warnings). Labels are encoded over all parts together."""
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


def _timed(tables: dict[Part, Table], config: DataConfig) -> tuple[NDArray[Any] | None, dict[Part, Table]]:
    """Return (moment of each row of the training table, tables without the time column, unless parts of its dates are features)."""
    column = None if config.table.time is None else nfc(config.table.time)
    if column is None:
        return None, tables
    main = tables["train"]
    values = main.columns.get(column)
    if values is None:
        raise DataError(
            f"data.table.time: {column!r} is not among the columns that are read: {', '.join(main.columns)}. Add it to data.source.features"
        )
    where = _places(main, np.arange(len(main)))
    if any(v is None for v in values):
        raise DataError(f"{where([*values].index(None), column)} is missing, but data.table.time needs the moment of each row. Fill it in")
    format_ = config.table.time_format
    numbers = all_floats(values) if format_ is None else None
    times = numbers if numbers is not None else moments([str(v).strip() for v in values], f"data.table.time: column {column!r}", format_)
    if numbers is None and format_ is None and config.table.dates:
        return times, tables
    return times, {p: replace(t, columns={k: v for k, v in t.columns.items() if k != column}) for p, t in tables.items()}


def _grouped(tables: dict[Part, Table], column: str | None) -> tuple[dict[Part, NDArray[np.int64]], dict[Part, Table]]:
    """Return (group number of each row by part, tables without the group column)."""
    if column is None:
        return {}, tables
    main = tables["train"]
    values = main.columns.get(column)
    if values is None:
        raise DataError(
            f"data.table.group: {column!r} is not among the columns that are read: {', '.join(main.columns)}. Add it to data.source.features"
        )
    if len(main.columns) == 1:
        raise DataError(f"data.table.group: {column!r} is the only column, but the group is not a feature. Read other columns too")
    if None in values:
        at = _places(main, np.arange(len(main)))([*values].index(None), column)
        raise DataError(f"{at} is missing, but data.table.group needs the group of each row. Fill it in, or remove the row")
    groups: dict[Part, NDArray[np.int64]] = {}
    for part, table in tables.items():
        if column in table.columns:
            named = [spelling(v) for v in table.columns[column]]
            groups[part] = np.unique(named, return_inverse=True)[1].astype(np.int64)
    without: dict[Part, Table] = {}
    for part, table in tables.items():
        columns = {k: v for k, v in table.columns.items() if k != column}
        without[part] = replace(table, columns=columns, categorical=tuple(c for c in table.categorical if c != column))
    return groups, without


def _aligned(table: Table, main: Table, part: Part) -> Table:
    """Return `table` with the training set's class numbers. It must have the training columns."""
    gone = [c for c in main.columns if c not in table.columns]
    if gone:
        raise DataError(
            f"the {part} source has no column {gone[0]!r}, which the training source has. Its columns: {', '.join(table.columns)}"
        )
    if table.classes != main.classes:
        raise DataError(
            f"the {part} source has targets of type {table.targets.dtype}, but the training source has {main.targets.dtype}. Both must have the same type"
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
            f"the {part} part: row {i}, column {encoder.names[j]!r} is {encoded[i, j]:g}, which is too large for float32. Rescale the column"
        )
    return encoded
