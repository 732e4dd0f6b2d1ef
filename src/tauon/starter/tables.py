"""Tables (CSV and similar, JSON rows, Parquet): which column is predicted, from what, and how rows are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.data import ColumnLook, TableLook, inspect_table
from tauon.data.sources.index_column import is_nameless
from tauon.data.text_files import detect_encoding
from tauon.errors import DataError
from tauon.plan import table_defaults
from tauon.starter.draft import Asked, Draft, encoding_of, held_out, suffix_of, training
from tauon.starter.roles import Roles, choose_label, classes_or_value, roles_of
from tauon.starter.series import is_series, series
from tauon.starter.text import language
from tauon.starter.text_tasks import text_classes

__all__ = ["is_parquet", "is_table", "parquet", "rows", "table"]

TABLES = (".csv", ".tsv", ".tab", ".psv", ".data", ".dat")


def is_table(place: Path) -> bool:
    if not place.is_file():
        return False
    return suffix_of(place.name) in TABLES or (suffix_of(place.name) == ".txt" and _is_table_of_text(place))


def is_parquet(place: Path) -> bool:
    return place.is_file() and place.suffix.lower() == ".parquet"


def _is_table_of_text(place: Path) -> bool:
    """Return whether a .txt file is rows of numbers, or a short label and a text apart by tabs."""
    from tauon.data.files import read_bytes

    encoding = detect_encoding(read_bytes(place))
    if encoding is None:
        return False
    try:
        look = inspect_table(place, limit=200, encoding=encoding)
    except DataError:
        return False
    if look.rows < 20:
        return False
    if len(look.columns) == 1:
        return look.columns[0].kind in ("number", "identifier") and not any(c.isalpha() for v in look.columns[0].examples for c in v)
    numbers = sum(c.kind in ("number", "date") or c.whole for c in look.columns)
    if look.delimiter == "blanks":
        return numbers == len(look.columns)
    labelled = look.delimiter == "\t" and any(c.kind == "text" for c in look.columns)
    return labelled or 2 * numbers >= len(look.columns)


def table(place: Path, asked: Asked) -> Draft:
    """Draft for a text file of rows and columns."""
    encoding, said = encoding_of([place], asked, place)
    look = inspect_table(place, encoding=encoding.get("encoding", "utf-8"))
    source: dict[str, Any] = {"kind": "csv", "path": str(place)}
    why = [said]
    if look.delimiter != ",":
        source["delimiter"] = look.delimiter
        named = {"\t": "tabs", ";": "semicolons", "|": "bars", "blanks": "blanks"}[look.delimiter]
        why.append(f"Columns are separated by {named} (delimiter).")
    if not look.header:
        source["header"] = False
        why.append("The first line is not a header: columns are called c0, c1, ...")
    source |= encoding
    if is_series(look, asked):
        return series(place, look, asked, source, why)
    return rows(place, look, asked, source, why)


def parquet(place: Path, asked: Asked) -> Draft:
    """Draft for a Parquet file."""
    from tauon.config import parse
    from tauon.data import SourceConfig
    from tauon.data.inspection import look_at_columns

    source = {"kind": "parquet", "path": str(place)}
    opened: Any = parse(SourceConfig, source)
    names = opened.columns(place)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for _, values in opened.rows(place, names):
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return rows(place, look_at_columns(columns, str(place)), asked, source, [])


def rows(place: Path, look: TableLook, asked: Asked, source: dict[str, Any], why: list[str]) -> Draft:
    """Draft for rows of columns, from any file: texts with a label, text alone, or features with a label."""
    if asked.model is not None:
        raise DataError(
            f"{place}: --model is only for conversations and preferences. Its columns: {', '.join(c.name for c in look.columns)}"
        )
    texts = [c for c in look.columns if c.kind == "text" and (not asked.inputs or c.name in asked.inputs)]
    label = choose_label(place, look, asked, needed=not texts)
    if label is None:
        return _text_alone(place, look, texts, asked, source, why)
    roles = roles_of(place, look, label, asked)
    classes, said = classes_or_value(place, look, label)
    if roles.texts and not classes and not roles.features:
        raise DataError(
            f"{place}: {label.name!r} are numbers ({said}), but texts can only be sorted into classes. Name another label, or group its values"
        )
    if roles.texts and classes:
        if len(roles.features) > 2 and not asked.inputs:
            raise DataError(
                f"{place}: has texts ({', '.join(c.name for c in roles.texts)}) and {len(roles.features)} other columns "
                f"({', '.join(c.name for c in roles.features[:6])}), and a model reads one or the other. Choose with --inputs: "
                f"--inputs {roles.texts[0].name}, or --inputs {','.join(c.name for c in roles.features[:2])},..."
            )
        if not (asked.inputs and roles.features):
            return text_classes(place, look, roles, asked, source, why)
    return _features(place, look, roles, asked, source, why, classes=classes, said=said)


def _text_alone(place: Path, look: TableLook, texts: list[ColumnLook], asked: Asked, source: dict[str, Any], why: list[str]) -> Draft:
    """Draft for a column of text without a label: a language model. Asks if anything else could be meant."""
    others = [c for c in look.columns if c not in texts and c.kind not in ("identifier", "constant", "date") and not is_nameless(c.name)]
    if len(texts) > 1 or (others and not asked.inputs):
        listed = ", ".join(f"{c.name} ({c.kind})" for c in look.columns)
        raise DataError(
            f"{place}: cannot decide what the model should learn. Name the column to predict with --label; for a language model of one column of "
            f"text, name it with --inputs. Available: {listed}"
        )
    characters = sum(map(len, look.cells[texts[0].name]))
    return language(place, source | {"text": texts[0].name}, characters, asked.name, why=why)


def _features(
    place: Path, look: TableLook, roles: Roles, asked: Asked, source: dict[str, Any], why: list[str], *, classes: bool, said: str
) -> Draft:
    label, inputs = roles.label, roles.features
    assert label is not None
    left_out = [*roles.left_out, *((c, "text: it has no place among numbers and categories") for c in roles.texts)]
    if not inputs:
        named = ", ".join(f"{c.name} ({reason})" for c, reason in left_out)
        raise DataError(f"{place}: no column is left to predict {label.name!r} from. Left out: {named}")
    source = source | {"label": label.name, "target": "class" if classes else "value"}
    if left_out:
        source["drop"] = [c.name for c, _ in left_out]
    if roles.categorical:
        source["categorical"] = [c.name for c, _ in roles.categorical]
    if len(look.missing) > 1:
        source["missing"] = list(look.missing)
    why = why + [f"{c.name or 'The column without a name'} is left out: {reason}." for c, reason in left_out[:12]]
    why += [f"{c.name} is read as categories: {reason} (categorical)." for c, reason in roles.categorical]
    why += [f"{c.name}: {c.why}." for c in look.columns if c.kind == "category" and "two readings" in c.why]
    by_form: dict[str, list[str]] = {}
    for c in look.columns:
        if c.numbers:
            by_form.setdefault(c.numbers, []).append(c.name)
    why += [f"Numbers in {', '.join(names[:8])} are written with {form} (numbers)." for form, names in by_form.items()]
    why += roles.remarks
    settings, more = _table_settings(look, roles)
    columns = table_defaults(look.rows, missing="impute" in settings)["data"]
    data: dict[str, Any] = {"source": source, **columns, "table": columns["table"] | settings}
    groups = roles.group.distinct if roles.group is not None else 0
    data["split"], sentence = held_out(look.rows, groups=groups, what=roles.group.name if roles.group is not None else "")
    if roles.time is not None:
        sentence = f"{roles.time.name} is the time of a row: the last {data['split']['test']} are held out, so that nothing is learned from the future."
    made = Draft(asked.name, f"{label.name} from {len(inputs)} columns of {place.name}, {look.rows:,} rows", examples=look.rows)
    made.set("data", data, *why, *more, sentence)
    made.set("task", "classification" if classes else "regression", f"{label.name}: {said}")
    _defaults(made, missing="impute" in settings)
    return made


def _defaults(made: Draft, *, missing: bool) -> None:
    """Set model, optimizer and training to the measured defaults of tables."""
    held = made.sections["data"]["split"]
    share = 1 - sum(int(str(v).rstrip("%")) for v in held.values()) / 100
    defaults = table_defaults(round(made.examples * share), missing=missing)
    made.set(
        "model",
        defaults["model"],
        "Several networks inside one, over bins of each number (TabM): about as good as gradient boosting, which is model: gradient-boosting.",
    )
    made.set("optim", defaults["optim"], "Measured on nine tables; the rate falls to zero.")
    train, reasons = training(made.examples, batch=64, seen=0)
    settings = {"epochs": defaults["train"]["epochs"], "batch": max(2, min(defaults["train"]["batch"], made.examples // 4))}
    made.set("train", train | settings, *(s.replace(f"{train['epochs']} epochs", f"{settings['epochs']} epochs") for s in reasons))


def _table_settings(look: TableLook, roles: Roles) -> tuple[dict[str, Any], list[str]]:
    """Return (`data.table`, the reasons)."""
    settings: dict[str, Any] = {}
    why = []
    if any(c.missing and c.kind == "number" and (c, "") not in roles.categorical for c in roles.features):
        settings["impute"] = "median"
        why.append("Missing numbers become the median of the training rows; that they were missing is an input, too.")
    if roles.group is not None:
        settings["group"] = roles.group.name
    parts: list[str] = []
    if roles.time is not None:
        settings["time"] = roles.time.name
        if roles.time.kind == "date" and roles.time.formats and roles.time.formats != ("",):
            settings["time_format"] = _one_format(look, roles.time)
        elif roles.time.kind == "date":
            parts = _parts(look.cells[roles.time.name])
    dates = [c.name for c in roles.features if c.kind == "date"]
    if dates and not parts:
        parts = ["month", "weekday"]
    if parts:
        settings["dates"] = parts
        named = [*([roles.time.name] if roles.time is not None else []), *dates]
        why.append(f"Of {', '.join(named)}, {' and '.join(parts)} are read.")
    return settings, why


def _parts(cells: list[str]) -> list[str]:
    """Return the parts of dates that can repeat within the data: months need two years."""
    first, last = min(cells)[:4], max(cells)[:4]
    hours = any(len(v.strip()) > 10 for v in cells[:100])
    months = first.isdigit() and last.isdigit() and int(last) - int(first) >= 2
    return (["month"] if months else []) + ["weekday"] + (["hour"] if hours else [])


def _one_format(look: TableLook, time: ColumnLook) -> str:
    if len(time.formats) > 1:
        raise DataError(
            f"{look.path}: dates in {time.name!r} like {time.examples[0]!r} can be read as {' or '.join(time.formats)}. Write them as 2016-07-01"
        )
    return time.formats[0]
