"""A user's own rule: an expression in the recipe, or a Python function.

An expression is read by a parser of its own, node by node: no code from a recipe is run. A function is code, so it comes from an installed
package or from your program, by name.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from tauon.config import register
from tauon.data.clean.base import Rejected, Text, TextFilter

__all__ = ["ExpressionConfig", "FunctionConfig", "cleaning_function"]

Function = Callable[[str], "str | bool | Rejected"]
_FUNCTIONS: dict[str, Function] = {}


def cleaning_function(name: str) -> Callable[[Function], Function]:
    """Decorator: `{kind: function, name: NAME}` in a recipe calls this function with each text.

    It returns True (keep), False (reject), a changed text, or `Rejected(rule, reason)`. A package announces the module that has it under the
    entry-point group `tauon.clean`.

    >>> @cleaning_function("no-drafts")
    ... def no_drafts(text):
    ...     return not text.startswith("DRAFT")
    """

    def enrol(function: Function) -> Function:
        _FUNCTIONS[name] = function
        return function

    return enrol


@register("function")
class FunctionConfig(TextFilter):
    """A Python function of your own, registered with `@cleaning_function("name")`."""

    name: str
    """Its name."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        name = self.raw_value("name")
        if name not in _FUNCTIONS:
            known = f"Registered: {', '.join(sorted(_FUNCTIONS))}" if _FUNCTIONS else "None is registered"
            yield (
                "name",
                f"no function is registered as {name!r}. {known}; decorate yours with tauon.data.clean.cleaning_function({name!r})",
            )

    def depends_on(self) -> list[Any]:
        function = _FUNCTIONS[self.name]
        try:
            code = inspect.getsource(function)
        except (OSError, TypeError):
            code = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
        return [hashlib.sha256(code.encode()).hexdigest()]

    def module(self) -> str:
        return str(getattr(_FUNCTIONS[self.name], "__module__", "__main__"))

    def apply(self, text: str) -> str | Rejected:
        found = _FUNCTIONS[self.name](text)
        if isinstance(found, (str, Rejected)):
            return found
        if isinstance(found, bool):
            return text if found else Rejected(self.name, f"the function {self.name} returned false")
        raise TypeError(f"the cleaning function {self.name!r} returned {type(found).__name__}, expected a bool, a text or Rejected")


@register("expression")
class ExpressionConfig(TextFilter):
    """Keep texts for which an expression is true: `words >= 20 and digits < 0.3 and "lorem" not in text`."""

    keep: str
    """The expression. Names: text, length (characters), words, lines (numbers); letters, digits, uppercase, blanks (shares of the characters).
    Signs: and or not in < <= > >= == != + - * / ( )."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        keep = self.raw_value("keep")
        try:
            _value(_parsed(keep), Text("a b"))
        except (ValueError, SyntaxError) as err:
            yield "keep", f"{keep!r}: {err if isinstance(err, ValueError) else 'is no expression'}. Names: {', '.join(sorted(_NAMES))}"

    def apply(self, text: str) -> str | Rejected:
        tree, view = _parsed(self.keep), text if isinstance(text, Text) else Text(text)
        if _value(tree, view):
            return text
        measured = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"text"}
        values = ", ".join(f"{name} = {_NAMES[name](view):g}" for name in sorted(measured))
        return Rejected("expression", f"not {self.keep}" + (f" ({values})" if values else ""))


def _share(kind: Callable[[str], bool]) -> Callable[[Text], float]:
    return lambda text: sum(map(kind, text)) / max(1, len(text))


_NAMES: dict[str, Callable[[Text], Any]] = {
    "text": str, "length": len, "words": lambda text: len(text.pieces), "lines": lambda text: len(text.lines),
    "letters": _share(str.isalpha), "digits": _share(str.isdigit), "uppercase": _share(str.isupper), "blanks": _share(str.isspace),
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@lru_cache(32)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression.strip(), mode="eval").body


def _value(node: ast.expr, text: Text) -> Any:
    """Evaluate the few kinds of nodes that an expression may have; `ValueError` for every other one, and for text where a number belongs."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name](text)
        case ast.BoolOp(op=op, values=values):
            both = isinstance(op, ast.And)
            return all(_value(v, text) for v in values) if both else any(_value(v, text) for v in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, text)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            divisor = _number(right, text)
            return 0.0 if isinstance(op, ast.Div) and divisor == 0 else _ARITHMETIC[type(op)](_number(left, text), divisor)
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(v, text) for v in (left, *others)]
            return all(_compared(op, a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
    raise ValueError(f"{ast.unparse(node)} is not allowed in an expression")


def _number(node: ast.expr, text: Text) -> float:
    value = _value(node, text)
    if isinstance(value, str):
        raise ValueError(f"{ast.unparse(node)} is a text where a number is needed")
    return value  # type: ignore[no-any-return]


def _compared(op: ast.cmpop, a: Any, b: Any) -> bool:
    if type(op) not in _COMPARE:
        raise ValueError("compare with < <= > >= == != in")
    if isinstance(op, (ast.In, ast.NotIn)) and not (isinstance(a, str) and isinstance(b, str)):
        raise ValueError("in and not in need two texts")
    if isinstance(a, str) != isinstance(b, str):
        raise ValueError("a text and a number cannot be compared")
    return _COMPARE[type(op)](a, b)
