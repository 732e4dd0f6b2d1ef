"""`tauon check`: compare a parallel layout with one process, on a recipe."""

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
@click.option(
    "--on", "on", metavar="PLACE", help="Where the training will run, as in `tauon train`. The check itself runs on this machine."
)
@click.option("--steps", type=click.IntRange(1, 1000), default=3, show_default=True, help="Number of steps to compare.")
@click.option(
    "--processes", type=click.IntRange(1, 64), help="Most processes to start on this machine. Default: cores or GPUs, at least 2."
)
@click.option("--reference", "saved", type=click.Path(path_type=Path), hidden=True)
def check_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, steps: int,
    processes: int | None, saved: Path | None,
) -> None:  # fmt: skip
    """Take the same steps on one process and on a parallel layout; compare losses, layer outputs, gradients and updates.

    If they differ by more than rounding explains, the first layer that differs is named and the exit code is 6. Also prints
    the bytes that a step communicates.
    """
    from tauon.recipe import load_recipe

    tree = load_recipe(recipe, assignments, on=on)
    show = pick_show(quiet, as_json)
    with show:
        if saved is not None:
            compare_as_worker(tree, saved)
        else:
            check(tree, show, steps=steps, processes=processes, as_json=as_json)


def compare_as_worker(tree: Recipe, saved: Path) -> None:
    """Do the part of one process of the layout; rank 0 writes the findings."""
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
    most = processes or max(2, wanted or 0 if tree.launch.kind_ == "local" else 0, _local_processes(tree))
    tree, n, note = scaled_down(tree, wanted, most)
    local = parse(LaunchConfig, {"kind": "local", "workers": n, "max_restarts": 0})
    tree = tree.model_copy(update={"launch": local})
    if note:
        show.on_event("note", message=note)
    with tempfile.TemporaryDirectory(prefix="tauon-check-") as folder:
        show.on_event("note", message=f"one process, {steps} steps")
        reference(tree, Path(folder), steps=steps, processes=n, on_event=show.on_event)
        show.on_event("note", message=f"{n} processes, the same steps")
        job = Job(
            tree.name, "check", to_yaml(tree), Path(folder), ("--reference", folder, "--quiet"), device=tree.train.raw_value("device")
        )
        try:
            launch(local, job, on_event=show.on_event)
        except WorkerFailed as err:  # the log file that it names is deleted with the folder
            raise WorkerFailed(str(err).partition("\n(its whole log:")[0], err.exit_code) from None
        result = read_json(Path(folder) / "findings.json")
    findings = [Finding(**{k: v for k, v in f.items() if k != "fine"}) for f in result["findings"]]
    if as_json:
        click.echo(json.dumps(result))
    else:
        print_findings(show, findings, result["sent"], result["layout"])
    bad = first_divergent(findings)
    if bad is not None:
        raise TrainingError(
            f"{result['layout']} does not compute the same as one process. First difference: {bad.what} of {bad.name}, relative error "
            f"{bad.relative:.2g}, of which rounding explains {bad.allowed:.2g}. Do not train with this layout; choose another `parallel`."
        )
    if not as_json:
        click.echo(f"{result['layout']} computes the same as one process ({len(findings)} comparisons)")


def _local_processes(tree: Recipe) -> int:
    """Processes to start on this machine: one per GPU, or one per core up to 8."""
    import os

    import torch

    if tree.train.raw_value("device") in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def print_findings(show: Show, findings: list[Any], sent: dict[str, int], layout: str) -> None:
    """Print a row for each kind of tensor, and a line for each tensor that differs."""
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
                "[green]fine[/]" if worst.fine else f"[red]differs[/]: {worst.name}",
            )
    show.console.print(table)
    differing = [f for f in findings if not f.fine]
    for f in differing[:12]:
        show.console.print(f"  {f.what} {f.name}: {f.relative:.2g}, allowed {f.allowed:.2g}")
    if len(differing) > 12:
        show.console.print(f"  and {len(differing) - 12} more")
    sizes = ", ".join(f"{kind} {size / 1e6:,.2f} MB" for kind, size in sorted(sent.items())) or "nothing"
    show.console.print(f"each process sends per step: {sizes}")
