"""Options with units: times (90s, 2h) and sizes (32MiB), read as in a recipe."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["size_in_bytes", "time_in_seconds"]


def time_in_seconds(text: str, option: str) -> float:
    """Return the seconds of a time. Raises `click.UsageError` with the name of the option."""
    from tauon.config import Duration

    return float(_parsed(Duration, text, option))


def size_in_bytes(text: str, option: str) -> int:
    """Return the bytes of a size. Raises `click.UsageError` with the name of the option."""
    from tauon.config import Bytes

    return int(_parsed(Bytes, text, option))


def _parsed(kind: Any, text: str, option: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as err:
        raise click.UsageError(f"{option}: {err.errors()[0]['msg'].removeprefix('Value error, ')}") from None
