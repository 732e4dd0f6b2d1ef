"""The default filters of each kind of data: what `data.clean: default` stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tauon.config import parse, register
from tauon.data.clean.base import DefaultConfig, FilterConfig

__all__ = ["StandardConfig"]

_DEFAULTS = {
    "text": ("repair", "gopher-repetition", "gopher-quality", {"kind": "c4", "terminal_punctuation": False}, "fineweb-quality"),
    "labelled-text": ("repair", "length", "duplicates"),
    "table": ("duplicates", "outliers"),
    "images": ("blank", "duplicates"),
    "signals": ("silent", "clipped", "duplicates"),
    "series": ("stuck",),
}
"""Text: FineWeb's rules in FineWeb's order (arXiv:2406.17557). They are made for English prose of the web."""


@register("default")
class StandardConfig(DefaultConfig):
    """The default filters of the kind of data. Text: repair, gopher-repetition, gopher-quality, c4 without its rule on the ends of lines,
    fineweb-quality; texts with labels: repair, length, duplicates; tables: duplicates, outliers (reported); images: blank, duplicates;
    recordings: silent, clipped, duplicates; series: stuck (reported). Others may stand before and behind it.
    """

    cleans = tuple(_DEFAULTS)
    looks_at_others: ClassVar[bool] = True
    libraries: ClassVar[dict[str, str]] = {"ftfy": "ftfy"}

    def filters(self, kind: str) -> Iterator[FilterConfig]:
        yield from (parse(FilterConfig, one if isinstance(one, dict) else {"kind": one}) for one in _DEFAULTS[kind])
