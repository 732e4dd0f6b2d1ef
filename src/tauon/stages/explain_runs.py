"""Opens trained runs to explain them outside of the stage, and compares two of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tauon.artifacts import RunFolder, atomic_write, write_json
from tauon.errors import DataError, RunError
from tauon.explain import ExplainConfig
from tauon.explain.compare import compare
from tauon.explain.report import comparison_page
from tauon.explain.rules import refuse_unused
from tauon.recipe import load_recipe
from tauon.stages.context import Context, EventCallback, null_callback
from tauon.stages.explain import subject_of

__all__ = ["compare_runs", "open_to_explain"]


_USED = frozenset({"sample", "examples", "checks", "maps", "split", "background"})
"""Settings that a comparison reads."""


def compare_runs(
    folder: Path, other: Path, assignments: Sequence[str], *, on_event: EventCallback = null_callback
) -> tuple[Path, list[str]]:  # fmt: skip
    """Compare the run in `folder` with an earlier one of the same data, and write `explain/against-OTHER.html`.

    Returns:
        The page, and sentences about what changed.

    Raises:
        DataError: the runs were trained on other data.
    """
    refuse_unused(assignments, _USED, "a comparison")
    ctx, config = open_to_explain(folder, assignments, on_event)
    earlier, _ = open_to_explain(other, assignments, on_event)
    if ctx.recipe.task.kind_ != earlier.recipe.task.kind_:
        raise DataError(f"{folder} has task {ctx.recipe.task.kind_}, {other} has {earlier.recipe.task.kind_}: they cannot be compared")
    after, before = subject_of(ctx, config), subject_of(earlier, config)
    if ctx.splits.fingerprint != earlier.splits.fingerprint:
        on_event("warning", message=f"{other} was prepared from other data or in another way; both models get the examples of {folder}")
    found = compare(
        before,
        after,
        sample=config.sample,
        explained=max(config.tested, config.examples, 4),
        shown=config.examples,
        maps=config.maps,
        seed=ctx.recipe.seed,
    )
    page = folder / "explain" / f"against-{re.sub(r'[^A-Za-z0-9._-]+', '-', earlier.recipe.name)[:60]}.html"
    page.parent.mkdir(exist_ok=True)
    write_json(page.with_suffix(".json"), found.record)
    atomic_write(page, comparison_page(earlier.recipe.name, ctx.recipe.name, found.record, found.arrays))
    return page, list(found.record["opening"])


def open_to_explain(folder: Path, assignments: Sequence[str], on_event: EventCallback) -> tuple[Context, ExplainConfig]:
    """Return the context of a trained run and its settings. `RunError` if the folder has no single model."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run: it has no recipe.yaml. `tauon runs list` shows the runs.")
    if (folder / "fold-0").is_dir():
        raise RunError(f"{folder} holds the folds of a cross-validation, each with a model of its own. Name one: {folder / 'fold-0'}")
    ctx = Context(load_recipe(folder, assignments), RunFolder.read(folder), on_event)
    ctx.refuse_changed_data()
    return ctx, ctx.section("explain", ExplainConfig)
