"""The quality stage: the records of the recipe's data -> `quality.json`. It looks at the data as it was read; nothing is changed or fitted."""

from __future__ import annotations

from typing import Any

from tauon.artifacts import write_json
from tauon.data.quality import QualityConfig, examine, view_of
from tauon.errors import Problem, RecipeError
from tauon.stages.context import Context

__all__ = ["RECORD", "quality_stage"]

RECORD = "quality.json"


def quality_stage(ctx: Context) -> dict[str, Any]:
    """Look at the data of the recipe. Rank 0 does; the others wait for it before they train."""
    config = ctx.section("quality", QualityConfig)
    if ctx.recipe.privacy is not None:
        message = "shows records of the data, and the records of a private run are protected. Remove it; `tauon data report` looks at the data without a run"
        raise RecipeError([Problem("quality", message)])

    if not ctx.world.leads:
        return {}

    def report(what: str, done: int, total: int) -> None:
        ctx.on_event("progress", what=what, done=done, total=total)

    view = view_of(ctx.recipe.data, input_kind=ctx.recipe.task.input_kind, seed=ctx.recipe.seed)
    quality = examine(view, config.checks, show_personal_data=config.show_personal_data, progress=report)
    write_json(ctx.run.folder / RECORD, quality.to_json())
    for finding in quality.findings:
        if finding.severity != "note":
            ctx.on_event("warning" if finding.severity == "bad" else "note", message=f"data quality: {finding.message}")
    return {"findings": {f.check: f.count for f in quality.findings}}
