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
from fractions import Fraction as Exact
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
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
    "write_yaml",
]

T = TypeVar("T", bound="Config")
R = TypeVar("R", bound="type[Registered]")


# ---------------------------------------------------------------------------------------------- values with units

_SI = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_IEC = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z%]*)", re.ASCII)
_LONGEST = 60
"""Characters of a value that is still shown whole, and of a number that is still read."""
_LARGEST = 2**63 - 1


def _split(value: str, what: str, example: str) -> tuple[Exact, str]:
    """(number, unit); exact, since 1.001k is 1001 and in floating point is not."""
    match = _NUMBER.fullmatch(value.strip()) if len(value) <= _LONGEST else None
    if not match:
        raise PydanticCustomError(
            "unit", "{value} is not {what}; write it like {example}", {"value": _short(value), "what": what, "example": example}
        )
    return Exact(match[1].replace("_", "")), match[2]


def _unit(unit: str, table: Mapping[str, int | float], what: str, example: str) -> Exact:
    if unit.lower() not in table:
        raise PydanticCustomError(
            "unit", "unit {unit} of {what} is not one of {units}; write it like {example}",
            {"unit": repr(unit), "what": what, "units": ", ".join(u for u in table if u), "example": example},
        )  # fmt: skip
    return Exact(table[unit.lower()]).limit_denominator(1000)  # 1e-3, exactly


def _no_bool(value: Any, what: str) -> None:
    if isinstance(value, bool):  # YAML's yes/no/on/off would pass for 1 and 0
        raise PydanticCustomError("unit", "got {value}, expected {what}", {"value": repr(value).lower(), "what": what})


def _whole(value: Any, text: Any) -> Any:
    """`value` as an int where it is a whole number of at most 63 bits; what is no number goes on to the type check."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Exact) and value.denominator != 1:
        raise PydanticCustomError("unit", "{value} is not a whole number", {"value": repr(text)})
    if isinstance(value, (int, Exact)) and abs(Exact(value)) > _LARGEST:
        raise PydanticCustomError("unit", "{value} is more than 2^63 - 1, the largest count", {"value": _short(text)})
    return int(value) if isinstance(value, Exact) else value


def _count(value: Any) -> Any:
    _no_bool(value, "a count such as 64 or 64k")
    if isinstance(value, str):
        number, unit = _split(value, "a count", "64, 64k (64,000), 64Ki (65,536) or 1.5M")
        return _whole(number * _unit(unit, {**_SI, **_IEC}, "a count", "64k"), value)
    return _whole(value, value)


def _bytes(value: Any) -> Any:
    _no_bool(value, "a size such as 512MiB")
    if isinstance(value, str):
        number, unit = _split(value, "a size", "512MiB or 1GB")
        table = {"": 1, "b": 1} | {u + "b": f for u, f in ({**_SI, **_IEC}).items() if u not in ("", "b")}
        return _whole(number * _unit(unit, table, "a size", "1GiB"), value)
    return _whole(value, value)


def _duration(value: Any) -> Any:
    _no_bool(value, "a time such as 90s or 2h")
    if isinstance(value, str):
        number, unit = _split(value, "a time", "90s, 5m or 2h")
        return float(number * (_unit(unit, _SECONDS, "a time", "2h") if unit else 1))
    return value


def _fraction(value: Any) -> Any:
    _no_bool(value, "a share such as 5% or 0.05")
    if isinstance(value, str):
        number, unit = _split(value, "a share", "5% or 0.05")
        if unit not in ("", "%"):
            _unit(unit, {"%": 1}, "a share", "5%")
        return float(number / 100 if unit == "%" else number)
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
        what, kinds = {"family": cls._family}, " | ".join(sorted(cls._members))
        if not isinstance(data, Mapping):
            raise PydanticCustomError("kind", "got {value}, expected one of {kinds}", what | {"value": _short(data), "kinds": kinds})
        if "kind" not in data:
            raise PydanticCustomError("kind", "say which {family}: kind: {kinds}", what | {"kinds": kinds})
        kind = data["kind"]
        member = cls._members.get(kind) if isinstance(kind, str) else None
        if member is None:
            raise PydanticCustomError(
                "kind", "no {family} is called {value}{nearest} There are: {kinds}",
                what | {"value": _short(kind), "nearest": _nearest(str(kind), cls._members) or ".", "kinds": ", ".join(sorted(cls._members))},
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
    """Import every installed package that announces parts for Tauon (entry-point groups `tauon.<family>`, `tauon.plugins`)."""
    for group in ("plugins", *_FAMILIES):
        for point in entry_points(group=f"tauon.{group}"):
            point.load()


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
        raise RecipeError(f"expected keys and values, got {type(data).__name__} ({_short(data)})", where)
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
    choices: dict[str, list[str]] = {}  # of a value that may be this or that, each refusal at one key
    for e in err.errors(include_url=False):
        ctx, kind = e.get("ctx", {}), e["type"]
        loc, chosen = _keys_in(e["loc"], cls, unknown_last=kind == "extra_forbidden")
        at = _join(path, *(str(p) for p in loc))
        if kind == "nested":
            yield from _problems(ctx["error"], ctx["cls"], at)
        elif kind == "extra_forbidden":
            owner = _class_at(cls, e["loc"][:-1])
            known = list(owner.model_fields) if owner else []
            name = str(e["loc"][-1])
            there = "" if _nearest(name, known) or not known else f". There are: {', '.join(known)}"
            yield Problem(at, f"unknown key{_nearest(name, known)}{there}")
        elif kind == "missing":
            yield Problem(at, "missing, and it has no default")
        else:
            message = e["msg"] if kind in ("kind", "unit") else f"{_lower(e['msg'])}, got {_short(e['input'])}"
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
        elif here is not None and part in here.model_fields:
            keys.append(part)
            here = next(_configs_in(here.model_fields[part].annotation), None)
    return keys, len(keys) < len(loc)


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


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(arg) for arg in typing.get_args(annotation))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, say
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


# ---------------------------------------------------------------------------------------------- YAML and a.b=c


_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_MOST_VALUES, _DEEPEST = 100_000, 64


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number (YAML 1.1 reads a string), a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:  # here, before `<<` puts the keys of another mapping among them
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"key {_short(key.value)} is given twice", problem_mark=key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back the same: a string that looks like 1e3 gets quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(text: str, where: str = "") -> Any:
    """Plain data from YAML text; `RecipeError` with line and column when it is not YAML."""
    where = where if len(where) <= 2 * _LONGEST else where[: 2 * _LONGEST - 3] + "..."
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"not YAML: {getattr(err, 'problem', None) or err}{at}", where) from None
    except RecursionError:
        raise RecipeError("not a recipe: nested too deeply", where) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as err:
        # PyYAML's own, for `!!bool maybe`, `!!int ''`, a date that does not exist, a mapping as a key
        raise RecipeError(f"not YAML: a value does not fit its tag, or a mapping is a key ({_lower(str(err))})", where) from None
    if size := _too_large(data):
        raise RecipeError(f"not a recipe: it {size}, aliases (*name) counted each time", where)
    return data


def write_yaml(data: Any) -> str:
    """YAML text that `read_yaml` reads back as the same plain data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _too_large(data: Any) -> str:
    """How the data is too large, if so: a few lines of aliases (`*a`) can make endless or enormous trees."""
    left = _MOST_VALUES
    stack: list[tuple[Any, int]] = [(data, 1)]
    while stack:
        node, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            return f"holds over {_MOST_VALUES:,} values" if left < 0 else f"is nested over {_DEEPEST} levels deep"
        if isinstance(node, dict):
            stack += [(v, depth + 1) for v in node.values()]
        elif isinstance(node, (list, tuple)):
            stack += [(v, depth + 1) for v in node]
    return ""


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=c` put in; the value is read as YAML. `a.0.b=c` reaches into a list.

    >>> override({"optim": "adamw"}, ["optim.lr=1e-3"])
    {'optim': {'kind': 'adamw', 'lr': 0.001}}
    """
    tree: dict[str, Any] = _copy(data)
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise RecipeError(f"{_short(text)} is not an assignment; write it like train.steps=100")
        path = key.split(".")
        node: Any = tree
        for i, part in enumerate(path):
            last = i == len(path) - 1
            if isinstance(node, list):
                if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= len(node):
                    raise RecipeError([Problem(".".join(path[:i]), f"has {len(node)} items, counted from 0; there is no {_short(part)}")])
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
