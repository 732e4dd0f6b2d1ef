"""The typed tree behind every recipe: nodes, open families of parts, values with units, YAML, JSON Schema, and recipe rules."""

from tauon.config.parse import parse, problems_in
from tauon.config.plugins import load_plugin, load_plugins
from tauon.config.rules import recipe_rule, recipe_rules
from tauon.config.schema import json_schema
from tauon.config.tree import (
    FAILED_PLUGINS,
    Config,
    Pluggable,
    Registered,
    children,
    count_as_read,
    dump,
    families,
    key_of,
    nearest,
    register,
    registered,
    unread_keys,
)
from tauon.config.units import Bytes, Count, Duration, Fraction
from tauon.config.yaml_text import override, read_yaml, write_yaml

__all__ = [
    "FAILED_PLUGINS",
    "Bytes",
    "Config",
    "Count",
    "Duration",
    "Fraction",
    "Pluggable",
    "Registered",
    "children",
    "count_as_read",
    "dump",
    "families",
    "json_schema",
    "key_of",
    "load_plugin",
    "load_plugins",
    "nearest",
    "override",
    "parse",
    "problems_in",
    "read_yaml",
    "recipe_rule",
    "recipe_rules",
    "register",
    "registered",
    "unread_keys",
    "write_yaml",
]
