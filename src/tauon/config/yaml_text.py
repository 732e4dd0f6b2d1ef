"""Recipes as text: YAML with small corrections, and `a.b=c`. Works on plain data; `tree.py` gives it meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tauon.config.units import LONGEST, lower_first, short
from tauon.errors import Problem, RecipeError

__all__ = ["override", "read_yaml", "write_yaml"]


_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_MOST_VALUES, _DEEPEST = 100_000, 64


class _Loader(yaml.SafeLoader):
    """YAML with two corrections: `1e-3` is a number (YAML 1.1 reads a string), and a duplicate key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:  # here, before `<<` merges the keys of another mapping
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"key {short(key.value)} occurs twice", problem_mark=key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return node


class _Dumper(yaml.SafeDumper):
    """Writes YAML that `_Loader` reads back the same: a string that looks like 1e3 gets quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(text: str, where: str = "") -> Any:
    """Return plain data from YAML text; `RecipeError` with line and column if it is not YAML."""
    where = where if len(where) <= 2 * LONGEST else where[: 2 * LONGEST - 3] + "..."
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"not valid YAML: {getattr(err, 'problem', None) or err}{at}", where) from None
    except RecursionError:
        raise RecipeError("not a recipe: nested too deeply", where) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as err:
        # PyYAML's own, for `!!bool maybe`, `!!int ''`, a date that does not exist, a mapping as a key
        raise RecipeError(f"not valid YAML: a value does not fit its tag, or a mapping is a key ({lower_first(str(err))})", where) from None
    if size := _too_large(data):
        raise RecipeError(f"not a recipe: it {size}, aliases (*name) counted each time", where)
    return data


def write_yaml(data: Any, *, flow: bool = False) -> str:
    """Return YAML text that `read_yaml` reads back as the same plain data; with `flow`, on one line: {a: 1, b: [2]}."""
    width = math.inf if flow else 120
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=flow)
    return text.removesuffix("\n...\n").strip() if flow else text


def _too_large(data: Any) -> str:
    """Return how the data is too large, or an empty text: a few lines of aliases (`*a`) can make endless or enormous trees."""
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
    """Return a copy of `data` with each `a.b=c` applied; the value is read as YAML. `a.0.b=c` indexes a list.

    >>> override({"optim": "adamw"}, ["optim.lr=1e-3"])
    {'optim': {'kind': 'adamw', 'lr': 0.001}}
    """
    tree: dict[str, Any] = _copy(data)
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise RecipeError(f"{short(text)} is not an assignment; write it like train.steps=100")
        path = key.split(".")
        node: Any = tree
        for i, part in enumerate(path):
            last = i == len(path) - 1
            if isinstance(node, list):
                if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= len(node):
                    raise RecipeError(
                        [Problem(".".join(path[:i]), f"has {len(node)} items, numbered from 0; item {short(part)} does not exist")]
                    )
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
