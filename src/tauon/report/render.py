"""`render`: a run folder's records -> `report.html`, one self-contained page. Computes no metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import tauon
from tauon.artifacts import atomic_write
from tauon.report.data import data
from tauon.report.facts import environment, lineage, recipe
from tauon.report.headline import headline
from tauon.report.page import Section, document, missing
from tauon.report.records import Records
from tauon.report.results import evaluation, folds, samples
from tauon.report.text import escape
from tauon.report.training import training

__all__ = ["MOST_BYTES", "SECTIONS", "SectionMaker", "core_sections", "render"]

MOST_BYTES = 5_000_000
"""Largest size of a report: it must open quickly and fit in an e-mail."""

SectionMaker = Callable[[Records], Section | None]

SECTIONS: tuple[SectionMaker, ...] = (evaluation, folds, training, samples, data, recipe, environment, lineage)
"""Sections of every report, from top to bottom. A package adds its own with a function: `render(folder, [*SECTIONS, privacy])`."""


def core_sections() -> tuple[list[SectionMaker], list[SectionMaker]]:
    """Return (sections of results, sections that come below those of other packages)."""
    return [evaluation], list(SECTIONS[1:])


def render(folder: Path | str, sections: Sequence[SectionMaker] = SECTIONS) -> Path:
    """Write `folder`/report.html, complete or not at all.

    Each section is drawn from the records alone. A section that cannot be drawn, because a record is damaged, says so in its place.

    Args:
        folder: a run's folder.
        sections: functions from `Records` to a `Section`, or None where there is nothing to show; in the order of the page.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder holds no recipe.yaml, or cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "recipe.yaml").write_text("name: demo")
    >>> render(folder).name
    'report.html'
    """
    folder = Path(folder)
    records = Records.read(folder)
    made = [s for maker in sections if (s := _make(maker, records)) is not None]
    top = _make(_top, records) or Section("top", "", "")
    title = f"{records.name} · Tauon report"
    footer = f"Made by Tauon {escape(tauon.__version__)} from the records in this run's folder. This page loads nothing from the network."
    page = document(title, top.html, made, footer).encode("utf-8", "replace")
    while len(page) > MOST_BYTES and made:
        big = max(range(len(made)), key=lambda i: len(made[i].html))
        weight = f"{len(made[big].html) / 1e6:.1f} MB"
        note = f"Left out: its {weight} would make this page larger than {MOST_BYTES / 1e6:.0f} MB. The records are in the run's folder."
        if len(made[big].html) <= len(missing(note)):
            break
        made[big] = Section(made[big].identity, made[big].title, missing(note))
        page = document(title, top.html, made, footer).encode("utf-8", "replace")
    path = folder / "report.html"
    atomic_write(path, page)
    return path


def _top(records: Records) -> Section:
    return Section("top", "", headline(records))


def _make(maker: SectionMaker, records: Records) -> Section | None:
    try:
        return maker(records)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as err:
        name = getattr(maker, "__name__", "section")
        return Section(name, name.capitalize(), missing(f"This section could not be drawn from the records ({type(err).__name__}: {err})."))
