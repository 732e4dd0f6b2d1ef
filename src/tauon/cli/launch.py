"""`--on PLACE` and `--dry-run` of `tauon run` and `tauon train`: the recipe's `launch` section, from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tauon.cli.show import Show
    from tauon.recipe import Recipe

__all__ = ["PLACES", "launch_elsewhere", "launch_options"]

PLACES = """
\b
PLACE: where the processes are started. The recipe's `launch` section has all settings, a.b=c changes one:
  here                       this process; the default
  local, local:4             this machine: all GPUs or cores, or 4 workers
  ray, ray:4                 Ray, started here for this run, or the cluster at launch.address=HOST:PORT
  k8s:16 launch.image=...    Kubernetes: launch.engine is trainjob, jobset or rayjob
  slurm:16                   sbatch; launch.partition=..., launch.time=8h, launch.gpus_per_node=8

\b
  tauon train quickstart --on local:2                    two processes, one run
  tauon train quickstart --on local:2 parallel.shard=2   weights and optimizer sharded over both (FSDP2); also tensor, context, pipeline
  tauon train quickstart --on slurm:8 --dry-run          print the script, submit nothing
  tauon train quickstart --on local:8 launch.max_restarts=10 launch.min_workers=6
"""


def launch_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add --on and --dry-run to a verb."""
    for wrap in (
        click.option("--dry-run", is_flag=True, help="Print what would be started or submitted, without starting it."),
        click.option("--on", "on", metavar="PLACE", help="Where to start the processes: see below. Default: the recipe's launch section."),
    ):
        verb = wrap(verb)
    return verb


def launch_elsewhere(
    tree: Recipe, verb: str, folder: Path, show: Show, *, options: tuple[str, ...], fresh: bool, dry_run: bool
) -> bool:  # fmt: skip
    """Start the recipe's processes as its `launch` section says. Return False if nothing is launched: `here`, or already a worker."""
    from tauon.artifacts import RunFolder
    from tauon.errors import RecipeError
    from tauon.launch import Here, Job, in_a_worker, launch
    from tauon.recipe import to_yaml
    from tauon.stages.extensions import set_aside

    config = tree.launch
    if in_a_worker() or (isinstance(config, Here) and not dry_run):
        return False
    if folder.name != tree.name and not isinstance(config, Here):
        raise RecipeError(
            f"{folder}: the folder's name is not a valid run name, which launch: {config.kind_} needs. "
            "Rename the folder: letters, digits, '.', '_' and '-', at most 100 characters."
        )
    job = Job(tree.name, verb, to_yaml(tree), folder.parent, options, device=tree.train.raw_value("device"))
    if fresh:
        if config.kind_ == "k8s":
            raise RecipeError("--fresh cannot rename a folder inside the cluster. Give this run another name (name=...).")
        if not dry_run and job.folder.exists():
            with RunFolder.open(job.folder) as record:  # once, not at every restart of the workers
                set_aside(record, show.on_event)
    text = launch(config, job, dry_run=dry_run, on_event=show.on_event)
    if dry_run:
        click.echo(text, nl=False)
    return True
