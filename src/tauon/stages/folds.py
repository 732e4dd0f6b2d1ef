"""k-fold cross-validation: one run per fold inside the run's folder, and their metrics together.

`data.split.folds: 5` trains five times, each with another fifth as the test set; `folds.json` has the metrics of each fold,
their mean and their standard deviation. Each fold is a complete run that can be opened, resumed and reported separately.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tauon.artifacts import RunFolder, atomic_write, read_json, write_json
from tauon.recipe import Recipe, to_yaml
from tauon.stages.context import Context, EventCallback
from tauon.stages.evaluate import evaluation_of
from tauon.stages.extensions import set_aside
from tauon.stages.report import write_report

__all__ = ["run_folds"]

PRIVACY = "privacy.json"


def one_fold(recipe: Recipe, fold: int) -> Recipe:
    """Return the recipe of one fold."""
    split = recipe.data.split.model_copy(update={"fold": fold})
    return recipe.model_copy(update={"name": f"fold-{fold}", "data": recipe.data.model_copy(update={"split": split})})


def run_folds(
    recipe: Recipe, folder: Path, *, stages: tuple[str, ...], fresh: bool, on_event: EventCallback, run_child: Callable[..., RunFolder]
) -> RunFolder:
    """Run every fold, then combine their metrics. The same call again resumes unfinished folds. `run_child` runs one recipe."""
    folds = recipe.data.split.folds
    assert folds is not None
    with RunFolder.open(folder) as record:
        if fresh and record.recipe_path.exists():
            set_aside(record, on_event)
        each = [one_fold(recipe, fold) for fold in range(folds)]
        Context(recipe, record, on_event).refuse_another_recipe()
        for one in each:
            if (record.folder / one.name / "recipe.yaml").is_file():
                Context(one, RunFolder.read(record.folder / one.name), on_event).refuse_another_recipe()
        atomic_write(record.recipe_path, to_yaml(recipe))
        done = []
        for fold, one in enumerate(each):
            on_event("note", message=f"fold {fold + 1} of {folds}")
            done.append(run_child(one, record.folder / one.name, stages=stages, on_event=on_event))
        results = [(fold, evaluation_of(r.folder)) for fold, r in enumerate(done)]
        figures = [(fold, {k: m.value for k, m in e.metrics.items()}) for fold, e in results if e is not None]
        if figures:
            names = list(figures[0][1])
            columns = {name: [v for _, f in figures if (v := f.get(name)) is not None] for name in names}
            mean = {k: math.fsum(v) / len(v) for k, v in columns.items() if v}
            std = {k: math.sqrt(math.fsum((x - mean[k]) ** 2 for x in v) / (len(v) - 1)) for k, v in columns.items() if len(v) > 1}
            write_json(record.folder / "folds.json", {"folds": [{"fold": f, "metrics": m} for f, m in figures], "mean": mean, "std": std})
            on_event("folds", mean=mean, std=std, folds=len(figures))
        if recipe.privacy is not None and all((r.folder / PRIVACY).is_file() for r in done):
            write_json(record.folder / PRIVACY, promise_of_folds(record.folder, [r.folder for r in done]))
        if "report" in stages:
            write_report(record.folder, on_event)
    return record


def promise_of_folds(folder: Path, folds: list[Path]) -> dict[str, Any]:
    """Return `privacy.json` for private folds: the weakest guarantee among them, with a note that it covers each fold separately."""
    records = [read_json(f / PRIVACY) for f in folds]
    worst = max(records, key=lambda r: float(r["guarantee"]["epsilon"]))
    limit = (
        f"Each of the {len(records)} folds separately has this guarantee. Each example trains {len(records) - 1} of them: anyone who sees "
        "several models can combine what they reveal."
    )
    promise = worst["guarantee"] | {"not_covered": [limit, *worst["guarantee"]["not_covered"]]}
    before = read_json(folder / PRIVACY) if (folder / PRIVACY).is_file() else {}
    return {k: v for k, v in worst.items() if k != "cost"} | {"guarantee": promise} | {k: v for k, v in before.items() if k == "cost"}
