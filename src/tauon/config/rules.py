"""Rules about settings that cannot work together. Each lives in the package that knows it, and joins with `@recipe_rule`.

A rule is a function of the whole recipe that yields (dotted key, message) for each problem. It reads values by `raw_value`, so that a check does
not count as use, and opens neither data nor device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Rule", "recipe_rule", "recipe_rules"]

Rule = Callable[[Any], Iterator[tuple[str, str]]]
_RULES: dict[str, Rule] = {}


def recipe_rule(rule: Rule) -> Rule:
    """Function decorator: every recipe is checked by this rule, before any stage."""
    _RULES[f"{rule.__module__}.{rule.__qualname__}"] = rule
    return rule


def recipe_rules() -> list[Rule]:
    """Every rule, in order of registration."""
    return list(_RULES.values())
