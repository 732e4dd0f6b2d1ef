"""`tauon check`: prove on a recipe that a layout computes what one process computes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tauon.cli.run import EPILOG, recipe_arguments
from tauon.cli.show import Show, pick_show

if TYPE_CHECKING:
    from tauon.recipe import Recipe

__all__ = ["check_command"]

ABOUT = """
\b
  tauon check quickstart --on local:2                          two replicas (DDP)
  tauon check quickstart --on local:2 parallel.tensor=2        each matrix on two processes
  tauon check big.yaml --on slurm:64                           the recipe's mesh, every dimension scaled down to 2, here
"""


@click.command("check", epilog=EPILOG + ABOUT)
@recipe_arguments
@click.option("--on", "on", metavar="PLACE", help="As in `tauon train`: what will be used. The check itself runs on this machine.")
@click.option("--steps", type=click.IntRange(1, 1000), default=3, show_default=True, help="Steps that both take.")
@click.option("--processes", type=click.IntRange(1, 64), help="Processes at most on this machine. Default: cores or GPUs, at least 2.")
@click.option("--reference", "saved", type=click.Path(path_type=Path), hidden=True)
def check_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, steps: int,
    processes: int | None, saved: Path | None,
) -> None:  # fmt: skip
    """Compare a layout with one process: losses, layer outputs, gradients, updates, each against what rounding explains.

    Ends with exit code 6, naming the first layer that is off, where they differ by more. Also prints what a step communicates.
    """
    from tauon.recipe import load_recipe

    tree = load_recipe(recipe, assignments, on=on)
    show = pick_show(quiet, as_json)
    with show:
        if saved is not None:
            take_part(tree, saved)
        else:
            check(tree, show, steps=steps, processes=processes, as_json=as_json)


def take_part(tree: Recipe, saved: Path) -> None:
    """One process of the layout."""
    from tauon.artifacts import write_json
    from tauon.distributed import join
    from tauon.stages.check import compare
    from tauon.stages.context import null_callback

    with join(tree.train.raw_value("device")) as world:
        findings, sent, layout = compare(tree, saved, world, on_event=null_callback)
        if world.leads:
            write_json(saved / "findings.json", {"findings": [f.to_json() for f in findings], "sent": sent, "layout": layout})


def check(tree: Recipe, show: Show, *, steps: int, processes: int | None, as_json: bool) -> None:
    from tauon.artifacts import read_json
    from tauon.config import parse
    from tauon.errors import TrainingError
    from tauon.launch import Job, LaunchConfig, WorkerFailed, launch
    from tauon.recipe import to_yaml
    from tauon.stages.check import Finding, first_divergent, reference, scaled_down

    wanted = tree.launch.raw_value("workers") if "workers" in type(tree.launch).model_fields else None
    tree, n, said = scaled_down(tree, wanted, processes or max(2, wanted or 0 if tree.launch.kind_ == "local" else 0, _here(tree)))
    local = parse(LaunchConfig, {"kind": "local", "workers": n, "max_restarts": 0})
    tree = tree.model_copy(update={"launch": local})
    if said:
        show.on_event("note", message=said)
    with tempfile.TemporaryDirectory(prefix="tauon-check-") as folder:
        show.on_event("note", message=f"one process, {steps} steps")
        reference(tree, Path(folder), steps=steps, processes=n, on_event=show.on_event)
        show.on_event("note", message=f"{n} processes, the same steps")
        job = Job(
            tree.name, "check", to_yaml(tree), Path(folder), ("--reference", folder, "--quiet"), device=tree.train.raw_value("device")
        )
        try:
            launch(local, job, on_event=show.on_event)
        except WorkerFailed as err:  # the log that it names goes with the folder
            raise WorkerFailed(str(err).partition("\n(its whole log:")[0], err.exit_code) from None
        found = read_json(Path(folder) / "findings.json")
    findings = [Finding(**{k: v for k, v in f.items() if k != "fine"}) for f in found["findings"]]
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_findings(show, findings, found["sent"], found["layout"])
    bad = first_divergent(findings)
    if bad is not None:
        raise TrainingError(
            f"{found['layout']} does not compute what one process computes. It begins at {bad.what} of {bad.name}: "
            f"off by {bad.relative:.2g} of its size, rounding explains {bad.allowed:.2g}."
        )
    if not as_json:
        click.echo(f"{found['layout']} computes what one process computes ({len(findings)} comparisons)")


def _here(tree: Recipe) -> int:
    """Processes that this machine has room for: one a GPU, or one a core, up to 8."""
    import os

    import torch

    if tree.train.raw_value("device") in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def print_findings(show: Show, findings: list[Any], sent: dict[str, int], layout: str) -> None:
    """A row for each kind of thing, and one for each that is off."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2))
    for head in (layout, "compared", "largest |delta|", "relative", "allowed", ""):
        table.add_column(head, justify="left" if head in (layout, "") else "right")
    for what in ("output", "loss", "gradient", "update"):
        these = [f for f in findings if f.what == what]
        if these:
            worst = max(these, key=lambda f: f.relative / f.allowed)
            row = (f"{max(f.absolute for f in these):.2g}", f"{worst.relative:.2g}", f"{worst.allowed:.2g}")
            table.add_row(
                "losses" if what == "loss" else f"{what}s",
                str(len(these)),
                *row,
                "[green]fine[/]" if worst.fine else f"[red]off[/]: {worst.name}",
            )
    show.console.print(table)
    off = [f for f in findings if not f.fine]
    for f in off[:12]:
        show.console.print(f"  {f.what} {f.name}: {f.relative:.2g}, allowed {f.allowed:.2g}")
    if len(off) > 12:
        show.console.print(f"  and {len(off) - 12} more")
    words = ", ".join(f"{kind} {size / 1e6:,.2f} MB" for kind, size in sorted(sent.items())) or "nothing"
    show.console.print(f"a step sends, from each process: {words}")
