"""What the columns of a table are for: label, group, time, text, identifier; decided from names and values, with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tauon.data import ColumnLook, TableLook
from tauon.data.id_names import OF_IDS, PEOPLE, THINGS, words_of
from tauon.data.sources.index_column import is_nameless
from tauon.errors import DataError
from tauon.starter.draft import FEWEST_GROUPS, Asked

__all__ = ["LABELS", "Roles", "choose_label", "classes_or_value", "group_column", "roles_of", "time_column", "words_of"]

LABELS = (
    "label", "labels", "target", "class", "y", "outcome", "diagnosis", "category", "result", "churn", "churned", "default", "sentiment", "topic",
    "species", "survived", "died", "intent", "emotion", "spam", "is_spam", "fraud", "is_fraud", "rating", "stars",
)  # fmt: skip
"""Column names that are probably labels."""
_CLASSES = frozenset([*LABELS, "type", "kind", "group", "code", "status", "stage", "grade", "digit"])
_COUNTS = frozenset([
    "count", "counts", "number", "num", "n", "visits", "claims", "children", "accidents", "events", "calls",
    "orders", "admissions", "trips", "sales", "goals", "crimes", "rentals",
])  # fmt: skip
_CODES = frozenset([
    "zip", "zipcode", "postcode", "postal", "plz", "cap", "cep", "pincode", "areacode", "phone", "telephone",
])  # fmt: skip
_CODE_WORDS = frozenset([
    "code", "type", "kind", "class", "category", "cat", "level", "group",
])  # fmt: skip
_MOMENTS = frozenset([
    "date", "time", "timestamp", "datetime", "day", "ds", "when", "moment", "month", "week", "hour", "at", "period",
    "year",
])  # fmt: skip
_NO_MOMENT = frozenset([
    "birth", "born", "dob", "birthday", "birthdate", "expiry", "expires", "expiration", "due", "deadline",
])  # fmt: skip


@dataclass
class Roles:
    """What each column is for."""

    label: ColumnLook | None
    texts: list[ColumnLook] = field(default_factory=list)
    features: list[ColumnLook] = field(default_factory=list)
    """Numbers, categories and dates to predict from."""
    left_out: list[tuple[ColumnLook, str]] = field(default_factory=list)
    """Columns that are not used, with the reason."""
    group: ColumnLook | None = None
    time: ColumnLook | None = None
    categorical: list[tuple[ColumnLook, str]] = field(default_factory=list)
    """Columns of numbers that are read as categories, with the reason."""
    remarks: list[str] = field(default_factory=list)


def choose_label(place: Path, look: TableLook, asked: Asked, *, needed: bool = True) -> ColumnLook | None:
    """Return the column to predict. `DataError` that lists the columns if it cannot be decided, and `needed`."""
    by_name = {c.name: c for c in look.columns}
    listed = ", ".join(f"{c.name} ({c.kind})" for c in look.columns)
    if asked.label is not None:
        if asked.label not in by_name:
            raise DataError(f"{place}: no column {asked.label!r}. Available: {listed}")
        return by_name[asked.label]
    found = [c for c in look.columns if c.name.lower() in LABELS and c.kind not in ("text", "date")]
    exact = [c for c in found if c.name.lower() in ("label", "target", "class", "y")]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0]
    texts = [c for c in look.columns if c.kind == "text"]
    others = [c for c in look.columns if c.kind in ("category", "number")]
    if not found and len(texts) == 1 and len(others) == 1 and others[0].distinct <= 50 and 10 * others[0].distinct <= look.rows:
        return others[0]
    if needed:
        raise DataError(f"{place}: cannot decide which column to predict. Name it with --label. Available: {listed}")
    return None


def group_column(look: TableLook, label: ColumnLook | None) -> tuple[ColumnLook | None, list[ColumnLook], str]:
    """Return (column whose rows belong together, other columns of repeated ids, a remark on one that has too few values)."""
    found: list[tuple[int, ColumnLook]] = []
    remark = ""
    for c in look.columns:
        if (
            c is label
            or c.missing
            or c.kind in ("text", "constant", "date")
            or is_nameless(c.name)
            or not 1 < c.distinct < 0.95 * look.rows
        ):
            continue
        if any(" " in v.strip() for v in c.examples):  # words, not identifiers
            continue
        words, joined = {*words_of(c.name)}, c.name.lower()
        named = words <= PEOPLE | THINGS | OF_IDS and bool(words)
        person = (named and bool(PEOPLE & words)) or joined in ("pid", "uid", "sid")
        person = person or (joined.endswith("id") and joined[:-2].rstrip("_- ") in PEOPLE)
        thing = named and bool(THINGS & words)
        ids = bool(words & {"id", "uuid", "guid"}) and words_of(c.name)[-1] in ("id", "uuid", "guid")
        named_id = (person or ids or (thing and c.kind == "number" and c.distinct > 2)) and (c.kind != "number" or c.whole)
        coded = bool(c.codes) and c.distinct >= 20 and c.distinct < 0.7 * look.rows
        if not (named_id or coded or thing):
            continue
        if c.distinct < FEWEST_GROUPS or not (named_id or coded):
            remark = (
                f"{c.name} repeats ({c.distinct} values): it is a feature, and figures hold for these alone. For unseen ones, if there are enough: "
                f"table: {{group: {c.name}}}."
            )
            continue
        found.append((0 if person else 1, c))
    if not found:
        return None, [], remark
    best = min(rank for rank, _ in found)
    chosen = min((c for rank, c in found if rank == best), key=lambda c: c.distinct)
    return chosen, [c for _, c in found if c is not chosen], remark


def is_person(column: ColumnLook) -> bool:
    words = {*words_of(column.name)}
    return bool(words & PEOPLE) or not words & THINGS


def time_column(look: TableLook, label: ColumnLook | None) -> ColumnLook | None:
    """Return the column with the moment of each row: dates, the best named first; or seconds since 1970 in a column of that name."""
    dates = [c for c in look.columns if c.kind == "date" and not c.missing and c is not label and not _NO_MOMENT & {*words_of(c.name)}]
    dates = [c for c in dates if c.distinct >= 10]
    if dates:
        return min(dates, key=lambda c: not _MOMENTS & {*words_of(c.name)})
    for c in look.columns:
        large = c.kind in ("number", "identifier") and c.whole and c.distinct >= 10 and not c.missing and c is not label
        if large and {*words_of(c.name)} & {"timestamp", "time", "unixtime", "epoch", "ts"} and float(look.cells[c.name][0] or 0) > 1e8:
            return c
    return None


def roles_of(place: Path, look: TableLook, label: ColumnLook | None, asked: Asked) -> Roles:
    """Return what each column is for."""
    unknown = [name for name in asked.inputs if name not in {c.name for c in look.columns}]
    if unknown:
        raise DataError(f"{place}: --inputs: no column {unknown[0]!r}. Available: {', '.join(c.name for c in look.columns)}")
    roles = Roles(label)
    roles.group, ids, remark = group_column(look, label)
    roles.remarks += [remark] if remark else []
    roles.time = time_column(look, label)
    if roles.group is not None and roles.time is not None:
        if is_person(roles.group):
            roles.remarks.append(
                f"{roles.time.name} is the time of a row: to predict later rows instead of unseen {roles.group.name}, set time: {roles.time.name} "
                "instead of group."
            )
            roles.left_out.append((roles.time, "the split is by group"))
            roles.time = None
        else:
            roles.remarks.append(
                f"{roles.group.name} repeats; the split is by time. For unseen ones set group: {roles.group.name} instead."
            )
            roles.group = None
    taken = {id(c) for c in (label, roles.group, roles.time, *(c for c, _ in roles.left_out)) if c is not None}
    for c in look.columns:
        if id(c) in taken:
            continue
        _place(roles, look, c, ids, asked)
    return roles


def _place(roles: Roles, look: TableLook, c: ColumnLook, ids: list[ColumnLook], asked: Asked) -> None:
    """Put one column where it belongs."""
    words = {*words_of(c.name)}
    if asked.inputs and c.name not in asked.inputs:
        roles.left_out.append((c, "not among --inputs"))
    elif c in ids:
        roles.left_out.append((c, "an identifier that repeats"))
    elif c.kind in ("identifier", "constant"):
        roles.left_out.append((c, c.why))
    elif c.kind == "text":
        roles.texts.append(c)
    elif c.kind == "date" and c.formats != ("",):
        roles.left_out.append((c, f"dates that are not ISO 8601 ({' or '.join(c.formats[:2])}): write them as 2016-07-01 to use them"))
    elif words & _CODES:
        if 2 * c.distinct > look.rows:
            roles.left_out.append((c, f"a postcode or similar with {c.distinct:,} values in {look.rows:,} rows: not a quantity"))
        else:
            roles.features.append(c)
            if c.kind == "number":
                roles.categorical.append((c, "a postcode or similar is not a quantity"))
    else:
        roles.features.append(c)
        if c.kind == "number" and c.whole and c.distinct <= 10 and 10 * c.distinct <= look.rows and c.distinct > 2:
            if words & (_CODE_WORDS | {"id"}):
                roles.categorical.append((c, f"by its name, its {c.distinct} whole numbers are codes"))
            else:
                seen = ", ".join(v for v, _ in c.counts)
                roles.remarks.append(
                    f"{c.name} has only {c.distinct} whole numbers ({seen}): if they are codes, list it in source.categorical."
                )


def classes_or_value(place: Path, look: TableLook, label: ColumnLook) -> tuple[bool, str]:
    """Return (whether the label is a class, the reason). Raises `DataError` for a label that cannot be predicted."""
    if label.missing:
        raise DataError(f"{place}: {label.missing:,} rows have no {label.name!r}. Remove them first: the label must be known")
    if "two readings" in label.why:
        raise DataError(f"{place}: column {label.name!r} cannot be predicted yet: {label.why}. Write its numbers in one way")
    if label.kind == "constant":
        raise DataError(f"{place}: every row has the same {label.name!r} ({label.why}), expected at least two values")
    if label.kind in ("identifier", "text", "date"):
        raise DataError(f"{place}: column {label.name!r} cannot be predicted: it is of kind {label.kind} ({label.why})")
    if label.kind == "category":
        return True, f"{label.distinct} different values: classes."
    if label.distinct == 2:
        return True, "two values: classes."
    words, n = {*words_of(label.name)}, label.distinct
    if not label.whole or n > 50 or 5 * n > look.rows:
        return False, "numbers: their value is predicted."
    alternative = "If they are classes: task: classification and source.target: class."
    if words & _COUNTS or (not label.typical and not words & _CLASSES):
        return False, f"{n} whole numbers that fall off like counts: their value is predicted. {alternative}"
    if n > 10 and not words & _CLASSES:
        return False, f"{n} different whole numbers, too many for classes: their value is predicted. {alternative}"
    if n > 20:
        return False, f"{n} different whole numbers: their value is predicted. {alternative}"
    seen = ", ".join(v for v, _ in label.counts[:12])
    return True, f"{n} whole numbers ({seen}): classes. If they measure something: task: regression and source.target: value."
