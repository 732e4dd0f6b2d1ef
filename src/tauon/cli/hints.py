"""Hints after a verb: commands to try next, which work as printed, with paths quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tauon.artifacts import RunFolder
    from tauon.recipe import Recipe

__all__ = ["next_steps", "shown_path", "with_root"]


def shown_path(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it, quoted for a shell."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def with_root(command: str, root: Path) -> str:
    """Return the command, with --root if the runs are not in ./runs."""
    return command if root.absolute() == Path("runs").absolute() else f"{command} --root {shown_path(root.absolute())}"


def next_steps(run: RunFolder, *, trained: bool, whole: bool) -> Iterator[tuple[str, str]]:
    """Yield (command, what it does) after a verb. `trained`: the verb trained; `whole`: it ran all stages of the recipe."""
    from tauon.recipe import load_recipe

    recipe, folder = load_recipe(run.folder), shown_path(run.folder)
    if has_real_sites(recipe):  # only `tauon federate serve` and `join` train it
        if recipe.data.raw_value("rows") and not (run.folder / "evaluation.json").exists():
            yield f"tauon evaluate {folder}", "evaluate it"
    elif whole:
        yield f"tauon run {folder}", "run it again: stages that are done are skipped"
        longer = longer_training(recipe)
        if longer and not is_private(recipe):  # a second private run would be charged to the data set
            yield (
                f"tauon run {folder} name={free_name(run)} {longer}",
                "change a setting: here train twice as long; also optim.lr, model.layers",
            )
    elif trained and not (run.folder / "fold-0").is_dir():
        yield f"tauon evaluate {folder}", "evaluate it"
    if not whole and not trained and not run.report_path.exists():
        yield f"tauon report {folder}", "write the report"
    if recipe.task.input_kind == "tokens" and run.stage("train") is not None:
        prompt = next((p for p in recipe.evaluate.prompts if p.strip() and p.isprintable()), None)
        yield f"tauon generate {folder}" + (f" --prompt {shlex.quote(prompt)}" if prompt else ""), "generate text"
    yield with_root("tauon runs list", run.folder.parent), "list the runs"


def has_real_sites(recipe: Recipe) -> bool:
    """Return whether a run was trained at the sites of a federation that are not simulated."""
    federate = recipe.__dict__.get("federate")
    return federate is not None and federate.raw_value("simulate") is None


def is_private(recipe: Recipe) -> bool:
    """Return whether a training is charged to a privacy budget."""
    federate = recipe.__dict__.get("federate")
    return recipe.privacy is not None or (federate is not None and federate.raw_value("privacy") is not None)


def longer_training(recipe: Recipe) -> str:
    """Return the assignment that doubles the training; "" if the recipe sets no length that can be doubled."""
    train, federate = recipe.train, recipe.__dict__.get("federate")
    if federate is not None:
        return f"federate.rounds={2 * federate.raw_value('rounds')}"
    for name, value in (("steps", train.raw_value("steps")), ("epochs", train.raw_value("epochs")), ("tokens", train.raw_value("tokens"))):
        if value is not None:
            return f"train.{name}={2 * value:g}" if isinstance(value, float) else f"train.{name}={2 * value}"
    return f"train.time={2 * train.raw_value('time'):g}s" if train.raw_value("time") is not None else ""


def free_name(run: RunFolder) -> str:
    """Return a name that no other run in the same folder has."""
    number, name = 1, "longer"
    while (run.folder.parent / name).exists():
        number += 1
        name = f"longer-{number}"
    return name
