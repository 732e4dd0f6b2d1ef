"""The typed tree behind every recipe: `Config` (frozen, unknown keys forbidden), open families of parts (`Registered`,
`register`), values with units, and one function, `parse`, that turns plain data into a tree or into a `RecipeError`
that lists everything wrong at once.

Knows no model, no data source and no stage by name. The tree's root is `tauon.recipe.Recipe`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

from tauon.errors import Problem, RecipeError

__all__ = [
    "Bytes",
    "Config",
    "Count",
    "Duration",
    "Fraction",
    "Registered",
    "families",
    "json_schema",
    "load_plugins",
    "override",
    "parse",
    "problems_in",
    "read_yaml",
    "register",
    "registered",
    "unread_keys",
]

T = TypeVar("T", bound="Config")
R = TypeVar("R", bound="type[Registered]")


# ---------------------------------------------------------------------------------------------- values with units

_SI = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_IEC = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"^([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)$")


def _split(value: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.match(value.strip())
    if not match:
        raise PydanticCustomError(
            "unit", "{value} is not {what}; write it like {example}", {"value": repr(value), "what": what, "example": example}
        )
    return float(match[1].replace("_", "")), match[2]


def _unit(unit: str, table: Mapping[str, float], what: str, example: str) -> float:
    if unit.lower() not in table:
        raise PydanticCustomError(
            "unit", "unit {unit} of {what} is not one of {units}; write it like {example}",
            {"unit": repr(unit), "what": what, "units": ", ".join(u for u in table if u), "example": example},
        )  # fmt: skip
    return table[unit.lower()]


def _no_bool(value: Any, what: str) -> None:
    if isinstance(value, bool):  # YAML's yes/no/on/off would pass for 1 and 0
        raise PydanticCustomError("unit", "got {value}, expected {what}", {"value": repr(value).lower(), "what": what})


def _whole(value: float, text: Any) -> int:
    if value != int(value):
        raise PydanticCustomError("unit", "{value} is not a whole number", {"value": repr(text)})
    return int(value)


def _count(value: Any) -> Any:
    _no_bool(value, "a count such as 64 or 64k")
    if isinstance(value, str):
        number, unit = _split(value, "a count", "64, 64k (64,000), 64Ki (65,536) or 1.5M")
        return _whole(number * _unit(unit, {**_SI, **_IEC}, "a count", "64k"), value)
    return value


def _bytes(value: Any) -> Any:
    _no_bool(value, "a size such as 512MiB")
    if isinstance(value, str):
        number, unit = _split(value, "a size", "512MiB or 1GB")
        table = {"": 1, "b": 1} | {u + "b": f for u, f in ({**_SI, **_IEC}).items() if u not in ("", "b")}
        return _whole(number * _unit(unit, table, "a size", "1GiB"), value)
    return value


def _duration(value: Any) -> Any:
    _no_bool(value, "a time such as 90s or 2h")
    if isinstance(value, str):
        number, unit = _split(value, "a time", "90s, 5m or 2h")
        return number * (_unit(unit, _SECONDS, "a time", "2h") if unit else 1.0)
    return value


def _fraction(value: Any) -> Any:
    _no_bool(value, "a share such as 5% or 0.05")
    if isinstance(value, str):
        number, unit = _split(value, "a share", "5% or 0.05")
        if unit not in ("", "%"):
            _unit(unit, {"%": 1}, "a share", "5%")
        return number / 100 if unit == "%" else number
    return value


def _schema(kind: str, pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "string", "pattern": pattern}]})


Count = Annotated[int, BeforeValidator(_count), _schema("integer", r"^[0-9][0-9_.]*([kKmMgGbBtT]i?)?$")]
"""A whole number; `64k` is 64,000, `64Ki` is 65,536, `1.5M` is 1,500,000."""
Bytes = Annotated[int, BeforeValidator(_bytes), _schema("integer", r"^[0-9][0-9_.]*([kKmMgGtT]i?)?[bB]?$")]
"""A size in bytes; `1GiB` is 2**30, `1GB` is 10**9."""
Duration = Annotated[float, BeforeValidator(_duration), _schema("number", r"^[0-9][0-9_.]*(ms|s|m|min|h|d)?$")]
"""A time in seconds; `90s`, `5m`, `2h`, `1d`."""
Fraction = Annotated[float, BeforeValidator(_fraction), _schema("number", r"^[0-9][0-9_.]*%?$")]
"""A share between 0 and 1; `5%` is 0.05."""


# ---------------------------------------------------------------------------------------------- the tree


class Config(BaseModel):
    """A node of the tree: frozen, unknown keys forbidden, each field documented by the string below it.

    Remembers which of its fields were read, so that a key that nothing consumed is an error (`unread_keys`), never a
    silent ignore.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )
    __slots__ = ("_reads",)

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
    _members: ClassVar[dict[str, type[Registered]]] = {}
    kind_: ClassVar[str] = ""
    """The name it was registered by."""

    def __init_subclass__(cls, family: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls._family, cls._members = family, {}
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
        what = {"family": cls._family}
        if not isinstance(data, Mapping):
            raise PydanticCustomError("kind", "got {value}, expected a {family} like {{kind: ...}}", what | {"value": repr(data)})
        if "kind" not in data:
            raise PydanticCustomError("kind", "say which {family}: kind: {kinds}", what | {"kinds": " | ".join(sorted(cls._members))})
        kind = data["kind"]
        member = cls._members.get(kind) if isinstance(kind, str) else None
        if member is None:
            raise PydanticCustomError(
                "kind", "no {family} is called {value}{nearest}. There are: {kinds}",
                what | {"value": repr(kind), "nearest": _nearest(str(kind), cls._members), "kinds": ", ".join(sorted(cls._members))},
            )  # fmt: skip
        try:
            return member.model_validate({k: v for k, v in data.items() if k != "kind"})
        except ValidationError as err:  # carried whole, so that `parse` can show each problem at its own path
            raise PydanticCustomError("nested", "{count} problems", {"count": err.error_count(), "error": err, "cls": member}) from None


_FAMILIES: dict[str, type[Registered]] = {}


def register(kind: str) -> typing.Callable[[R], R]:
    """Class decorator: the class becomes the member `kind` of the nearest family above it.

    Registering another class under a taken name is a `ValueError`: two packages must not fight silently.
    """

    def enrol(cls: R) -> R:
        family: Any = next((c for c in cls.__mro__ if "_family" in c.__dict__ and c is not Registered), None)
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
    plain: dict[str, Any] = node.model_dump(mode=mode)
    return {"kind": node.kind_, **plain} if isinstance(node, Registered) else plain


# ---------------------------------------------------------------------------------------------- from plain data to a tree


def parse(cls: type[T], data: Any, where: str = "") -> T:
    """Build a tree from plain data. Raises `RecipeError` listing each problem with its dotted key.

    Checks types, units and names, then each node's own `problems()`. `where` (a file, say) heads the message.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"expected keys and values, got {type(data).__name__} ({str(data)[:40]!r})", where)
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
            found.append(_join(path, name))
        else:
            found += [key for k, node in below.items() for key in unread_keys(node, _join(path, k))]
    return found


def _problems(err: ValidationError, cls: type[Config], path: str) -> Iterator[Problem]:
    for e in err.errors(include_url=False):
        at = ".".join(str(p) for p in e["loc"])
        ctx = e.get("ctx", {})
        if e["type"] == "nested":
            yield from _problems(ctx["error"], ctx["cls"], _join(path, at))
        elif e["type"] == "extra_forbidden":
            owner = _class_at(cls, e["loc"][:-1])
            known = list(owner.model_fields) if owner else []
            name = str(e["loc"][-1])
            there = "" if _nearest(name, known) or not known else f". There are: {', '.join(known)}"
            yield Problem(_join(path, at), f"unknown key{_nearest(name, known)}{there}")
        elif e["type"] == "missing":
            yield Problem(_join(path, at), "missing, and it has no default")
        elif e["type"] == "kind" or e["type"] == "unit":
            yield Problem(_join(path, at), e["msg"])
        else:
            yield Problem(_join(path, at), f"{_lower(e['msg'])}, got {_short(e['input'])}")


def _class_at(cls: type[Config], loc: Sequence[str | int]) -> type[Config] | None:
    """The class of the node at `loc`, following field annotations."""
    for part in loc:
        if isinstance(part, int):
            continue
        info = cls.model_fields.get(part)
        inner = next(_configs_in(info.annotation), None) if info else None
        if inner is None:
            return None
        cls = inner
    return cls


def _configs_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Config):
        yield annotation
    for arg in typing.get_args(annotation):
        yield from _configs_in(arg)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------------------------------------- YAML and a.b=c


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number (YAML 1.1 reads a string), a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str = "") -> Any:
    """Plain data from YAML text; `RecipeError` with line and column when it is not YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"not YAML: {getattr(err, 'problem', None) or err}{at}", where) from None
    except (ValueError, RecursionError, TypeError) as err:  # a timestamp out of range, a mapping as a key
        raise RecipeError(f"not YAML: {err}", where) from None


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=c` put in; the value is read as YAML. `a.0.b=c` reaches into a list.

    >>> override({"optim": "adamw"}, ["optim.lr=1e-3"])
    {'optim': {'kind': 'adamw', 'lr': 0.001}}
    """
    tree: dict[str, Any] = _copy(data)
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise RecipeError(f"{text!r} is not an assignment; write it like train.steps=100")
        path = key.split(".")
        node: Any = tree
        for i, part in enumerate(path):
            last = i == len(path) - 1
            if isinstance(node, list):
                if not part.isdigit() or int(part) >= len(node):
                    raise RecipeError([Problem(".".join(path[:i]), f"has items 0 to {len(node) - 1}, not {part!r}")])
                slot: Any = int(part)
            else:
                slot = part
            if last:
                node[slot] = read_yaml(value, text)
                continue
            inside = node[slot] if isinstance(node, list) else node.get(slot)
            if isinstance(inside, str):
                inside = {"kind": inside}
            if not isinstance(inside, (dict, list)):
                inside = {}
            node[slot] = inside
            node = inside
    return tree


def _copy(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {k: _copy(v) for k, v in data.items()}
    return [_copy(v) for v in data] if isinstance(data, (list, tuple)) else data


# ---------------------------------------------------------------------------------------------- JSON Schema


def json_schema(cls: type[Config]) -> dict[str, Any]:
    """JSON Schema of a tree, every registered member of every family included: for editors."""
    root = cls.model_json_schema(ref_template="#/$defs/{model}")
    defs: dict[str, Any] = root.pop("$defs", {})
    for family, base in _FAMILIES.items():
        choices: list[dict[str, Any]] = [{"enum": sorted(base._members)}]
        for kind, member in sorted(base._members.items()):
            one = member.model_json_schema(ref_template="#/$defs/{model}")
            defs |= one.pop("$defs", {})
            one["properties"] = {"kind": {"const": kind}} | one.get("properties", {})
            one["required"] = ["kind", *one.get("required", [])]
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
