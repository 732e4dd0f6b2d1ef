"""Run every check on a data set, in order of weight; one check that fails does not end the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tauon.config import registered
from tauon.data.quality.base import DataView, Finding, QualityCheck
from tauon.data.quality.masking import mask
from tauon.errors import MissingExtra

__all__ = ["Quality", "examine", "quality_checks"]

_ORDER = {"bad": 0, "warn": 1, "note": 2}
_FIRST = (
    "leaks", "giveaways", "near leaks", "contradictions", "label errors", "missing classes", "class shares", "personal data", "drift", "left out",
    "broken values", "encoding", "duplicates",
)  # fmt: skip
"""Findings of one severity, from what spoils the measurement of a model to what only its training sees; the others follow by count."""


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
    personal_data: str = "masked"
    """How it stands in messages and examples: masked, or shown."""

    def of(self, check: str) -> Finding | None:
        """Return the finding of a name, if there is one."""
        return next((f for f in self.findings if f.check == check), None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "kind": self.kind, "records": self.records, "findings": [f.to_json() for f in self.findings], "asked": self.asked,
            "skipped": self.skipped, "left_out": list(self.left_out), "seconds": round(self.seconds, 2),
            "personal_data": self.personal_data,
        }  # fmt: skip


def quality_checks(kind: str) -> dict[str, type[QualityCheck]]:
    """Return the checks for a kind of data by name: Tauon's, then those of installed packages."""
    found = cast("dict[str, type[QualityCheck]]", registered("quality_check"))
    return {name: check for name, check in found.items() if not check.kinds or kind in check.kinds}


def examine(
    view: DataView,
    checks: Collection[str] = (),
    *,
    show_personal_data: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Quality:
    """Make every check that fits the kind of data.

    Args:
        view: the records.
        checks: names of the checks to make; empty: all.
        show_personal_data: leave addresses, telephone, card and national numbers in messages and examples as they are. Names of files and columns always are.
        progress: called with (what, done, total).

    Returns:
        What was found, the worst first.
    """
    begun = time.perf_counter()
    view = replace(view, show_personal_data=show_personal_data)
    fits = {name: check for name, check in quality_checks(view.kind).items() if view.labels_N is not None or not check.needs_classes}
    chosen = {name: check for name, check in fits.items() if not checks or name in checks}
    quality = Quality(view.kind, {p: len(view.rows(p)) for p in view.parts}, [], [], {}, view.left_out)
    quality.personal_data = "shown" if show_personal_data else "masked"
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
        message = f"{len(view.left_out)} notes about what could not be read or was filled: {'; '.join(view.left_out[:3])}"
        quality.findings.append(Finding("left out", "warn", message, columns=view.left_out))
    quality.findings.sort(key=lambda f: (_ORDER[f.severity], _FIRST.index(f.check) if f.check in _FIRST else len(_FIRST), -f.count))
    if not show_personal_data:
        quality.findings = [_masked(f) for f in quality.findings]
        quality.left_out = tuple(mask(note) for note in quality.left_out)
    quality.seconds = time.perf_counter() - begun
    return quality


def _masked(finding: Finding) -> Finding:
    """Return the finding without personal data in what it says; names of classes can be addresses, if the label is ill chosen."""
    shown = tuple(replace(e, text=mask(e.text), note=mask(e.note)) for e in finding.examples)
    columns = tuple(mask(column) for column in finding.columns)
    return replace(finding, message=mask(finding.message), examples=shown, columns=columns, facts=_masked_tree(finding.facts))


def _masked_tree(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {mask(str(key)): _masked_tree(inner) for key, inner in value.items()}
    return mask(value) if isinstance(value, str) else value
