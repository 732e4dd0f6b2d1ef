"""Writes `docs/reference/recipe.md`: every section and key of a recipe, from the typed tree itself. No Sphinx.

    python docs/generate_reference.py            # write the page
    python docs/generate_reference.py --check    # exit code 1 if it is not up to date

Only parts that come with Tauon are listed, whatever is installed beside it.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from tauon.config import Bytes, Config, Count, Duration, Fraction, Registered, dump, key_of, registered, write_yaml
from tauon.config.documented import descriptions
from tauon.recipe import Recipe

__all__ = ["PAGE", "render"]

PAGE = Path(__file__).parent / "reference" / "recipe.md"
FAMILIES = (
    "task",
    "model",
    "adapt",
    "optim",
    "schedule",
    "clipping",
    "noise",
    "parallel",
    "codec",
    "outer",
    "launch",
    "source",
    "tokenizer",
    "augment",
    "clean",
    "tracker",
    "compression",
    "strategy",
    "client_split",
)
UNITS = {id(typing.get_args(t)[1].func): name for t, name in ((Count, "count"), (Bytes, "size"), (Duration, "time"), (Fraction, "share"))}
HEAD = """\
# Every section and key

<!-- Written by docs/generate_reference.py from the classes themselves: change those, then run it. -->

Types: a *count* is a whole number (`64`, `64k`, `64Ki`), a *size* is in bytes (`512MiB`), a *time* in seconds (`90s`, `2h`), a *share* is between
0 and 1 (`5%`). How recipes behave is said in [Recipes](../recipes.md).

"""


def render() -> str:
    """The whole page."""
    parts = [HEAD, *section("Recipe", Recipe, "")]
    parts += [
        "## Kinds\n\nMembers of the open families. In a recipe: `{kind: NAME, key: value}`, or just the name. "
        "Installed packages may bring more.\n\n"
    ]
    for family in FAMILIES:
        parts += family_part(family)
    return "".join(parts).rstrip("\n") + "\n"


def section(title: str, cls: type[Config], path: str, level: int = 2) -> Iterator[str]:
    """A node's keys, then the nodes below it that are no open family."""
    yield f"{'#' * level} {title}\n\n{first_paragraph(cls)}\n\n{table(cls, list(cls.model_fields))}\n"
    for name, info in cls.model_fields.items():
        for below in configs_in(info.annotation):
            if not issubclass(below, Registered):
                inner = f"{path}.{name}" if path else name
                yield from section(f"`{inner}`", below, inner)


def family_part(family: str) -> Iterator[str]:
    """What all members share, then each member with what it adds or changes."""
    members: dict[str, type[Config]] = {k: m for k, m in registered(family).items() if m.__module__.startswith("tauon.")}
    base: Any = next(c for c in next(iter(members.values())).__mro__ if "_family" in c.__dict__ and c is not Registered)
    yield f"### {family}\n\n{first_paragraph(base)}\n\n"
    shared = list(base.model_fields)
    if shared:
        yield f"Every kind has\n\n{table(base, shared)}\n"
    for kind, member in members.items():
        own = [n for n in member.model_fields if n not in shared or show_default(member, n) != show_default(base, n)]
        yield f"#### {family}: `{kind}`\n\n{first_paragraph(member)}\n\n"
        if own:
            yield f"{table(member, own)}\n"


def table(cls: type[Config], names: list[str]) -> str:
    rows = [
        f"| `{key_of(cls, n)}` | {show_type(cls.model_fields[n].annotation, cls.model_fields[n].metadata)}{bounds(cls.model_fields[n])} "
        f"| {show_default(cls, n)} | {meaning(cls, n)} |"
        for n in names
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def show_type(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """A type in words: `count`, `one of a, b`, `list of texts`."""
    for m in metadata:
        if id(getattr(m, "func", None)) in UNITS:
            return UNITS[id(m.func)]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return show_type(args[0], args[1:])
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(show_type(a) for a in args if a is not type(None)))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"list of {show_type(args[0])}"
        return "[" + ", ".join(show_type(a) for a in args) + "]"
    if isinstance(annotation, type) and issubclass(annotation, Registered):
        return f"[{annotation._family}](#{annotation._family})"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    if origin is dict:
        return f"{show_type(args[1])} by name"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Any: "anything"}
    return names[annotation]


def bounds(info: FieldInfo) -> str:
    """` ≥ 1`, ` > 0`, ` < 1` of a field. Upper bounds above a million only keep arithmetic within 63 bits, and are left out."""
    found = {
        sign: value
        for m in [*info.metadata, *_within(info.annotation)]
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if (value := getattr(m, name, None)) is not None and value <= 1e6
    }
    return ",".join(f" {sign} {value:,}" for sign, value in found.items())


def _within(annotation: Any) -> Iterator[Any]:
    """Constraints inside an optional type; those of a list's items are not the list's."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        for m in args[1:]:
            yield from m.metadata if isinstance(m, FieldInfo) else [m]
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for arg in args:
            yield from _within(arg)


def show_default(cls: type[Config], name: str) -> str:
    info = cls.model_fields[name]
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "left out"
    if isinstance(value, Registered):
        changed = {k: v for k, v in dump(value).items() if k != "kind" and v != dump(type(value)()).get(k)}
        return "`" + write_yaml({"kind": value.kind_} | changed if changed else value.kind_, flow=True) + "`"
    if isinstance(value, Config):
        return "see there"
    if isinstance(value, tuple):
        return f"`{write_yaml([*value], flow=True)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def meaning(cls: type[Config], name: str) -> str:
    """The string below the field; where a class only changes a default, its base's."""
    text = next(
        (
            d
            for c in cls.__mro__
            if issubclass(c, Config) and name in c.model_fields and (d := c.model_fields[name].description or descriptions(c).get(name))
        ),
        "",
    )
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(p.replace("<", "\\<") if i % 2 == 0 else p for i, p in enumerate(pieces))  # `<s>` would be HTML


def first_paragraph(cls: type[Config]) -> str:
    """A class's docstring up to its first blank line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def configs_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Config):
        yield annotation
    for arg in typing.get_args(annotation):
        yield from configs_in(arg)


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv[1:]:
        sys.exit("docs/reference/recipe.md is not up to date: python docs/generate_reference.py" if PAGE.read_text() != text else 0)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
