"""Which kind of data a task and a source meet in, and what of the recipe's `data` section cannot work with it. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, cast

from tauon.config import registered
from tauon.data.config import DataConfig
from tauon.data.kinds.base import DataKind
from tauon.data.sources.base import SourceConfig
from tauon.errors import Problem, RecipeError

__all__ = ["data_kinds", "keys_of_kinds", "kind_for", "problems_for"]

Kind = type[DataKind[Any]]


def data_kinds() -> dict[str, Kind]:
    """Every kind of data by name, in the order of messages: Tauon's, then those of installed packages."""
    return cast("dict[str, Kind]", registered("data_kind"))


def keys_of_kinds(needs: str) -> frozenset[str]:
    """Keys of the `data` section that a task which needs this reads, of those that only some kinds read."""
    return frozenset(key for kind in _kinds_for(needs) for key in kind.reads)


def kind_for(needs: str, source: SourceConfig) -> Kind:
    """The kind of data that a task learns from such a source. `RecipeError` that names the nearest kinds: none is what the task needs."""
    kinds = _kinds_for(needs)
    if not kinds:
        raise RecipeError([Problem("task", _unknown(needs))])
    return next((kind for kind in kinds if kind.takes(source)), kinds[0])


def problems_for(config: DataConfig, needs: str) -> Iterator[tuple[str, str]]:
    """(key below `data`, message) of each setting that cannot work with a task that needs this kind of data."""
    source: SourceConfig = config.peek("source")
    if not _kinds_for(needs):
        yield "source", _unknown(needs)
        return
    kind, every = kind_for(needs, source), data_kinds().values()
    if source.gives() != kind.gives:
        given = next((k.words for k in every if k.gives == source.gives()), source.gives())
        yield "source", f"{source.kind_!r} gives {given}, but the task needs {kind.words}; choose another source or another task"
    mine = keys_of_kinds(needs)
    for key, info in DataConfig.model_fields.items():
        readers = dict.fromkeys(k.gives for k in every if key in k.reads)
        if readers and key not in mine and config.peek(key) != info.get_default(call_default_factory=True):  # a full recipe sets every key
            yield key, f"is for {' and '.join(readers)}, and the task needs {kind.title or kind.needs}; drop it"
    yield from kind.problems(config)


def _kinds_for(needs: str) -> list[Kind]:
    return [kind for kind in data_kinds().values() if kind.needs == needs]


def _unknown(needs: str) -> str:
    known = dict.fromkeys(kind.needs for kind in data_kinds().values())
    close = get_close_matches(needs, known, n=2, cutoff=0.5)
    nearest = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"the task needs {needs!r}, and no installed kind of data is that{nearest} There are: {', '.join(known)}. Install what brings it"
