"""What the string below a field says, read from the source when it is asked for: JSON Schema and the reference need it, a run does not.

pydantic's `use_attribute_docstrings` reads every class while it is defined, which took a third of a second of each start.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from pathlib import Path

__all__ = ["descriptions"]


def descriptions(cls: type) -> dict[str, str]:
    """Return field -> text, those of base classes too.

    >>> from tauon.config import Config
    >>> class Oven(Config):
    ...     degrees: int = 180
    >>> descriptions(Oven)
    {}
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _of_module(base.__module__).get(base.__qualname__, {})
    fields = getattr(cls, "model_fields", found)
    return {name: text for name, text in found.items() if name in fields}


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """Return class -> field -> text of a module; empty for one without source."""
    module = sys.modules.get(name)
    try:
        path = inspect.getsourcefile(module) if module is not None else None
    except TypeError:  # built in
        path = None
    if path is None or not Path(path).is_file() or not name.partition(".")[0]:
        return {}
    found: dict[str, dict[str, str]] = {}
    _walk(ast.parse(Path(path).read_text(encoding="utf-8")), "", found)
    return found


def _walk(node: ast.AST, prefix: str, found: dict[str, dict[str, str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            found[prefix + child.name] = _fields(child)
            _walk(child, f"{prefix}{child.name}.", found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _walk(child, f"{prefix}{child.name}.<locals>.", found)


def _fields(node: ast.ClassDef) -> dict[str, str]:
    """Return the string below each annotated name of a class."""
    found: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = inspect.cleandoc(value.value)
    return found
