"""Rules about settings that cannot work together. Each is defined in the package of its topic and registered with `@recipe_rule`.

A rule is a function of the whole recipe that yields (dotted key, message) for each problem. It reads values by `raw_value`, so that checking
does not count as use, and opens neither data nor device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Rule", "recipe_rule", "recipe_rules"]

Rule = Callable[[Any], Iterator[tuple[str, str]]]
_RULES: dict[str, Rule] = {}


def recipe_rule(rule: Rule) -> Rule:
    """Function decorator: check every recipe by this rule, before any stage."""
    _RULES[f"{rule.__module__}.{rule.__qualname__}"] = rule
    return rule


def recipe_rules() -> list[Rule]:
    """Return every rule, in order of registration."""
    return list(_RULES.values())
