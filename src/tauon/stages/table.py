"""The table of stages: what each stage reads and writes, and where its code is. Imports none of that code.

The table determines the order of work, the sections of a recipe that must be read, the verbs of the command line, the sections of the report
and the JSON Schema. Another package adds a stage with an entry point of the group `tauon.stages` that names a `Stage`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tauon.errors import MissingExtra, Problem, RecipeError
from tauon.stages.installed import may_be_installed

__all__ = [
    "BUILT_IN",
    "CORE",
    "FAILED_STAGES",
    "RESERVED",
    "Stage",
    "all_inputs",
    "check_names",
    "in_order",
    "leave_out",
    "load",
    "stage_table",
    "unknown_stage",
]


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Functions and types are named `package.module:name` and imported when they are used."""

    name: str
    """Also its verb: `tauon NAME`."""
    run: str
    """Function that takes the run's `Context` and returns JSON facts about its result."""
    help: str
    """One sentence, for `tauon --help`."""
    details: str = ""
    """Text of `tauon NAME --help`; default: `help`."""
    config: str = ""
    """Type of the recipe's section of this name. "": the stage has none, or it is one of the core's."""
    reads: tuple[str, ...] = ()
    """Sections of the recipe that its result depends on."""
    inputs: tuple[str, ...] = ()
    """Stages whose results it reads: if one changes, this stage is run again."""
    writes: tuple[str, ...] = ()
    """Files that it writes to the run's folder. If one is missing, the stage is run again."""
    collective: bool = False
    """Whether all processes of a launch take part; otherwise only rank 0 runs it."""
    from_records: bool = False
    """Whether it reads only records of the run, so that later changes of the data do not matter."""
    report: str = ""
    """Function that takes `Records` and returns its section of report.html, or None if it has nothing to show."""
    extra: str = ""
    """Optional dependencies that it needs: `pip install 'tauon[EXTRA]'`."""


CORE = ("prepare", "train", "evaluate", "report")
"""Default stages of `tauon run`. A stage with a section of its own is added if the recipe has that section."""

BUILT_IN = (
    Stage(
        "prepare", "tauon.stages.prepare:prepare_stage", "Read, clean and split the data.",
        reads=("data",), collective=True,
    ),
    Stage(
        "quality", "tauon.stages.quality:quality_stage", "Look at the data before training: leaks, copies, label errors, outliers, drift.",
        config="tauon.data.quality.config:QualityConfig", reads=("quality",), inputs=("prepare",), writes=("quality.json",), collective=True,
        report="tauon.report.quality:quality",
    ),
    Stage(
        "train", "tauon.stages.train:train_stage", "Prepare the data and train; resumes where it stopped.",
        reads=("data", "task", "model", "adapt", "optim", "train", "distil", "qat", "federate", "privacy", "parallel", "track"),
        inputs=("prepare",), collective=True,
    ),
    Stage(
        "evaluate", "tauon.stages.evaluate:evaluate_stage", "Evaluate a trained run; every metric has a confidence interval.",
        reads=("evaluate",), inputs=("train",), writes=("evaluation.json",), report="tauon.report.results:evaluation",
        details="Evaluate the trained model of RECIPE on the test set, or else on the validation set. Every metric has a 95% interval.",
    ),
    Stage(
        "federate", "tauon.stages.federate:federate_stage", "What each site gains by training together; simulated sites, or real ones.",
        config="tauon.federated.config:FederateConfig", reads=("federate",), inputs=("train",), writes=("federate.json",),
        report="tauon.federated.report:federation",
    ),
    Stage(
        "explain", "tauon.stages.explain:explain_stage", "Explain a trained model: what it looks at, and how far that may be believed.",
        config="tauon.explain.config:ExplainConfig", reads=("explain",), inputs=("train",),
        writes=("explain/explanation.json", "explain/maps.safetensors", "card.md"), report="tauon.explain.report:explanation",
    ),
    Stage(
        "audit", "tauon.stages.audit:audit_stage", "Attack a trained model to measure what it reveals about its training data.",
        config="tauon.privacy.audit.config:AuditConfig", reads=("audit",), inputs=("train",), writes=("audit.json",),
        report="tauon.privacy.audit.report:audit",
    ),
    Stage(
        "compress", "tauon.stages.compress:compress_stage", "Make a trained model smaller and faster within a promised loss of quality.",
        config="tauon.compress.config:CompressConfig", reads=("compress",), inputs=("train",), writes=("compress/compress.json",),
        report="tauon.compress.report:compression",
    ),
    Stage(
        "export", "tauon.stages.export:export_stage", "Write a trained model for other programs, each verified in its runtime.",
        config="tauon.export.config:ExportConfig", reads=("export",), inputs=("train",), writes=("export/export.json",),
        report="tauon.export.report:exports",
    ),
    Stage(
        "report", "tauon.stages.report:report_stage", "Write the report of a run, one HTML page.",
        inputs=("quality", "train", "evaluate", "federate", "explain", "audit", "compress", "export"), writes=("report.html",), from_records=True,
        details="Write report.html: data, curves, metrics, samples, recipe and environment on one page that works offline.",
    ),
)  # fmt: skip

GROUP = "tauon.stages"
"""Entry points of other packages' stages."""

FAILED_STAGES: dict[str, str] = {}
"""Installed package and stage -> why the stage could not be added."""

RESERVED = (
    *("name", "seed", "stages", "data", "task", "model", "adapt", "optim", "train", "distil", "qat", "privacy", "parallel", "launch"),
    *("evaluate", "track"),
    *(
        "run",
        "predict",
        "generate",
        "federate",
        "export",
        "adapter",
        "audit",
        "explain",
        "compress",
        "serve",
        "trace",
        "runs",
        "check",
        "tune",
        "recipe",
    ),
)
"""Sections of every recipe and verbs that are written by hand: names that a stage of another package cannot have."""


@cache
def stage_table() -> dict[str, Stage]:
    """Return every stage by name, in the order of work: inputs first, `report` last.

    A stage of another package that cannot be added is left out; `FAILED_STAGES` has the reason.
    """
    table = {stage.name: stage for stage in BUILT_IN}
    if not may_be_installed(GROUP):
        return _ordered(table)
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "?"
        try:
            stage = point.load()
            refuse_stage(stage, table)
        except Exception as err:  # code of another package can raise anything
            FAILED_STAGES[f"{package}: {point.name}"] = _failure(package, f"{point.name} = {point.value}", err)
            continue
        table[stage.name] = stage
    return _ordered(table)


def _ordered(table: dict[str, Stage]) -> dict[str, Stage]:
    """Return the stages in the order of work. The report reads the results of all others but `prepare`."""
    others = {name: stage for name, stage in table.items() if name != "report"}
    report = replace(table["report"], inputs=tuple(name for name in others if name != "prepare"))
    return {stage.name: stage for stage in in_order(others | {"report": report})}


def _failure(package: str, what: str, err: Exception) -> str:
    return (
        f"the stage {what} of the installed package {package!r} cannot be added to Tauon: {type(err).__name__}: {err}. "
        f"Update the package, or: pip uninstall {package}"
    )


def leave_out(stage: Stage, err: Exception) -> None:
    """Remove a stage of another package, whose section cannot be loaded, and the stages that read its results from the table."""
    package, table = stage.run.partition(".")[0], stage_table()
    FAILED_STAGES[f"{package}: {stage.name}"] = _failure(package, stage.config, err)
    gone = {stage.name, *(s.name for s in table.values() if s.name != "report" and stage.name in all_inputs(s))}
    for name in gone - {stage.name}:
        FAILED_STAGES[f"{package}: {name}"] = f"the stage {name!r} is not available, because it reads the results of stage {stage.name!r}"
    remaining = _ordered({name: s for name, s in table.items() if name not in gone})
    table.clear()
    table.update(remaining)


def refuse_stage(stage: Any, table: dict[str, Stage]) -> None:
    """Raise `ValueError` if a stage of another package cannot be added to the table."""
    if not isinstance(stage, Stage):
        raise ValueError(f"expected a tauon.stages.table.Stage, got {type(stage).__name__}")
    if stage.name in table:
        raise ValueError(f"a stage {stage.name!r} already exists ({table[stage.name].run})")
    if stage.name in RESERVED:
        raise ValueError(f"the name {stage.name!r} is reserved: it is a section of every recipe, or a verb")
    if stage.collective:
        raise ValueError(f"stage {stage.name!r} is collective; only prepare and train may be")
    if "report" in stage.inputs:
        raise ValueError(f"stage {stage.name!r} reads the report, which is written last")
    missing = [name for name in stage.inputs if name not in table and name != stage.name]
    if missing:
        raise ValueError(f"stage {stage.name!r} reads the results of {', '.join(map(repr, missing))}, which is not a stage")
    in_order(table | {stage.name: stage})


def in_order(table: dict[str, Stage]) -> list[Stage]:
    """Return the stages, each after its inputs, otherwise in the given order. `ValueError` names a cycle."""
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
    """Return the names of all stages that a stage depends on, directly or indirectly, in the order of work."""
    table, inputs = stage_table(), set()
    names = list(stage.inputs)
    while names:
        name = names.pop()
        if name not in inputs:
            inputs.add(name)
            names += table[name].inputs
    return [name for name in table if name in inputs]


def unknown_stage(name: str) -> str:
    """Return an error message if no stage has this name; "" if one has."""
    table = stage_table()
    if name in table:
        return ""
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    failed = "".join(f" {message}" for message in FAILED_STAGES.values())
    known = f"Available: {', '.join(table)}. A stage of another package is available once that package is installed."
    return f"no stage is called {name!r}{hint} {known}{failed}"


def check_names(names: Iterable[str]) -> None:
    """Raise `RecipeError` if a name is not a stage."""
    problems = [Problem("stages", message) for name in names if (message := unknown_stage(name))]
    if problems:
        raise RecipeError(problems)


def load(place: str, *, extra: str = "") -> Any:
    """Import what `package.module:name` names. `MissingExtra` if a library that belongs to `extra` is not installed."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as err:
        if not extra or (err.name or "").startswith("tauon"):
            raise
        raise MissingExtra(f"{module} ({err.name})", extra) from err
