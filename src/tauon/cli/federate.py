"""`tauon federate`: training at sites that keep their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.run import Request, fresh_option, recipe_arguments, run_verb
from tauon.cli.show import pick_show

__all__ = ["federate_command"]

EPILOG = """\b
Examples:
  tauon federate mnist-mlp --simulate 3 --rounds 10                       three sites with equal parts of the data
  tauon federate mnist-mlp --simulate 5 federate.simulate.split.kind=dirichlet federate.simulate.split.alpha=0.5
  tauon federate mnist-mlp --simulate 5 federate.strategy=fedprox

\b
Each site trains on its own examples (train.epochs is the work of one round, one pass by default), and only changes of the weights are combined.
The report says what that gained each site over training alone, and what it lost against all data in one place. The result is a run like any
other: tauon evaluate, explain, compress, export and serve work on it. Settings are those of the recipe's section `federate` (docs: Federated
training).
"""

DEFAULTS = {"rounds": "10", "epochs": "1", "sites": "3"}
"""Where neither the recipe nor the command says otherwise."""


@click.command("federate", epilog=EPILOG)
@recipe_arguments
@click.option("--simulate", type=click.IntRange(1), help="Number of sites to simulate on this machine. Default: those of the recipe, or 3.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds. Default: those of the recipe, or 10.")
@fresh_option
def federate_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, simulate: int | None, rounds: int | None,
    fresh: bool,
) -> None:  # fmt: skip
    """Train the model of RECIPE at sites that keep their data, and compare it with each site alone and with all data in one place."""
    given = [*_defaults(recipe, assignments), *assignments]
    given += [f"federate.simulate.sites={simulate}"] if simulate is not None else []
    given += [f"federate.rounds={rounds}"] if rounds is not None else []
    run_verb(Request(recipe, tuple(given), root, fresh), pick_show(quiet, as_json), verb="federate", stages=None)


def _defaults(recipe: str, assignments: tuple[str, ...]) -> list[str]:
    """Return a name, three simulated sites, rounds, and one pass a round, for a recipe that is not federated."""
    from tauon.recipe import load_recipe

    tree: Any = load_recipe(recipe, [a for a in assignments if not a.startswith("federate.")])
    if getattr(tree, "federate", None) is not None:
        return []
    found = [] if any(a.startswith("federate.rounds=") for a in assignments) else [f"federate.rounds={DEFAULTS['rounds']}"]
    if not any(a.startswith("federate.simulate") for a in assignments):
        found.append(f"federate.simulate.sites={DEFAULTS['sites']}")
    if not any(a.startswith("name=") for a in assignments):
        found.append(f"name={tree.name}-federated")  # not the run of one place
    lengths = ("steps", "epochs", "tokens", "time")
    if any(a.startswith(tuple(f"train.{name}=" for name in lengths)) for a in assignments):
        return found
    return [*found, *(f"train.{name}=null" for name in lengths if name != "epochs"), f"train.epochs={DEFAULTS['epochs']}"]
