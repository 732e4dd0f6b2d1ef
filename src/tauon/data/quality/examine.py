"""Run every check on a data set, in order of weight; one check that fails does not end the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

from tauon.config import registered
from tauon.data.quality.base import DataView, Finding, QualityCheck
from tauon.errors import MissingExtra

__all__ = ["Quality", "examine", "quality_checks"]

_ORDER = {"bad": 0, "warn": 1, "note": 2}


@dataclass
class Quality:
    """Result of a look at a data set."""

    kind: str
    records: dict[str, int]
    """Number of records of each part."""
    findings: list[Finding]
    asked: list[str]
    """Titles of the checks that were made."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Title of a check that was not made -> why."""
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0

    def of(self, check: str) -> Finding | None:
        """Return the finding of a name, if there is one."""
        return next((f for f in self.findings if f.check == check), None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "kind": self.kind, "records": self.records, "findings": [f.to_json() for f in self.findings], "asked": self.asked,
            "skipped": self.skipped, "left_out": list(self.left_out), "seconds": round(self.seconds, 2),
        }  # fmt: skip


def quality_checks(kind: str) -> dict[str, type[QualityCheck]]:
    """Return the checks for a kind of data by name: Tauon's, then those of installed packages."""
    found = cast("dict[str, type[QualityCheck]]", registered("quality_check"))
    return {name: check for name, check in found.items() if not check.kinds or kind in check.kinds}


def examine(view: DataView, checks: Collection[str] = (), *, progress: Callable[[str, int, int], None] | None = None) -> Quality:
    """Make every check that fits the kind of data.

    Args:
        view: the records.
        checks: names of the checks to make; empty: all.
        progress: called with (what, done, total).

    Returns:
        What was found, the worst first.
    """
    begun = time.perf_counter()
    chosen = {name: check for name, check in quality_checks(view.kind).items() if not checks or name in checks}
    quality = Quality(view.kind, {p: len(view.rows(p)) for p in view.parts}, [], [], {}, view.left_out)
    for done, check in enumerate(chosen.values()):
        if progress is not None:
            progress(check.title.lower(), done, len(chosen))
        try:
            quality.findings += check().find(view)
        except MissingExtra as err:
            quality.skipped[check.title] = str(err)
        else:
            quality.asked.append(check.title)
    if view.left_out:
        message = f"{len(view.left_out)} notes about what could not be read: {'; '.join(view.left_out[:3])}"
        quality.findings.append(Finding("left out", "warn", message, columns=view.left_out))
    quality.findings.sort(key=lambda f: (_ORDER[f.severity], -f.count))
    quality.seconds = time.perf_counter() - begun
    return quality
