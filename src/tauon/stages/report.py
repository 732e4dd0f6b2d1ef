"""The report stage: records -> `report.html`, with a section for each stage and extension that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.report import SectionMaker, core_sections, render
from tauon.stages.context import Context, EventCallback
from tauon.stages.extensions import REPORT_SECTIONS
from tauon.stages.table import load, stage_table

__all__ = ["report_sections", "report_stage", "write_report"]


def report_stage(ctx: Context) -> dict[str, Any]:
    """Write the report of this run."""
    return write_report(ctx.run.folder, ctx.on_event)


def write_report(folder: Path, on_event: EventCallback) -> dict[str, Any]:
    """Write `folder`/report.html from the records in the folder."""
    path = render(folder, report_sections())
    on_event("report", path=str(path))
    return {"path": path.name}


def report_sections() -> list[SectionMaker]:
    """Return the sections from top to bottom: results, privacy, further stages, then training, data and provenance."""
    first, rest = core_sections()
    stages = [load(stage.report, extra=stage.extra) for stage in stage_table().values() if stage.report]
    others = [load(place) for place in REPORT_SECTIONS]
    results = [s for s in stages if s in first]
    return [*results, *others, *(s for s in stages if s not in first), *rest]
