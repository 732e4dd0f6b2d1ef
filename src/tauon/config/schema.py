"""JSON Schema of a config tree, including every registered member of every family, for editors."""

from __future__ import annotations

import typing
from typing import Any

from tauon.config.tree import Config, Registered, families

__all__ = ["json_schema"]


def json_schema(cls: type[Config]) -> dict[str, Any]:
    """Return the JSON Schema of a tree, including every registered member of every family, for editors."""
    root = cls.model_json_schema(ref_template="#/$defs/{model}")
    defs: dict[str, Any] = root.pop("$defs", {})
    for family, base in families().items():
        if not issubclass(base, Registered):  # selected by the data, not by a key of the recipe
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
