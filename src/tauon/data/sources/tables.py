"""Tables in files: JSON lines, CSV, Parquet. One column of text gives documents; a label column gives features and targets; both
give texts with labels.

Knows rows and columns; how a file is cut into them is said by the three classes in `table_files.py`.
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
from tauon.data.spelling import in_recipe, is_missing, nfc
from tauon.data.table_numbers import decimal_marks, read_numbers
from tauon.errors import DataError

__all__ = ["ABSENT", "Row", "TableConfig", "no_column"]

Row = tuple[str, Sequence[Any]]
"""(where it is, values in the order of the columns asked for)."""


class _Absent:
    """A key that a row does not have."""

    def __repr__(self) -> str:
        return "not there"


ABSENT = _Absent()

_ROWS = 4096
"""Read at a time."""


class TableConfig(SourceConfig):
    """What all table files share. With `label` it gives features and targets, with `text` text, with both texts and their labels."""

    later: ClassVar[tuple[str, ...]] = ("numbers", "keep_index")

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; packed files (.gz, .zst) are read as they are."""
    text: str | tuple[str, ...] | None = None
    """Column of text; several are joined by a blank line. Default: `text`, unless `label` is given. With `label`: texts to be sorted."""
    label: str | None = None
    """Column of the class or value to predict."""
    features: tuple[str, ...] = ()
    """Columns to predict from. Default: all but the label."""
    drop: tuple[str, ...] = ()
    """Columns to leave out: identifiers, say."""
    categorical: tuple[str, ...] = ()
    """Columns that are categories although they look like numbers (a postcode). Columns of words are categories anyway."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value: ["", "?", "NA"]."""
    target: Literal["auto", "class", "value"] = "auto"
    """What the label is. auto: a value if all labels are numbers and one has a fraction, a class otherwise."""
    numbers: NumbersConfig | None = None
    """How numbers are written: {decimal: ",", thousands: "."}. Left out: found over each column as a whole, and said."""
    keep_index: bool = False
    """Keep a column without a name that numbers the rows, as pandas writes its index. Otherwise it is left out, and that is said."""

    keys_vary: ClassVar[bool] = False
    """Whether rows name their own columns, so that one may lack what another has."""

    def problems(self) -> Iterator[tuple[str, str]]:
        label, text = self.raw_value("label"), self.raw_value("text")
        if label is not None and text is not None:
            for name in ("features", "drop", "categorical", "numbers", "keep_index"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, "has no effect beside text: texts are all that is learned from; drop it, or drop text"
            if self.raw_value("target") == "value":
                yield "target", "value, but texts are sorted into classes; drop it, or drop text"
        if label is None:
            for name in ("features", "target", "drop", "categorical", "missing", "numbers", "keep_index"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, "has no effect without label, the column to predict; add label or drop it"
        elif label in self.raw_value("features"):
            yield "features", f"has the label {label!r} among them; a column cannot predict itself"
        features, drop = frozenset(self.raw_value("features")), frozenset(self.raw_value("drop"))
        if features and drop:
            yield "drop", "features names the columns to use already; give one of the two"
        if features and self.raw_value("keep_index"):
            yield "keep_index", "features names the columns to use already; drop it"
        for name in ("drop", "categorical"):
            if label is not None and label in self.raw_value(name):
                yield name, f"has the label {label!r} among them; it is what is predicted"
        odd = [c for c in self.raw_value("categorical") if (features and c not in features) or c in drop]
        if odd:
            yield "categorical", f"has {odd[0]!r}, which is not among the columns to predict from; drop it here, or use the column"

    def output_kind(self) -> Kind:
        if self.raw_value("label") is None:
            return "text"
        return "arrays" if self.raw_value("text") is None else "labelled-text"

    def per_example(self) -> dict[str, Any]:
        """Of texts with labels: the columns that a text is read from, joined by an empty line."""
        text = self.raw_value("text")
        return {"text": [nfc(c) for c in ((text,) if isinstance(text, str) else text)]} if self.output_kind() == "labelled-text" else {}

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def columns(self, path: Path) -> list[str]:
        """The file's columns: where rows name their own, all that any of them has."""
        raise NotImplementedError

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        """The values of `columns`, row by row; `ABSENT` where a row does not have one of the `optional` ones."""
        raise NotImplementedError

    def documents(self) -> Iterator[Document]:
        chosen = self.text if self.text is not None else "text"
        columns = [nfc(c) for c in ((chosen,) if isinstance(chosen, str) else chosen)]
        for path, name in self.files():
            self._check(path, columns)
            for i, (where, values) in enumerate(self.rows(path, columns)):
                for column, value in zip(columns, values, strict=True):
                    if not isinstance(value, str):
                        raise DataError(f"{where}: column {column!r} is {shorten(value)}, expected text")
                yield Document("\n\n".join(values), f"{name}#{i}")

    def labelled_texts(self) -> LabelledTexts:
        if self.text is None or self.label is None:
            return super().labelled_texts()
        wanted = [nfc(c) for c in ((self.text,) if isinstance(self.text, str) else self.text)]
        label, missing, _ = nfc(self.label), frozenset(self.missing), self.target
        texts: list[str] = []
        labels: list[Any] = []
        places: list[str] = []
        for path, _ in self.files():
            self._check(path, (*wanted, label))
            for where, values in self.rows(path, (*wanted, label)):
                odd = next((i for i, v in enumerate(values[:-1]) if not isinstance(v, str)), None)
                if odd is not None:
                    raise DataError(f"{where}: column {wanted[odd]!r} is {shorten(values[odd])}, expected text")
                texts.append("\n\n".join(values[:-1]))
                labels.append(_label(values[-1], where, label, missing))
                places.append(where)
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        where = f"{self.files()[0][0]}: column {label!r}"
        targets, names = read_labels(labels, decide_labels(labels, "class", where), where)
        return LabelledTexts(texts, targets, names, places, labels, label)

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
            raise DataError(f"{self.files()[0][0]}: no column is left to predict from. There are: {', '.join((*features, label))}")
        where = f"{self.files()[0][0]}: column {label!r}"
        form = None if rule is None else rule.form()
        targets, names = read_labels(labels, decide_labels(labels, asked, where, form, lambda: decimal_marks(columns, form)), where)
        lacking = [f"{name!r} ({n:,} of {len(labels):,} rows)" for name, n in absent.items()]
        notes = [f"keys that some rows do not have count as missing values: {', '.join(lacking[:10])}"] if lacking else []
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
            raise DataError(f"source {self.kind_!r} has no label column; name the column to predict with label:")

        def where(i: int, column: str) -> str:
            return f"{table.places[i]}: column {column!r}"

        read = read_numbers(table, where).table.columns
        numbers = [as_numbers(values, lambda i, name=name: where(i, name), missing=table.missing) for name, values in read.items()]  # type: ignore[misc]
        return Arrays(np.stack(numbers, axis=1), table.targets, tuple(read), table.label_names, table.left_out)

    def _check(self, path: Path, wanted: Sequence[str]) -> None:
        """Every file has the columns; where rows name their own, each row is checked as it is read."""
        known = None if self.keys_vary else self.columns(path)
        missing = [] if known is None else [c for c in wanted if c not in {*known}]
        if missing:
            raise DataError(f"{path}: {no_column(missing[0], known or ())}")

    def _features(self, label: str) -> tuple[tuple[str, ...], bool]:
        """(columns to read, whether a nameless one stays) over all files."""
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
                        f"{has} has a column {other[0]!r}, and {lacks} has none. Name the columns to read (features: [...]), or leave it out "
                        f"(drop: [{in_recipe(other[0])}])"
                    )
            known |= {c: path for c in mine if c not in known}
        wanted = [c for c in (*chosen, *drop, *declared, label) if c not in known]
        if wanted:
            raise DataError(f"{self.files()[0][0]}: {no_column(wanted[0], [*known])}")
        features = chosen or tuple(c for c in known if c != label and c not in dropped)
        if not features:
            raise DataError(f"{self.files()[0][0]}: no column is left to predict from. There are: {', '.join(known)}")
        return features, keep


def no_column(column: str, known: Sequence[str], what: str = "column") -> str:
    """What an error says of a column that there is not."""
    close = get_close_matches(column, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    apart = next((d for d in ";\t|" if len(known) == 1 and d in known[0]), None)
    cut = "" if apart is None else f". Columns seem to be apart by {apart!r}: set delimiter"
    return f"no {what} {column!r}{hint} There are: {', '.join(known) or 'none'}{cut}"


def _cleaned(column: Sequence[Any], missing: frozenset[str], wheres: Sequence[str], name: str, absent: dict[str, int]) -> Sequence[Any]:
    """The values with None for a missing one; `DataError` for what is neither number nor word. Counts keys that rows do not have."""
    kinds = {*map(type, column)}
    if kinds == {str} and not any(word in column for word in missing) and not _has_outer_blanks(column):
        return column
    if kinds & {list, dict, bytes}:
        i = next(i for i, v in enumerate(column) if isinstance(v, (list, dict, bytes)))
        raise DataError(f"{wheres[i]}: column {name!r} is {shorten(column[i])}, expected a number or a word. Leave it out with drop:")
    if _Absent in kinds:
        absent[name] = absent.get(name, 0) + sum(v is ABSENT for v in column)
    return [None if v is ABSENT or is_missing(v, missing) else v for v in column]


def _has_outer_blanks(column: Sequence[str]) -> bool:
    together = "".join(column)
    if " " not in together and together.isprintable():  # no blank of any kind: the usual column of numbers, at the speed of C
        return False
    return any(v != v.strip() for v in column)


def _label(value: Any, where: str, column: str, missing: frozenset[str]) -> Any:
    if isinstance(value, (list, dict)) or is_missing(value, missing | {""}):
        raise DataError(f"{where}: column {column!r} is {shorten(value)}, expected a label. Fill it in or drop the row")
    return value
