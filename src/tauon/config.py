"""The typed tree behind every recipe: `Config` (frozen, unknown keys forbidden), open families of parts (`Registered`,
`register`), values with units, and one function, `parse`, that turns plain data into a tree or into a `RecipeError`
that lists everything wrong at once.

Knows no model, no data source and no stage by name. The tree's root is `tauon.recipe.Recipe`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, core_schema

from tauon.errors import Problem, RecipeError
from tauon.units import Bytes, Count, Duration, Fraction, lower_first, short
from tauon.yaml_text import override, read_yaml, write_yaml

__all__ = [
    "Bytes",
    "Config",
    "Count",
    "Duration",
    "Fraction",
    "Pluggable",
    "Registered",
    "families",
    "json_schema",
    "key_of",
    "load_plugins",
    "override",
    "parse",
    "problems_in",
    "read_yaml",
    "register",
    "registered",
    "unread_keys",
    "write_yaml",
]

T = TypeVar("T", bound="Config")
R = TypeVar("R", bound="type[Registered] | type[Pluggable]")


# ---------------------------------------------------------------------------------------------- the tree


class Config(BaseModel):
    """A node of the tree: frozen, unknown keys forbidden, each field documented by the string below it.

    Remembers which of its fields were read, so that a key that nothing consumed is an error (`unread_keys`), never a
    silent ignore.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=(),
        populate_by_name=True,
    )  # fmt: skip
    __slots__ = ("_reads",)

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes, no, on, off and true would pass for 1 and 0 where a number is expected."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise PydanticCustomError(
                "unit", "got {value} (also written yes, on, no, off), expected a number or a name", {"value": repr(value).lower()}
            )
        return value

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).__pydantic_fields__:
            try:
                object.__getattribute__(self, "_reads").add(name)
            except AttributeError:
                object.__setattr__(self, "_reads", {name})
        return value

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> typing.Self:
        """A copy with some values changed, not checked again. What is read of the copy counts as read of the original."""
        copy = super().model_copy(update=update, deep=deep)
        if not hasattr(self, "_reads"):
            object.__setattr__(self, "_reads", set())
        object.__setattr__(copy, "_reads", object.__getattribute__(self, "_reads"))
        return copy

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, message) of each combination of this node's own values that cannot work. Run before any stage."""
        return iter(())

    def peek(self, name: str) -> Any:
        """The value of a field, without counting as consumption: for checks and printing."""
        return self.__dict__[name]


class Registered(Config):
    """Base of an open family: `class ModelConfig(Registered, family="model")`. Members join with `@register("kind")`.

    In a recipe a member is `{kind: adamw, lr: 1e-3}`, or just `adamw` when its defaults will do. Another package joins
    through the entry-point group `tauon.<family>`, or `tauon.plugins` for several at once: `load_plugins` imports them.
    """

    _family: ClassVar[str] = ""
    _default: ClassVar[str] = ""
    """The kind that is meant where none is given; "": one must be."""
    _members: ClassVar[dict[str, type[Registered]]] = {}
    kind_: ClassVar[str] = ""
    """The name it was registered by."""

    def __init_subclass__(cls, family: str = "", default: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls._family, cls._members, cls._default = family, {}, default
            _FAMILIES[family] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        if "_family" not in cls.__dict__:
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            cls._choose,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda v, info: dump(v, info.mode), info_arg=True, return_schema=core_schema.any_schema()
            ),
            metadata={"pydantic_js_functions": [lambda _s, _h: {"x-family": cls._family}]},  # a $ref in `json_schema`
        )

    @classmethod
    def _choose(cls, data: Any) -> Registered:
        """A member from `kind` or `{kind: ..., ...}`."""
        if isinstance(data, cls):
            return data
        if isinstance(data, str):
            data = {"kind": data}
        what, kinds = {"family": cls._family}, " | ".join(sorted(cls._members))
        if not isinstance(data, Mapping):
            raise PydanticCustomError("kind", "got {value}, expected one of {kinds}", what | {"value": short(data), "kinds": kinds})
        if "kind" not in data and cls._default:
            data = {"kind": cls._default, **data}
        if "kind" not in data:
            raise PydanticCustomError("kind", "say which {family}: kind: {kinds}", what | {"kinds": kinds})
        kind = data["kind"]
        member = cls._members.get(kind) if isinstance(kind, str) else None
        if member is None:
            raise PydanticCustomError(
                "kind", "no {family} is called {value}{nearest} There are: {kinds}",
                what | {"value": short(kind), "nearest": _nearest(str(kind), cls._members) or ".", "kinds": ", ".join(sorted(cls._members))},
            )  # fmt: skip
        try:
            return member.model_validate({k: v for k, v in data.items() if k != "kind"})
        except ValidationError as err:  # carried whole, so that `parse` can show each problem at its own path
            raise PydanticCustomError("nested", "{count} problems", {"count": err.error_count(), "error": err, "cls": member}) from None


class Pluggable:
    """Base of an open family whose members are no part of a recipe: `class DataKind(Pluggable, family="data_kind")`.

    Members join as those of a `Registered` family do: with `@register("name")`, and from other packages by entry points.
    """

    _family: ClassVar[str] = ""
    _members: ClassVar[dict[str, type[Any]]] = {}
    kind_: ClassVar[str] = ""
    """The name it was registered by."""

    def __init_subclass__(cls, family: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls._family, cls._members = family, {}
            _FAMILIES[family] = cls


_FAMILIES: dict[str, type[Any]] = {}


def register(kind: str) -> typing.Callable[[R], R]:
    """Class decorator: the class becomes the member `kind` of the nearest family above it.

    Registering another class under a taken name is a `ValueError`: two packages must not fight silently.
    """

    def enrol(cls: R) -> R:
        family: Any = next((c for c in cls.__mro__ if "_family" in c.__dict__ and c not in (Registered, Pluggable)), None)
        if family is None:
            raise TypeError(f"{cls.__name__} belongs to no family: derive from ModelConfig, OptimConfig, ...")
        taken = family._members.get(kind)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{family._family} {kind!r} is already {taken.__module__}.{taken.__qualname__}")
        cls.kind_ = kind
        family._members[kind] = cls
        return cls

    return enrol


def registered(family: str) -> dict[str, type[Registered]]:
    """Every member of a family by name, in order of registration."""
    return dict(_FAMILIES[family]._members)


def families() -> tuple[str, ...]:
    return tuple(_FAMILIES)


def load_plugins() -> None:
    """Import every installed package that announces parts for Tauon (entry-point groups `tauon.<family>`, `tauon.plugins`).

    One that cannot be imported, or takes a name that is taken, is a `RecipeError` that names the package.
    """
    for group in ("plugins", *_FAMILIES):
        for point in entry_points(group=f"tauon.{group}"):
            try:
                point.load()
            except Exception as err:  # another's code: anything may be wrong with it
                package = point.dist.name if point.dist else "?"
                raise RecipeError(
                    f"the installed package {package!r} announces parts for Tauon ({point.group}: {point.value}) and cannot be "
                    f"imported: {type(err).__name__}: {err}. Update it, or: pip uninstall {package}"
                ) from err


def dump(node: Config, mode: str = "json") -> dict[str, Any]:
    """The complete tree as plain data, defaults included: what `parse` turns back into an equal tree."""
    plain: dict[str, Any] = node.model_dump(mode=mode, by_alias=True)
    return {"kind": node.kind_, **plain} if isinstance(node, Registered) else plain


# ---------------------------------------------------------------------------------------------- from plain data to a tree


def parse(cls: type[T], data: Any, where: str = "") -> T:
    """Build a tree from plain data. Raises `RecipeError` listing each problem with its dotted key.

    Checks types, units and names, then each node's own `problems()`. `where` (a file, say) heads the message.
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
    """Each node's own impossible combinations, over the whole tree."""
    for name, message in tree.problems():
        yield Problem(_join(path, name), message)
    for name, child in children(tree):
        yield from problems_in(child, _join(path, name))


def children(tree: Config) -> Iterator[tuple[str, Config]]:
    """(key, node) of the nodes right below; a list's are `key.0`, `key.1`."""
    for name, value in tree.__dict__.items():
        if isinstance(value, Config):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Config))


def _forget_defaults(tree: Config) -> None:
    """A key that was given its default value counts as not set: the complete tree, written out, must read back the same."""
    for name, info in type(tree).model_fields.items():
        if name in tree.model_fields_set and not info.is_required() and info.get_default(call_default_factory=True) == tree.__dict__[name]:
            tree.model_fields_set.discard(name)
    for _, child in children(tree):
        _forget_defaults(child)


def forget_reads(tree: Config) -> None:
    object.__setattr__(tree, "_reads", set())
    for _, child in children(tree):
        forget_reads(child)


def unread_keys(tree: Config, path: str = "") -> list[str]:
    """Dotted keys that somebody set and nothing read since `parse`."""
    reads: set[str] = getattr(tree, "_reads", set())
    nodes = dict(children(tree))
    found = []
    for name in sorted(tree.model_fields_set):
        below = {k: n for k, n in nodes.items() if k == name or k.startswith(f"{name}.")}
        if name not in reads:
            found.append(_join(path, key_of(type(tree), name)))
        else:
            found += [key for k, node in below.items() for key in unread_keys(node, _join(path, k))]
    return found


def _problems(err: ValidationError, cls: type[Config], path: str) -> Iterator[Problem]:
    choices: dict[str, list[str]] = {}  # of a value that may be this or that, each refusal at one key
    for e in err.errors(include_url=False):
        ctx, kind = e.get("ctx", {}), e["type"]
        loc, chosen = _keys_in(e["loc"], cls, unknown_last=kind == "extra_forbidden")
        at = _join(path, *(str(p) for p in loc))
        if kind == "nested":
            yield from _problems(ctx["error"], ctx["cls"], at)
        elif kind == "extra_forbidden":
            owner = _class_at(cls, e["loc"][:-1])
            known = [key_of(owner, n) for n in owner.model_fields] if owner else []
            name = str(e["loc"][-1])
            there = "" if _nearest(name, known) or not known else f". There are: {', '.join(known)}"
            yield Problem(at, f"unknown key{_nearest(name, known)}{there}")
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
    """A path without the names that pydantic gives to the branches of a union, and whether it had any."""
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
    """The class of the node at `loc`, following field annotations."""
    for part in loc:
        if isinstance(part, int):
            continue
        info = _field(cls, part)
        inner = next(_configs_in(info.annotation), None) if info else None
        if inner is None:
            return None
        cls = inner
    return cls


def key_of(cls: type[Config], name: str) -> str:
    """How a field is called in a recipe: by its alias where its name is a word of Python (`from`)."""
    return cls.model_fields[name].alias or name


def _field(cls: type[Config], key: str) -> Any:
    """The field that a recipe calls `key`."""
    return cls.model_fields.get(key) or next((info for info in cls.model_fields.values() if info.alias == key), None)


def _configs_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Config):
        yield annotation
    for arg in typing.get_args(annotation):
        yield from _configs_in(arg)


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(arg) for arg in typing.get_args(annotation))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


# ---------------------------------------------------------------------------------------------- JSON Schema


def json_schema(cls: type[Config]) -> dict[str, Any]:
    """JSON Schema of a tree, every registered member of every family included: for editors."""
    root = cls.model_json_schema(ref_template="#/$defs/{model}")
    defs: dict[str, Any] = root.pop("$defs", {})
    for family, base in _FAMILIES.items():
        if not issubclass(base, Registered):  # chosen by the data, not by a key of the recipe
            continue
        choices: list[dict[str, Any]] = [{"enum": sorted(base._members)}]
        for kind, member in sorted(base._members.items()):
            one = member.model_json_schema(ref_template="#/$defs/{model}")
            defs |= one.pop("$defs", {})
            one["properties"] = {"kind": {"const": kind}} | one.get("properties", {})
            one["required"] = [*(["kind"] if kind != base._default else []), *one.get("required", [])]
            defs[f"{family}.{kind}"] = one
            choices.append({"$ref": f"#/$defs/{family}.{kind}"})
        defs[family] = {"anyOf": choices, "description": (base.__doc__ or "").strip().split("\n")[0]}
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | root | {"$defs": defs}
    return typing.cast(dict[str, Any], _refer(whole))


def _refer(node: Any) -> Any:
    if isinstance(node, dict):
        ref = {"$ref": f"#/$defs/{node['x-family']}"} if "x-family" in node else {}
        return {k: _refer(v) for k, v in node.items() if k != "x-family"} | ref
    return [_refer(v) for v in node] if isinstance(node, list) else node
