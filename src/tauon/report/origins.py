"""Where a run's data came from and what was left out of it, as plain facts of its records: for the model card and the data card.

In a private run numbers of records that were left out, and of each class, are not among them: they are exact, no guarantee covers them, and cards are
made to be published. The number of training records is public there (`docs/privacy.md`), and the names of filters are the recipe's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tauon.report.records import Records, number

__all__ = ["UNITS", "Dropped", "Origin", "dropped", "is_private", "origins", "size_of"]

UNITS = ("rows", "texts", "recordings", "documents", "windows", "tokens")
"""What the records of a part are counted in; the first that is there is taken."""


@dataclass(frozen=True)
class Origin:
    """One source of data."""

    part: str
    """train, validation or test: what the source is for."""
    name: str
    licence: str | None = None
    origin: str | None = None
    """Where it was published."""
    files: list[tuple[str, str | None]] = field(default_factory=list)
    """(path or name, sha256 if it is recorded) of its files; of many, the first."""
    total: int = 0
    """Number of its files."""


@dataclass(frozen=True)
class Dropped:
    """Records that one rule left out."""

    part: str
    step: str
    """The cleaning filter; or read, dedup, decontaminate, held_out."""
    rule: str
    """What was counted; "not counted" in a private run, where a rule alone tells that a record broke it."""
    count: int | None
    """None in a private run."""


def is_private(records: Records) -> bool:
    """Return whether the run trains with differential privacy."""
    return records.recipe.get("privacy") is not None


def origins(records: Records) -> list[Origin]:
    """Return the sources of a run, those of a mixture one by one."""
    found = []
    for part, described in _mapping(records.data.get("sources")).items():
        if isinstance(described, dict):
            inside = [{k: described[k] for k in ("licence", "origin") if k in described} | m for m in described.get("sources") or []]
            found += [_origin(part, one) for one in inside or [described] if isinstance(one, dict)]
    return found


def _origin(part: str, one: Mapping[str, Any]) -> Origin:
    paths: list[tuple[str, str | None]] = [(str(p), None) for p in one.get("paths") or []]
    listed = one.get("files")
    if isinstance(listed, list):
        paths = [(str(f.get("name")), f.get("sha256")) for f in listed if isinstance(f, dict)]
    name = one.get("name") or one.get("path") or (paths[0][0].rsplit("/", 1)[-1] if len(paths) == 1 else None) or one.get("kind") or "?"
    total = len(paths) if not isinstance(listed, int) else listed
    return Origin(part, str(name), one.get("licence"), one.get("origin") or one.get("home"), paths, total)


def size_of(facts: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return (number, unit) of the records of a part; None if it is not recorded."""
    return next(((int(n), unit) for unit in UNITS if (n := number(facts.get(unit))) is not None), None)


def dropped(records: Records) -> list[Dropped]:
    """Return what was left out of the data, and by which rule; in a private run the filters of the recipe, whatever they left out."""
    if not is_private(records):
        return list(_dropped(records.data))
    clean = _mapping(records.data.get("clean"))
    return [Dropped(part, str(one["filter"]), "not counted", None) for part, made in clean.items() for one in made.get("filters") or []]


def _dropped(facts: Mapping[str, Any]) -> Iterator[Dropped]:
    for part, reasons in _mapping(facts.get("unreadable")).items():
        yield from (Dropped(part, "read", str(rule), int(n)) for rule, n in _mapping(reasons).items())
    for part, cleaning in _mapping(facts.get("clean")).items():
        for one in cleaning.get("filters") or [] if cleaning.get("applied") else []:
            yield from (Dropped(part, str(one["filter"]), str(rule), int(n)) for rule, n in _mapping(one.get("rules")).items())
    repeated = _mapping(facts.get("dedup"))
    if repeated.get("removed"):
        yield Dropped("train", "dedup", str(_mapping(repeated.get("settings")).get("kind", "near")), int(repeated["removed"]))
    looked = _mapping(facts.get("decontamination"))
    if looked.get("action") == "drop" and looked.get("found"):
        yield Dropped("train", "decontaminate", "held_out", int(looked["found"]))
    copies = number(_mapping(facts.get("split")).get("left_out_as_held_out"))
    if copies:
        yield Dropped("train", "held_out", "equal_to_held_out", int(copies))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
