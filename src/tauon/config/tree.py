"""The typed tree behind every recipe: `Config` (frozen, unknown keys forbidden) and open families of parts (`Registered`, `register`).

Independent of models, data sources and stages. The tree's root is `tauon.recipe.Recipe`; `parse` builds it.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from tauon.config.documented import descriptions
from tauon.config.units import short

__all__ = [
    "FAILED_PLUGINS",
    "Config",
    "Pluggable",
    "Registered",
    "children",
    "count_as_read",
    "dump",
    "families",
    "forget_reads",
    "join",
    "key_of",
    "nearest",
    "register",
    "registered",
    "unread_keys",
]

R = TypeVar("R", bound="type[Registered] | type[Pluggable]")


class Config(BaseModel):
    """A node of the tree: frozen, unknown keys forbidden, each field documented by the string below it.

    Records which fields were read, so that a key that nothing used is an error (`unread_keys`) and never silently ignored.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=(),
        populate_by_name=True,
    )  # fmt: skip
    __slots__ = ("_reads",)

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject YAML's yes, no, on, off and true, which would pass for 1 and 0 where a number is expected."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise PydanticCustomError(
                "unit", "got {value} (in YAML also yes, on, no, off), expected a number or a name", {"value": repr(value).lower()}
            )
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(core)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, text in descriptions(cls).items():
            info = cls.model_fields.get(name)
            key = name if info is None else info.alias or name
            if key in properties:
                properties[key].setdefault("description", text)
        return found

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).__pydantic_fields__:
            try:
                object.__getattribute__(self, "_reads").add(name)
            except AttributeError:
                object.__setattr__(self, "_reads", {name})
        return value

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> typing.Self:
        """Return a copy with some values changed, without checks. Values read from the copy count as read from the original."""
        copy = super().model_copy(update=update, deep=deep)
        if not hasattr(self, "_reads"):
            object.__setattr__(self, "_reads", set())
        object.__setattr__(copy, "_reads", object.__getattribute__(self, "_reads"))
        return copy

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for each combination of this node's own values that cannot work. Run before any stage."""
        return iter(())

    def raw_value(self, name: str) -> Any:
        """Return the value of a field without counting it as used: for checks and printing."""
        return self.__dict__[name]


class Registered(Config):
    """Base class of an open family: `class ModelConfig(Registered, family="model")`. Members register with `@register("kind")`.

    In a recipe a member is `{kind: adamw, lr: 1e-3}`, or just `adamw` with all defaults. Another package adds members
    through the entry-point group `tauon.<family>`, or `tauon.plugins` for several at once: `load_plugins` imports them.
    """

    _family: ClassVar[str] = ""
    _default: ClassVar[str] = ""
    """The kind used if none is set; "": it must be set."""
    _members: ClassVar[dict[str, type[Registered]]] = {}
    kind_: ClassVar[str] = ""
    """The name under which it is registered."""

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
        """Return a member from `kind` or `{kind: ..., ...}`."""
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
            raise PydanticCustomError("kind", "missing kind. Set it to one of {kinds}", what | {"kinds": kinds})
        kind = data["kind"]
        member = cls._members.get(kind) if isinstance(kind, str) else None
        if member is None:
            raise PydanticCustomError(
                "kind", "no {family} is called {value}{nearest} Available: {kinds}{failed}",
                what | {"value": short(kind), "nearest": nearest(str(kind), cls._members) or ".", "kinds": ", ".join(sorted(cls._members)),
                        "failed": "".join(f". {message}" for message in FAILED_PLUGINS.values())},
            )  # fmt: skip
        try:
            return member.model_validate({k: v for k, v in data.items() if k != "kind"})
        except ValidationError as err:  # passed on whole, so that `parse` can show each problem at its own path
            raise PydanticCustomError("nested", "{count} problems", {"count": err.error_count(), "error": err, "cls": member}) from None


class Pluggable:
    """Base class of an open family whose members do not occur in a recipe: `class DataKind(Pluggable, family="data_kind")`.

    Members register like those of a `Registered` family: with `@register("name")`, and from other packages by entry points.
    """

    _family: ClassVar[str] = ""
    _members: ClassVar[dict[str, type[Any]]] = {}
    kind_: ClassVar[str] = ""
    """The name under which it is registered."""

    def __init_subclass__(cls, family: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls._family, cls._members = family, {}
            _FAMILIES[family] = cls


_FAMILIES: dict[str, type[Any]] = {}
FAILED_PLUGINS: dict[str, str] = {}
"""Installed packages whose plugins could not be loaded, with the reason (`load_plugins`)."""


def register(kind: str) -> typing.Callable[[R], R]:
    """Class decorator: register the class as member `kind` of the nearest family above it.

    `ValueError` if another class has the name: two packages must not overwrite each other silently.
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
    """Return every member of a family by name, in order of registration."""
    return dict(_FAMILIES[family]._members)


def families() -> dict[str, type[Any]]:
    """Return every family by name."""
    return dict(_FAMILIES)


def dump(node: Config, mode: str = "json") -> dict[str, Any]:
    """Return the complete tree as plain data, including defaults: `parse` turns it back into an equal tree."""
    plain: dict[str, Any] = node.model_dump(mode=mode, by_alias=True)
    return {"kind": node.kind_, **plain} if isinstance(node, Registered) else plain


def children(tree: Config) -> Iterator[tuple[str, Config]]:
    """Return (key, node) of the direct child nodes; those of a list are `key.0`, `key.1`."""
    for name, value in tree.__dict__.items():
        if isinstance(value, Config):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Config))


def forget_reads(tree: Config) -> None:
    object.__setattr__(tree, "_reads", set())
    for _, child in children(tree):
        forget_reads(child)


def count_as_read(tree: Config) -> None:
    """Count every key below as read: for a node that is passed to code that uses it later."""
    object.__setattr__(tree, "_reads", {*type(tree).model_fields})
    for _, child in children(tree):
        count_as_read(child)


def unread_keys(tree: Config, path: str = "") -> list[str]:
    """Return dotted keys that were set in the recipe and not read since `parse`."""
    reads: set[str] = getattr(tree, "_reads", set())
    nodes = dict(children(tree))
    found = []
    for name in sorted(tree.model_fields_set):
        below = {k: n for k, n in nodes.items() if k == name or k.startswith(f"{name}.")}
        if name not in reads:
            found.append(join(path, key_of(type(tree), name)))
        else:
            found += [key for k, node in below.items() for key in unread_keys(node, join(path, k))]
    return found


def key_of(cls: type[Config], name: str) -> str:
    """Return the name of a field in a recipe: its alias if its name is a Python keyword (`from`)."""
    return cls.model_fields[name].alias or name


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(arg) for arg in typing.get_args(annotation))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a message: `; did you mean 'adamw'?`, or "" if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def join(*parts: str) -> str:
    """Return a dotted key from its parts, without empty ones."""
    return ".".join(p for p in parts if p)
