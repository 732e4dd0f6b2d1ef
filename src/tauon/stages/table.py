"""The table of stages: what a run can do, what each stage reads, and where its parts are. Imports none of them.

From this table follow the order of work, which sections of a recipe must be read, the verbs of the command line, the parts of the report and
the JSON Schema. Another package adds a stage by an entry point of the group `tauon.stages` that names a `Stage`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tauon.errors import MissingExtra, Problem, RecipeError

__all__ = ["BUILT_IN", "CORE", "FAILED_STAGES", "Stage", "all_inputs", "check_names", "in_order", "load", "stage_table", "unknown_stage"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Places are written `package.module:name` and imported when they are used."""

    name: str
    """Also its verb: `tauon NAME`."""
    run: str
    """Place of a function of the run's `Context` that returns JSON facts about what it made."""
    help: str
    """One sentence, for `tauon --help`."""
    details: str = ""
    """What `tauon NAME --help` says; `help` where it is left out."""
    config: str = ""
    """Place of the type of the recipe's section of this name. "": the stage has none, or it is one of the core's."""
    reads: tuple[str, ...] = ()
    """Sections of the recipe that its result depends on."""
    inputs: tuple[str, ...] = ()
    """Stages whose results it reads: another result makes this stage not done."""
    writes: tuple[str, ...] = ()
    """Files in the run's folder that it leaves. One that is missing makes the stage not done."""
    collective: bool = False
    """Whether all processes of a launch take part. The others are rank 0's alone."""
    from_records: bool = False
    """Whether it reads records of the run alone, so that data that changed since does not matter."""
    report: str = ""
    """Place of a function from `Records` to its section of report.html, or None where it has nothing to show."""
    extra: str = ""
    """The extra of the package that it needs: `pip install 'tauon[EXTRA]'`."""


CORE = ("prepare", "train", "evaluate", "report")
"""What `tauon run` does where the recipe does not say. A stage with a section of its own joins where the section is given."""

BUILT_IN = (
    Stage(
        "prepare", "tauon.stages.prepare:prepare_stage", "Read, clean and split the data.",
        reads=("data",), collective=True,
    ),
    Stage(
        "train", "tauon.stages.train:train_stage", "Prepare the data and train; goes on where it stopped.",
        reads=("data", "task", "model", "adapt", "optim", "train", "privacy", "parallel", "track"), inputs=("prepare",), collective=True,
    ),
    Stage(
        "evaluate", "tauon.stages.evaluate:evaluate_stage", "Measure a trained run, every figure with its interval.",
        reads=("evaluate",), inputs=("train",), writes=("evaluation.json",), report="tauon.report.results:evaluation",
        details="Measure what RECIPE trained: every figure with a 95% interval, on the test part of the data, or on validation.",
    ),
    Stage(
        "audit", "tauon.stages.audit:audit_stage", "Attack a trained run: what its model tells of its data, beside what was promised.",
        config="tauon.privacy.audit.config:AuditConfig", reads=("audit",), inputs=("train",), writes=("audit.json",),
        report="tauon.privacy.audit.report:audit",
    ),
    Stage(
        "report", "tauon.stages.report:report_stage", "Write the run's report, one HTML page.",
        inputs=("train", "evaluate", "audit"), writes=("report.html",), from_records=True,
        details="Write report.html: data, curves, figures, samples, recipe, environment, on one page that needs no network.",
    ),
)  # fmt: skip

FAILED_STAGES: dict[str, str] = {}
"""Installed packages whose stages could not be added, and why."""


@cache
def stage_table() -> dict[str, Stage]:
    """Every stage by name, in the order of work: inputs first, `report` last. A stage from another package that cannot be added is left out,
    and `FAILED_STAGES` says why.
    """
    from importlib.metadata import entry_points

    table = {stage.name: stage for stage in BUILT_IN}
    for point in entry_points(group="tauon.stages"):
        package = point.dist.name if point.dist else "?"
        try:
            stage = point.load()
            refuse_stage(stage, table)
        except Exception as err:  # another's code: anything may be wrong with it
            FAILED_STAGES[package] = _failure(package, f"{point.name} = {point.value}", err)
            continue
        table[stage.name] = stage
    report = table.pop("report")
    table["report"] = replace(report, inputs=tuple(name for name in table if name != "prepare"))
    return {stage.name: stage for stage in in_order(table)}


def _failure(package: str, what: str, err: Exception) -> str:
    return (
        f"the installed package {package!r} announces a stage for Tauon ({what}) that cannot be added: {type(err).__name__}: {err}. Update it, "
        f"or: pip uninstall {package}"
    )


def leave_out(stage: Stage, err: Exception) -> None:
    """Take a stage of another package out of the table: its section cannot be loaded."""
    package = stage.run.partition(".")[0]
    FAILED_STAGES[package] = _failure(package, stage.config, err)
    del stage_table()[stage.name]


def refuse_stage(stage: Any, table: dict[str, Stage]) -> None:
    """Raise `ValueError` where a stage from another package cannot join the table."""
    if not isinstance(stage, Stage):
        raise ValueError(f"expected a tauon.stages.table.Stage, got {type(stage).__name__}")
    if stage.name in table:
        raise ValueError(f"a stage {stage.name!r} is there already ({table[stage.name].run})")
    if stage.collective:
        raise ValueError(f"stage {stage.name!r} is collective, which only preparing and training are")
    if "report" in stage.inputs:
        raise ValueError(f"stage {stage.name!r} reads the report, which is written last")
    missing = [name for name in stage.inputs if name not in table and name != stage.name]
    if missing:
        raise ValueError(f"stage {stage.name!r} reads the results of {', '.join(map(repr, missing))}, and there is no such stage")
    in_order(table | {stage.name: stage})


def in_order(table: dict[str, Stage]) -> list[Stage]:
    """The stages, each after its inputs, otherwise as they stand. `ValueError` names a cycle."""
    done: list[Stage] = []
    path: list[str] = []

    def visit(stage: Stage) -> None:
        if stage in done:
            return
        if stage.name in path:
            raise ValueError(f"the inputs of stages form a cycle: {' -> '.join([*path[path.index(stage.name) :], stage.name])}")
        path.append(stage.name)
        for name in stage.inputs:
            if name in table:
                visit(table[name])
        path.pop()
        done.append(stage)

    for stage in table.values():
        visit(stage)
    return done


def all_inputs(stage: Stage) -> list[str]:
    """Names of the stages that a stage depends on, directly or through others, in the order of work."""
    table, found = stage_table(), set()
    names = list(stage.inputs)
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            names += table[name].inputs
    return [name for name in table if name in found]


def unknown_stage(name: str) -> str:
    """What is wrong with a name of a stage, and the way out; "" where there is such a stage."""
    table = stage_table()
    if name in table:
        return ""
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    failed = "".join(f" {message}" for message in FAILED_STAGES.values())
    there = f"There are: {', '.join(table)}. A stage of another package is there once that package is installed."
    return f"no stage is called {name!r}{hint} {there}{failed}"


def check_names(names: Iterable[str]) -> None:
    """`RecipeError` where a stage is asked for that is not there."""
    problems = [Problem("stages", message) for name in names if (message := unknown_stage(name))]
    if problems:
        raise RecipeError(problems)


def load(place: str, *, extra: str = "") -> Any:
    """Import what `package.module:name` names. `MissingExtra` where a library that belongs to `extra` is not installed."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as err:
        if not extra or (err.name or "").startswith("tauon"):
            raise
        raise MissingExtra(f"{module} ({err.name})", extra) from err
