"""Tables in files: JSON lines, CSV, Parquet. A text column gives documents; a label column gives features and targets; both
give texts with labels.

Works on rows and columns; how a file is split into them is in `table_files.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from tauon.data.files import expand
from tauon.data.labels import decide_labels, read_labels
from tauon.data.numbers import NumbersConfig, as_numbers, shorten
from tauon.data.sources.base import Arrays, Document, Kind, LabelledTexts, SourceConfig, Table
from tauon.data.sources.index_column import is_nameless, left_out_as_index, numbers_rows
from tauon.data.sources.rejects import reject
from tauon.data.spelling import in_recipe, is_missing, nfc, spelling
from tauon.data.table_numbers import decimal_marks, read_numbers
from tauon.errors import DataError

__all__ = ["ABSENT", "Row", "TableConfig", "no_column"]

Row = tuple[str, Sequence[Any]]
"""(file and line, values in the order of the requested columns)."""


class _Absent:
    """The value of a key that a row does not have."""

    def __repr__(self) -> str:
        return "missing"


ABSENT = _Absent()

_ROWS = 4096
"""Rows that are read at once."""


class TableConfig(SourceConfig):
    """Settings that all table files share. With `label` it gives features and targets, with `text` text, with both texts and their labels."""

    later: ClassVar[tuple[str, ...]] = ("numbers", "keep_index", "group", "time", "on_error")

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; compressed files (.gz, .zst) are read directly."""
    text: str | tuple[str, ...] | None = None
    """Column of text; several are joined by a blank line. Default: `text`, unless `label` is set. With `label`: the texts to classify."""
    label: str | None = None
    """Column of the class or value to predict."""
    features: tuple[str, ...] = ()
    """Columns to predict from. Default: all except the label."""
    drop: tuple[str, ...] = ()
    """Columns to leave out, for example identifiers."""
    categorical: tuple[str, ...] = ()
    """Columns that are categories although they look like numbers (a postcode). Text columns are categories anyway."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value: ["", "?", "NA"]."""
    target: Literal["auto", "class", "value"] = "auto"
    """Type of the label. auto: a value if all labels are numbers and one has a fraction, a class otherwise."""
    numbers: NumbersConfig | None = None
    """How numbers are written: {decimal: ",", thousands: "."}. Default: detected for each column as a whole, and reported in a note."""
    group: str | None = None
    """Texts with labels: column of the group of each text (an author, a patient); all texts of a group are in the same part. For features
    set data.table.group."""
    time: str | None = None
    """Texts with labels: column of the moment of each text, a date or a number; the last ones are held out. For features set
    data.table.time."""
    on_error: Literal["stop", "skip"] = "stop"
    """Text only: what happens to a record that cannot be read. stop: an error names it; skip: it is left out, counted and listed."""
    keep_index: bool = False
    """Keep a column without a name that numbers the rows, as pandas writes its index. By default it is left out, with a note."""

    keys_vary: ClassVar[bool] = False
    """Whether each row names its own columns, so that a row may lack a column that another has."""

    def problems(self) -> Iterator[tuple[str, str]]:
        label, text = self.raw_value("label"), self.raw_value("text")
        if label is not None and text is not None:
            for name in ("features", "drop", "categorical", "numbers", "keep_index"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, "has no effect with text: the model is trained on the text alone; remove it, or remove text"
            if self.raw_value("target") == "value":
                yield "target", "is value, but texts can only be sorted into classes; remove it, or remove text"
        for name in ("group", "time"):
            column = self.raw_value(name)
            if column is not None and (label is None or text is None):
                instead = f"for features set data.table.{name}" if label is not None else "remove it"
                yield name, f"is only for texts with labels; {instead}"
            elif column is not None and column in (label, text):
                yield name, f"is {column!r}, which is the label or the text; name another column"
        if self.raw_value("group") is not None and self.raw_value("time") is not None:
            yield "time", "cannot be combined with group: a split by time has texts of one group in several parts. Remove one of the two"
        if label is not None and self.raw_value("on_error") == "skip":
            yield "on_error", "is only for text without labels; remove it"
        if label is None:
            for name in ("features", "target", "drop", "categorical", "missing", "numbers", "keep_index"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, "has no effect without label, the column to predict; set label, or remove it"
        elif label in self.raw_value("features"):
            yield "features", f"includes the label {label!r}; a column cannot predict itself"
        features, drop = frozenset(self.raw_value("features")), frozenset(self.raw_value("drop"))
        if features and drop:
            yield "drop", "has no effect with features, which lists the columns to use; remove one of the two"
        if features and self.raw_value("keep_index"):
            yield "keep_index", "has no effect with features, which lists the columns to use; remove it"
        for name in ("drop", "categorical"):
            if label is not None and label in self.raw_value(name):
                yield name, f"includes the label {label!r}, the column to predict"
        odd = [c for c in self.raw_value("categorical") if (features and c not in features) or c in drop]
        if odd:
            yield "categorical", f"includes {odd[0]!r}, which is not among the columns to predict from; remove it here, or use the column"

    def output_kind(self) -> Kind:
        if self.raw_value("label") is None:
            return "text"
        return "arrays" if self.raw_value("text") is None else "labelled-text"

    def per_example(self) -> dict[str, Any]:
        """For texts with labels: the columns that a text is read from, joined by an empty line."""
        text = self.raw_value("text")
        return {"text": [nfc(c) for c in ((text,) if isinstance(text, str) else text)]} if self.output_kind() == "labelled-text" else {}

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def columns(self, path: Path) -> list[str]:
        """Return the file's columns; if rows name their own, all that occur in any row."""
        raise NotImplementedError

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        """Yield the values of `columns`, row by row; `ABSENT` if a row does not have one of the `optional` ones."""
        raise NotImplementedError

    def documents(self) -> Iterator[Document]:
        chosen = self.text if self.text is not None else "text"
        columns = [nfc(c) for c in ((chosen,) if isinstance(chosen, str) else chosen)]
        for path, name in self.files():
            try:
                self._check(path, columns)
                for where, values in self.rows(path, columns):
                    odd = next((i for i, v in enumerate(values) if not isinstance(v, str)), None)
                    if odd is None:
                        yield Document("\n\n".join(values), f"{name}{where.removeprefix(str(path))}")
                    else:
                        self.bad_row(DataError(f"{where}: column {columns[odd]!r} is {shorten(values[odd])}, expected text"), "not text")
            except DataError as err:
                if self.on_error == "stop":
                    raise
                reject(err, "the rest of the file")

    def bad_row(self, error: DataError, reason: str) -> None:
        """Raise the error of a row that cannot be used, or record it, as `on_error` says."""
        if self.on_error == "stop":
            raise error
        reject(error, reason)

    def labelled_texts(self) -> LabelledTexts:
        if self.text is None or self.label is None:
            return super().labelled_texts()
        wanted = [nfc(c) for c in ((self.text,) if isinstance(self.text, str) else self.text)]
        label, missing, _ = nfc(self.label), frozenset(self.missing), self.target
        beside = {name: nfc(column) for name in ("group", "time") if (column := getattr(self, name)) is not None}
        texts: list[str] = []
        labels: list[Any] = []
        places: list[str] = []
        more: dict[str, list[Any]] = {name: [] for name in beside}
        asked, n = (*wanted, label, *beside.values()), len(wanted)
        for path, _ in self.files():
            self._check(path, asked)
            for where, values in self.rows(path, asked):
                odd = next((i for i, v in enumerate(values[:n]) if not isinstance(v, str)), None)
                if odd is not None:
                    raise DataError(f"{where}: column {wanted[odd]!r} is {shorten(values[odd])}, expected text")
                texts.append("\n\n".join(values[:n]))
                labels.append(_label(values[n], where, label, missing))
                places.append(where)
                for (name, column), value in zip(beside.items(), values[n + 1 :], strict=True):
                    if is_missing(value, missing | {""}):
                        raise DataError(f"{where}: column {column!r} is missing, but data.source.{name} needs it in each row. Fill it in")
                    more[name].append(spelling(value) if name == "group" else value)
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        where = f"{self.files()[0][0]}: column {label!r}"
        targets, names = read_labels(labels, decide_labels(labels, "class", where), where)
        return LabelledTexts(texts, targets, names, places, labels, label, more.get("group", ()), more.get("time", ()))

    def tabular(self) -> bool:
        return self.output_kind() == "arrays"

    def table(self) -> Table | None:
        if self.label is None:
            return None
        label, missing, asked = nfc(self.label), frozenset(self.missing), self.target
        declared, rule = tuple(map(nfc, self.categorical)), self.numbers
        features, keep = self._features(label)
        columns: dict[str, list[Any]] = {name: [] for name in features}
        index = [] if keep else [c for c in features if is_nameless(c) and c not in declared]
        labels: list[Any] = []
        places: list[str] = []
        absent: dict[str, int] = {}
        for path, _ in self.files():
            begin, rows = len(places), self.rows(path, (*features, label), frozenset(features))
            while chunk := list(itertools.islice(rows, _ROWS)):
                wheres, values = zip(*chunk, strict=True)
                *cells, theirs = zip(*values, strict=True)
                for name, column in zip(features, cells, strict=True):
                    columns[name] += _cleaned(column, missing, wheres, name, absent)
                labels += [_label(v, where, label, missing) for v, where in zip(theirs, wheres, strict=True)]
                places += wheres
            index = [c for c in index if numbers_rows(columns[c][begin:])]
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        left_out = [left_out_as_index(name, columns.pop(name)) for name in index]
        if not columns:
            raise DataError(f"{self.files()[0][0]}: no column is left to predict from. Columns: {', '.join((*features, label))}")
        where = f"{self.files()[0][0]}: column {label!r}"
        form = None if rule is None else rule.form()
        targets, names = read_labels(labels, decide_labels(labels, asked, where, form, lambda: decimal_marks(columns, form)), where)
        lacking = [f"{name!r} ({n:,} of {len(labels):,} rows)" for name, n in absent.items()]
        notes = [f"keys that are missing in some rows are read as missing values: {', '.join(lacking[:10])}"] if lacking else []
        return Table(
            dict(columns),
            targets,
            names or (label,),
            declared,
            places,
            label,
            self.missing,
            labels,
            asked,
            form,
            tuple(left_out),
            tuple(notes),
        )

    def arrays(self) -> Arrays:
        table = self.table()
        if table is None:
            raise DataError(f"source {self.kind_!r} has no label column; set data.source.label to the column to predict")

        def where(i: int, column: str) -> str:
            return f"{table.places[i]}: column {column!r}"

        read = read_numbers(table, where).table.columns
        numbers = [as_numbers(values, lambda i, name=name: where(i, name), missing=table.missing) for name, values in read.items()]  # type: ignore[misc]
        return Arrays(np.stack(numbers, axis=1), table.targets, tuple(read), table.label_names, table.left_out)

    def _check(self, path: Path, wanted: Sequence[str]) -> None:
        """Check that every file has the columns; if rows name their own, each row is checked as it is read."""
        known = None if self.keys_vary else self.columns(path)
        missing = [] if known is None else [c for c in wanted if c not in {*known}]
        if missing:
            raise DataError(f"{path}: {no_column(missing[0], known or ())}")

    def _features(self, label: str) -> tuple[tuple[str, ...], bool]:
        """Return (columns to read, whether to keep a nameless one) over all files."""
        chosen, drop, declared = (tuple(map(nfc, names)) for names in (self.features, self.drop, self.categorical))
        dropped, keep = frozenset(drop), self.keep_index or bool(chosen)
        known: dict[str, Path] = {}
        for i, (path, _) in enumerate(self.files()):
            mine = self.columns(path)
            if not self.keys_vary:
                lacking = [c for c in (*chosen, *drop, *declared, label) if c not in {*mine}]
                other = [] if chosen or not i else sorted(({*known} ^ {*mine}) - dropped)
                if lacking:
                    raise DataError(f"{path}: {no_column(lacking[0], mine)}")
                if other:
                    has, lacks = (path, next(iter(known.values()))) if other[0] in mine else (next(iter(known.values())), path)
                    raise DataError(
                        f"{has} has a column {other[0]!r}, but {lacks} does not. List the columns to read (features: [...]), or leave this one out "
                        f"(drop: [{in_recipe(other[0])}])"
                    )
            known |= {c: path for c in mine if c not in known}
        wanted = [c for c in (*chosen, *drop, *declared, label) if c not in known]
        if wanted:
            raise DataError(f"{self.files()[0][0]}: {no_column(wanted[0], [*known])}")
        features = chosen or tuple(c for c in known if c != label and c not in dropped)
        if not features:
            raise DataError(f"{self.files()[0][0]}: no column is left to predict from. Columns: {', '.join(known)}")
        return features, keep


def no_column(column: str, known: Sequence[str], what: str = "column") -> str:
    """Return the message for a column that does not exist."""
    close = get_close_matches(column, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    apart = next((d for d in ";\t|" if len(known) == 1 and d in known[0]), None)
    cut = "" if apart is None else f". The columns seem to be separated by {apart!r}: set data.source.delimiter"
    return f"no {what} {column!r}{hint} Available: {', '.join(known) or 'none'}{cut}"


def _cleaned(column: Sequence[Any], missing: frozenset[str], wheres: Sequence[str], name: str, absent: dict[str, int]) -> Sequence[Any]:
    """Return the values with None for missing; `DataError` for a value that is neither number nor text. Counts keys that rows do not have."""
    kinds = {*map(type, column)}
    if kinds == {str} and not any(word in column for word in missing) and not _has_outer_blanks(column):
        return column
    if kinds & {list, dict, bytes}:
        i = next(i for i, v in enumerate(column) if isinstance(v, (list, dict, bytes)))
        raise DataError(
            f"{wheres[i]}: column {name!r} is {shorten(column[i])}, expected a number or a word. Leave the column out with data.source.drop"
        )
    if _Absent in kinds:
        absent[name] = absent.get(name, 0) + sum(v is ABSENT for v in column)
    return [None if v is ABSENT or is_missing(v, missing) else v for v in column]


def _has_outer_blanks(column: Sequence[str]) -> bool:
    together = "".join(column)
    if " " not in together and together.isprintable():  # fast path for the usual column of numbers without any whitespace
        return False
    return any(v != v.strip() for v in column)


def _label(value: Any, where: str, column: str, missing: frozenset[str]) -> Any:
    if isinstance(value, (list, dict)) or is_missing(value, missing | {""}):
        raise DataError(f"{where}: column {column!r} is {shorten(value)}, expected a label. Write one, or remove the row")
    return value
