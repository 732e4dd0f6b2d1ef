"""`tauon runs list|compare`: list the runs of a folder, and compare two."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from tauon.cli.hints import with_root

__all__ = ["runs_command"]


@click.group("runs", context_settings={"help_option_names": ["-h", "--help"]})
def runs_command() -> None:
    """List runs; compare two."""


def _figure(folder: Path) -> tuple[str, str]:
    """Return (primary metric, its value with interval) of a run's evaluation."""
    from tauon.artifacts import read_json
    from tauon.evaluate import Evaluation

    path = folder / "evaluation.json"
    if (folder / "folds.json").exists():
        return _mean_figure(folder)
    if not path.exists():
        return "", ""
    result = Evaluation.from_json(read_json(path))
    m = result.metrics[result.primary]
    if m.value is None:
        return result.primary.replace("_", " "), "-"
    interval = f" ({m.low:.4f} to {m.high:.4f})" if m.low is not None and m.high is not None else ""
    return result.primary.replace("_", " "), f"{m.value:.4f}{interval}"


def _mean_figure(folder: Path) -> tuple[str, str]:
    """Return (primary metric, mean and standard deviation over the folds) of a cross-validation."""
    from tauon.artifacts import read_json
    from tauon.evaluate import Evaluation

    folds = read_json(folder / "folds.json")
    first = next(iter(sorted(folder.glob("fold-*/evaluation.json"))), None)
    name = Evaluation.from_json(read_json(first)).primary if first else next(iter(folds["mean"]), "")
    if name not in folds["mean"]:
        return name.replace("_", " "), "-"
    spread = f" (standard deviation {folds['std'][name]:.4f})" if name in folds["std"] else ""
    return name.replace("_", " "), f"{folds['mean'][name]:.4f}{spread}"


def _row(run: Any) -> dict[str, Any]:
    from tauon.artifacts import RunFolder, latest_checkpoint

    done = run.stage("train")
    newest = None if done else latest_checkpoint(run.checkpoints, verify=False)
    plan = (run.manifest().get("training") or {}).get("plan") or {}
    folds = sorted(run.folder.glob("fold-*/stages.json"))
    state = "trained" if done else f"step {newest.step:,} of {plan.get('steps', 0):,}" if newest else "not trained"
    if folds:
        trained = sum(RunFolder.read(path.parent).stage("train") is not None for path in folds)
        state = f"{trained} folds trained"
    metric, value = _figure(run.folder)
    when = (run.stage("evaluate") or done or run.stage("prepare") or {}).get("time", "")
    return {"run": run.name, "state": state, "metric": metric, "value": value, "time": when}


def _row_or_reason(run: Any) -> dict[str, Any]:
    """Return the row of a run, or of the error if its records are damaged, so that it does not hide the others."""
    from tauon.errors import TauonError

    try:
        return _row(run)
    except TauonError as err:
        return {"run": run.name, "state": f"unreadable: {err}", "metric": "", "value": "", "time": ""}


@runs_command.command("list")
@click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, for scripts.")
def list_command(root: Path, as_json: bool) -> None:
    """List every run in a folder with its progress and its main metric."""
    from tauon.artifacts import list_runs

    rows = [_row_or_reason(run) for run in list_runs(root)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    if not rows:
        click.echo(f"no run in {root}. Start one: {with_root('tauon run quickstart', root)}")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in listing(rows, width):
        click.echo(line)


def listing(rows: list[dict[str, str]], width: int | None) -> list[str]:
    """Format the rows as a table of at most `width` columns: the least important parts are dropped first, names are never cut."""
    from rich.cells import cell_len

    def table(rows: list[dict[str, str]]) -> list[str]:
        rows = [{k: k for k in rows[0]}, *rows]
        wide = {k: max(cell_len(row[k]) for row in rows) for k in rows[0]}
        return ["    ".join(v + " " * (wide[k] - cell_len(v)) for k, v in row.items()).rstrip() for row in rows]

    if width is None:
        return table(rows)
    levels = [rows]
    for less in (_short_times, _no_intervals, _no_times, _no_metrics):
        levels.append([less(row) for row in levels[-1]])
    for shape in (table, _stacked):
        for level in levels:
            lines = shape(level)
            if max(cell_len(line) for line in lines if shape is table or line.startswith(" ")) <= width:
                return lines
    return lines


def _stacked(rows: list[dict[str, str]]) -> list[str]:
    """Format each run on two lines, with the name alone on the first."""
    return [line for row in rows for line in (row["run"], "  " + "  ".join(v for k, v in row.items() if k != "run" and v))]


def _short_times(row: dict[str, str]) -> dict[str, str]:
    return row | {"time": row["time"][:16].replace("T", " ")}


def _no_intervals(row: dict[str, str]) -> dict[str, str]:
    return row | {"value": row["value"].partition(" (")[0]}


def _no_times(row: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in row.items() if k != "time"}


def _no_metrics(row: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in row.items() if k != "metric"}


@runs_command.command("compare")
@click.argument("first", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("second", type=click.Path(path_type=Path, exists=True, file_okay=False))
def compare_command(first: Path, second: Path) -> None:
    """Compare two runs: settings that differ, and each metric, with whether the intervals overlap."""
    from rich.console import Console
    from rich.table import Table

    from tauon.artifacts import read_json
    from tauon.cli.show import LOG_WIDTH
    from tauon.config import dump
    from tauon.evaluate import Evaluation, compare
    from tauon.recipe import differences, load_recipe

    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    one, two = ({k: v for k, v in dump(load_recipe(folder)).items() if k != "name"} for folder in (first, second))
    settings = differences(one, two)
    console.print("[bold]settings[/]" if settings else "the recipes are the same")
    for line in settings:
        console.print("  " + line, markup=False, soft_wrap=True)
    paths = [folder / "evaluation.json" for folder in (first, second)]
    missing = [str(p.parent) for p in paths if not p.exists()]
    if missing:
        commands = " && ".join(f"tauon evaluate {shlex.quote(folder)}" for folder in missing)
        console.print(f"not evaluated yet: {', '.join(missing)}. Evaluate: {commands}", markup=False, soft_wrap=True)
        return
    a, b = (Evaluation.from_json(read_json(p)) for p in paths)
    table = Table(box=None, padding=(0, 2))
    for head in ("metric", first.name, second.name, "difference", "intervals"):
        table.add_column(head, justify="left" if head in ("metric", "intervals") else "right")
    for d in compare(a, b):
        cells = [f"{v:.4f}" if v is not None else "-" for v in (d.a.value, d.b.value, d.difference)]
        overlap = "" if d.overlap is None else "overlap" if d.overlap else "apart"
        table.add_row(d.name.replace("_", " "), *cells, overlap)
    console.print(table)
