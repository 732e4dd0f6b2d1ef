"""Which kind of data fits a task and a source, and which settings of the recipe's `data` section cannot work with it. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, cast

from tauon.config import registered
from tauon.data.config import DataConfig
from tauon.data.kinds.base import DataKind, unfit
from tauon.data.sources.base import SourceConfig
from tauon.errors import Problem, RecipeError

__all__ = ["data_kinds", "keys_of_kinds", "kind_for", "problems_for"]

Kind = type[DataKind[Any]]


def data_kinds() -> dict[str, Kind]:
    """Every kind of data by name, in the order of messages: Tauon's, then those of installed packages."""
    return cast("dict[str, Kind]", registered("data_kind"))


def keys_of_kinds(input_kind: str) -> frozenset[str]:
    """Return the keys of the `data` section that a task with this `input_kind` reads, of those that only some kinds read."""
    return frozenset(key for kind in _kinds_for(input_kind) for key in kind.reads)


def kind_for(input_kind: str, source: SourceConfig) -> Kind:
    """Return the kind of data for a task and a source. `RecipeError` with the nearest kinds if there is none."""
    kinds = _kinds_for(input_kind)
    if not kinds:
        raise RecipeError([Problem("task", _unknown(input_kind))])
    return next((kind for kind in kinds if kind.takes(source)), kinds[0])


def problems_for(config: DataConfig, input_kind: str) -> Iterator[tuple[str, str]]:
    """Yield (key below `data`, message) for each setting that cannot work with a task that needs this kind of data."""
    source: SourceConfig = config.raw_value("source")
    if not _kinds_for(input_kind):
        yield "source", _unknown(input_kind)
        return
    kind, every = kind_for(input_kind, source), data_kinds().values()
    if source.output_kind() != kind.output_kind:
        given = next((k.words for k in every if k.output_kind == source.output_kind()), source.output_kind())
        yield "source", f"{source.kind_!r} provides {given}, but the task needs {kind.words}; choose another source or another task"
    mine = keys_of_kinds(input_kind)
    for key, info in DataConfig.model_fields.items():
        readers = dict.fromkeys(k.output_kind for k in every if key in k.reads)
        if (
            readers and key not in mine and config.raw_value(key) != info.get_default(call_default_factory=True)
        ):  # a full recipe sets every key
            yield key, f"is only for {' and '.join(readers)}, but the task needs {kind.title or kind.input_kind}; remove it"
    if config.raw_value("clean") and not kind.cleans:
        able = dict.fromkeys(k.output_kind for k in every if k.cleans)
        yield "clean", f"is only for {', '.join(able)}, but the task needs {kind.title or kind.input_kind}; remove it"
    elif source.output_kind() == kind.output_kind:
        for place, one in enumerate(config.raw_value("clean")):
            if not set(one.cleans).intersection(kind.cleans):
                yield f"clean.{place}", unfit(one, kind.cleans)
    yield from kind.problems(config)


def _kinds_for(input_kind: str) -> list[Kind]:
    return [kind for kind in data_kinds().values() if kind.input_kind == input_kind]


def _unknown(input_kind: str) -> str:
    known = dict.fromkeys(kind.input_kind for kind in data_kinds().values())
    close = get_close_matches(input_kind, known, n=2, cutoff=0.5)
    nearest = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"the task needs {input_kind!r}, and no installed kind of data is that{nearest} Available: {', '.join(known)}. Install what brings it"
