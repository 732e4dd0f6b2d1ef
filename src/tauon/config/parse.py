"""Parse plain data into a config tree: `parse` builds it, or raises one `RecipeError` that lists all problems."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from tauon.config.tree import Config, Registered, children, forget_reads, join, key_of, nearest
from tauon.config.units import lower_first, short
from tauon.errors import Problem, RecipeError

__all__ = ["parse", "problems_in"]

T = TypeVar("T", bound="Config")


def parse(cls: type[T], data: Any, where: str = "") -> T:
    """Build a tree from plain data: types, units and names are checked, then each node's own `problems()`.

    Args:
        cls: class of the tree, or of an open family.
        data: plain data, as YAML gives it.
        where: the file, say; it heads the message.

    Raises:
        RecipeError: every problem, each with its dotted key.

    >>> from tauon.optim import OptimConfig
    >>> parse(OptimConfig, {"kind": "sgd", "lr": "1e-2"}).lr
    0.01
    >>> parse(OptimConfig, {"kind": "sgd", "lrr": 1})
    Traceback (most recent call last):
    tauon.errors.RecipeError: lrr: unknown key; did you mean 'lr'?
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"expected keys and values, got {type(data).__name__} ({short(data)})", where)
    try:
        tree = cls._choose(data) if issubclass(cls, Registered) and "_family" in cls.__dict__ else cls.model_validate(data)
    except ValidationError as err:
        raise RecipeError(list(_problems(err, cls, "")), where) from None
    except PydanticCustomError as err:
        nested = err.context or {}
        found = list(_problems(nested["error"], nested["cls"], "")) if "error" in nested else [Problem("", err.message())]
        raise RecipeError(found, where) from None
    _forget_defaults(tree)
    found = list(problems_in(tree))
    if found:
        raise RecipeError(found, where)
    forget_reads(tree)
    return typing.cast(T, tree)


def problems_in(tree: Config, path: str = "") -> Iterator[Problem]:
    """Yield each node's own impossible combinations, over the whole tree."""
    for name, message in tree.problems():
        yield Problem(join(path, name), message)
    for name, child in children(tree):
        yield from problems_in(child, join(path, name))


def _forget_defaults(tree: Config) -> None:
    """A key that was set to its default value counts as not set: the complete tree, written out, must parse to an equal tree."""
    for name, info in type(tree).model_fields.items():
        if name in tree.model_fields_set and not info.is_required() and info.get_default(call_default_factory=True) == tree.__dict__[name]:
            tree.model_fields_set.discard(name)
    for _, child in children(tree):
        _forget_defaults(child)


def _problems(err: ValidationError, cls: type[Config], path: str) -> Iterator[Problem]:
    choices: dict[str, list[str]] = {}  # for a value of several possible types: the messages of each type, by key
    for e in err.errors(include_url=False):
        ctx, kind = e.get("ctx", {}), e["type"]
        loc, chosen = _keys_in(e["loc"], cls, unknown_last=kind == "extra_forbidden")
        at = join(path, *(str(p) for p in loc))
        if kind == "nested":
            yield from _problems(ctx["error"], ctx["cls"], at)
        elif kind == "extra_forbidden":
            owner = _class_at(cls, e["loc"][:-1])
            known = [key_of(owner, n) for n in owner.model_fields] if owner else []
            name = str(e["loc"][-1])
            there = "" if nearest(name, known) or not known else f". Available: {', '.join(known)}"
            yield Problem(at, f"unknown key{nearest(name, known)}{there}")
        elif kind == "missing":
            yield Problem(at, "missing, and it has no default")
        else:
            message = e["msg"] if kind in ("kind", "unit") else f"{lower_first(e['msg'])}, got {short(e['input'])}"
            if chosen:
                choices.setdefault(at, []).append(message)
            else:
                yield Problem(at, message)
    yield from (Problem(at, "; or: ".join(messages)) for at, messages in choices.items())


def _keys_in(loc: Sequence[str | int], cls: type[Config], unknown_last: bool) -> tuple[list[str | int], bool]:
    """Return a path without the names that pydantic gives to the branches of a union, and whether it had any."""
    here: type[Config] | None = cls
    keys: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(part, int) or (unknown_last and i == len(loc) - 1):
            keys.append(part)
        elif here is not None and (info := _field(here, part)) is not None:
            keys.append(part)
            here = next(_configs_in(info.annotation), None)
    return keys, len(keys) < len(loc)


def _class_at(cls: type[Config], loc: Sequence[str | int]) -> type[Config] | None:
    """Return the class of the node at `loc`, following field annotations."""
    for part in loc:
        if isinstance(part, int):
            continue
        info = _field(cls, part)
        inner = next(_configs_in(info.annotation), None) if info else None
        if inner is None:
            return None
        cls = inner
    return cls


def _field(cls: type[Config], key: str) -> Any:
    """Return the field that a recipe calls `key`."""
    return cls.model_fields.get(key) or next((info for info in cls.model_fields.values() if info.alias == key), None)


def _configs_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Config):
        yield annotation
    for arg in typing.get_args(annotation):
        yield from _configs_in(arg)
