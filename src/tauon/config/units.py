"""Values with units, as written in a recipe: `64k`, `1GiB`, `2h`, `5%`. Exact: 1.001k is 1001."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction as Exact
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

__all__ = ["LONGEST", "Bytes", "Count", "Duration", "Fraction", "lower_first", "short"]

_SI = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_IEC = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z%]*)", re.ASCII)
LONGEST = 60
"""Most characters of a value in a message, and of a number that is parsed."""
_LARGEST = 2**63 - 1


def _split(value: str, what: str, example: str) -> tuple[Exact, str]:
    """Return (number, unit); exact, since 1.001k is 1001 and in floating point is not."""
    match = _NUMBER.fullmatch(value.strip()) if len(value) <= LONGEST else None
    if not match:
        raise PydanticCustomError(
            "unit", "{value} is not {what}; write it like {example}", {"value": short(value), "what": what, "example": example}
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
    """Return `value` as an int if it is a whole number of at most 63 bits; other types are passed to the type check."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Exact) and value.denominator != 1:
        raise PydanticCustomError("unit", "{value} is not a whole number", {"value": repr(text)})
    if isinstance(value, (int, Exact)) and abs(Exact(value)) > _LARGEST:
        raise PydanticCustomError("unit", "{value} is more than 2^63 - 1, the largest count", {"value": short(text)})
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


def short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, for example
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
