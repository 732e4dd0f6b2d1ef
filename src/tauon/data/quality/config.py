"""The `quality` section of a recipe: a look at the data before training."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from tauon.config import Config, registered

__all__ = ["QualityConfig"]


class QualityConfig(Config):
    """Look for equal records, leaks between parts, label errors, outliers, drift and damage; the findings stand in the report. Changes nothing."""

    checks: tuple[str, ...] = ()
    """Names of the checks to make: equal-records, column-outliers, ... Default: all that fit the data."""
    show_personal_data: bool = False
    """Show addresses, telephone, card and national numbers in the examples as they are, instead of <EMAIL>, <PHONE>, <CARD>, <ID>."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        known = registered("quality_check")
        for name in self.raw_value("checks"):
            if name not in known:
                close = get_close_matches(name, known, n=1)
                yield "checks", f"names {name!r}{f'; did you mean {close[0]!r}?' if close else ''}. Available: {', '.join(known)}"
