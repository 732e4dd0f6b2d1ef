"""`tauon privacy`: the ledger and remaining budget of a data set, the cost of privacy in accuracy, and an epsilon calculator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tauon.privacy.accounting import Guarantee, Release
    from tauon.privacy.ledger import Ledger

__all__ = ["privacy_command"]

FOLDER = click.Path(path_type=Path, file_okay=False)
RUNS = Path("runs")
PLACES = (
    "that of the run or recipe; else runs/ledger, if it has a ledger of this data set; else TAUON_LEDGER, or tauon/ledger in "
    "XDG_DATA_HOME (~/.local/share), shared by all your runs."
)
SAMPLING = click.Choice(["poisson", "shuffled", "fixed-size", "full"])
ACCOUNTANT = click.Choice(["pld", "rdp"])

ABOUT = """
\b
(epsilon, delta) is a guarantee: whatever is done with the results, one person's presence in the data changes the odds of any outcome
by at most a factor e^epsilon, except with probability delta. Epsilon 1 is strong, 8 common, above 20 weak. Delta must be below
1 / examples.

\b
  tauon privacy epsilon --noise 1.1 --batch 256 --examples 60000 --epochs 15 --delta 1e-5
  tauon privacy epsilon --target 3 --batch 1024 --examples 60000 --epochs 40 --delta 1e-5     noise for an epsilon
  tauon privacy ledger mnist-private       list the ledger of its data set
  tauon privacy remaining runs/mine        print the remaining budget
  tauon privacy spend runs/mine --epsilon 0.1 --delta 1e-8 --note "histogram of ages, for the board"
  tauon privacy settle runs/killed         charge a killed run for its steps
  tauon privacy cost runs/mine             train the same without privacy, compare

\b
DATASET is a recipe, the folder of a private run, or the first digits of the data set's identity.
"""


EXAMPLES = """
\b
  tauon privacy epsilon --noise 1.1 --rate 0.01 --steps 1000 --delta 1e-5 --delta 1e-6
  tauon privacy epsilon --target 3 --batch 512 --examples 60000 --epochs 20 --schedule linear
"""


@click.group("privacy", epilog=ABOUT, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 130})
def privacy_command() -> None:
    """Privacy budget of a data set: list, charge, what remains; epsilon of settings."""


def _dataset(verb: Any) -> Any:
    """Add the argument and options of verbs that look up a ledger."""
    for wrap in (
        click.argument("dataset"),
        click.option("--ledger", "folder", type=FOLDER, default=None, help=f"Folder of the ledgers. Default: {PLACES}"),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts."),
    ):
        verb = wrap(verb)
    return verb


def _find(dataset: str, folder: Path | None) -> Ledger:
    """Return the ledger that `dataset` names. `RecipeError` if there is none, or several."""
    import re

    from tauon.artifacts import RunFolder
    from tauon.errors import RecipeError
    from tauon.privacy.ledger import data_identity, find_ledgers, ledger_for, user_folder

    path = Path(dataset)
    if (path / "manifest.json").is_file():
        where = RunFolder.read(path).manifest().get("privacy") or {}
        if not {"ledger", "data"} <= set(where):
            raise RecipeError(
                f"{dataset} is a run without privacy or without a ledger. Give a private run, a recipe, or a data set's digits."
            )
        return ledger_for(where["data"], path.resolve().parent, said=folder, recorded=where["ledger"])[0]
    folders = [folder] if folder is not None else [user_folder(), RUNS / "ledger"]
    if re.fullmatch(r"[0-9a-f]{4,64}", dataset):
        matches = {x.data for f in folders for x in find_ledgers(f, dataset)}
        if len(matches) == 1 or len(dataset) == 64:
            return ledger_for(next(iter(matches), dataset), RUNS, said=folder)[0]
        if len(matches) > 1:
            raise RecipeError(
                f"{dataset} matches {len(matches)} data sets: {', '.join(x[:16] for x in sorted(matches))}. Give more digits."
            )
    from tauon.recipe import load_recipe

    try:
        recipe: Any = load_recipe(dataset)
    except RecipeError as err:
        places = " or ".join(str(f) for f in folders)
        raise RecipeError(f"{dataset!r} is not a recipe, not a private run, and not a data set in {places}: {err}") from None
    section = recipe.__dict__.get("privacy")
    configured = section.__dict__.get("ledger") if section is not None else None
    return ledger_for(data_identity(recipe.data.source), RUNS, said=folder or configured)[0]


@privacy_command.command("ledger")
@_dataset
def ledger_command(dataset: str, folder: Path | None, as_json: bool) -> None:
    """List every entry of a data set's ledger, oldest first, and verify its hash chain.

    The epsilon of an entry is for that entry alone. Composed, the entries cost less than their sum: see the last line.
    """
    from rich.console import Console
    from rich.table import Table

    ledger = _find(dataset, folder)
    entries = ledger.entries()
    if as_json:
        for e in entries:
            click.echo(json.dumps({"number": e.number, "time": e.time, "action": e.action, **e.values, "hash": e.hash}))
        return
    if not entries:
        click.echo(f"data set {ledger.data[:16]} has no ledger in {ledger.folder}: no private training has been charged to it.")
        return
    table = Table(box=None, padding=(0, 2))
    for head in ("entry", "time", "action", "kind", "who", "epsilon alone", "note"):
        table.add_column(head, justify="right" if head in ("entry", "epsilon alone") else "left")
    for e in entries:
        who = e.values.get("run") or e.values.get("name") or ""
        alone = f"{e.values['epsilon']:.4g}" if "epsilon" in e.values else ""
        note = f"settles {e.values['of']}; {e.values['note']}".rstrip("; ") if e.action == "settle" else e.values.get("note", "")
        table.add_row(str(e.number), e.time[:19], e.action, e.values.get("kind", ""), who, alone, note)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    _print_budget(ledger)


def _print_budget(ledger: Ledger) -> None:
    s = ledger.standing()
    click.echo(f"data set {ledger.data[:16]}: budget epsilon {s.budget[0]:g} at delta {s.budget[1]:g}; spent {s.spent:.4g}", nl=False)
    click.echo(f", {s.reserved:.4g} with {len(s.open)} open reservations" if s.open else "", nl=False)
    click.echo(f"; at least {s.left:.4g} remains (neighbours: {s.neighbouring})")


@privacy_command.command("remaining")
@_dataset
def remaining_command(dataset: str, folder: Path | None, as_json: bool) -> None:
    """Print what may still be spent on a data set: its budget minus the composition of everything spent or reserved.

    Another run may be able to spend a little more: its cost depends on how it composes with the others.
    """
    ledger = _find(dataset, folder)
    ledger.opening()
    s = ledger.standing()
    if as_json:
        values = {"data": ledger.data, "budget": {"epsilon": s.budget[0], "delta": s.budget[1]}, "spent": s.spent, "reserved": s.reserved}
        click.echo(json.dumps(values | {"left": s.left, "open": [e.number for e in s.open], "neighbouring": s.neighbouring}))
        return
    _print_budget(ledger)


@privacy_command.command("spend")
@_dataset
@click.option("--epsilon", type=click.FloatRange(min=0), default=None, help="Epsilon of the release, if only that is known.")
@click.option("--delta", type=click.FloatRange(min=0, max=1), default=0.0, show_default=True, help="Delta of the release.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Or: its noise multiplier (standard deviation / sensitivity).",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sampling rate: share of the data in a step.",
)
@click.option("--steps", type=click.IntRange(min=1), default=1, show_default=True, help="Number of steps, or of releases.")
@click.option("--sampling", type=SAMPLING, default="poisson", show_default=True, help="How the examples of a step were drawn.")
@click.option("--what", default="by hand", show_default=True, help="Who or what made the release.")
@click.option("--note", default="", help="Description, for the next reader.")
@click.option("--budget", nargs=2, type=float, default=None, help="EPSILON DELTA: budget of the data set, needed for its first entry.")
@click.option("--examples", type=click.IntRange(min=1), default=None, help="Number of people in the data set, with --budget.")
def spend_command(
    dataset: str, folder: Path | None, as_json: bool, epsilon: float | None, delta: float, noise: float | None, rate: float, steps: int,
    sampling: Any, what: str, note: str, budget: tuple[float, float] | None, examples: int | None,
) -> None:  # fmt: skip
    """Charge a release by hand: a published statistic, an analysis made elsewhere. If it exceeds the budget, it is
    refused with exit code 9 and nothing is written.

    Epsilon and delta must be valid for replacing one person's data by nothing, with the number of people public. A guarantee for
    replacing a person by any other is valid, too; so is one for adding or removing a person, if a person without data counts as absent.
    """
    from tauon.privacy.accounting import Release
    from tauon.privacy.ledger import Opening

    if (epsilon is None) == (noise is None):
        raise click.UsageError("give either --epsilon (with --delta), or --noise (with --rate, --steps)")
    if (budget is None) != (examples is None):
        raise click.UsageError("--budget and --examples go together: delta must be below 1 / examples")
    ledger = _find(dataset, folder)
    opening = Opening(budget, examples) if budget is not None and examples is not None else None
    if noise is not None:
        release = Release(noise, "full" if rate == 1 and sampling == "poisson" else sampling, rate, steps)
    else:
        release = Release(0.0, "known", count=steps, known=(epsilon or 0.0, delta))
    entry = ledger.spend([release], what=what, note=note, opening=opening)
    if as_json:
        click.echo(json.dumps({"number": entry.number, "epsilon": entry.values["epsilon"], "hash": entry.hash}))
        return
    click.echo(f"entry {entry.number}: epsilon {entry.values['epsilon']:.4g} alone")
    _print_budget(ledger)


@privacy_command.command("settle")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
def settle_command(run: Path) -> None:
    """Charge a killed run for the steps in its events and checkpoints, and release the rest of its reservation.

    The run's noise key is deleted, so that its noise cannot be removed: the run cannot resume, but its checkpoints stay. Do not settle
    a run that will resume: a run settles itself when it ends. A copy of a run is refused, a moved run is not.
    """
    from tauon.artifacts import RunFolder
    from tauon.privacy.charge import settle_run

    with RunFolder.open(run):  # locks it: no other process may work in it
        settled = settle_run(run)
    if settled is None:
        click.echo(f"{run.name}: no ledger has a charge for it; its noise key was deleted, so it cannot resume")
        return
    ledger, entry, done = settled
    click.echo(f"{run.name}: {done} steps, epsilon {entry.values['epsilon']:.4g} alone (entry {entry.number} of {ledger.path})")
    _print_budget(ledger)


@privacy_command.command("cost")
@click.argument("run")
@click.option("--root", type=FOLDER, default=Path("runs"), show_default=True, help="Folder of the runs, if RUN is a name.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, for scripts.")
def cost_command(run: str, root: Path, quiet: bool, as_json: bool) -> None:
    """Train the recipe of RUN without privacy in RUN/without-privacy, evaluate both, and compare them.

    Writes the figures to privacy_cost.json and the report. The second model is not private: do not share it. If stopped, the same
    command resumes.
    """
    from rich.table import Table

    from tauon.cli.show import pick_show
    from tauon.stages.privacy_cost import cost_of

    folder = Path(run) if (Path(run) / "recipe.yaml").is_file() else root / run
    show = pick_show(quiet, as_json)
    with show:
        cost = cost_of(folder, on_event=show.on_event)
        if as_json:
            show.on_event("cost", **cost)
    if as_json:
        return
    table = Table(box=None, padding=(0, 2))
    for head in ("metric", "private", "without privacy", "difference"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for name, pair in cost.items():
        shown = ["" if pair[k] is None else f"{pair[k]:.4f}" for k in ("private", "plain")]
        table.add_row(name.replace("_", " "), *shown, "" if pair["difference"] is None else f"{pair['difference']:+.4f}")
    show.console.print(table)


@privacy_command.command("epsilon", epilog=EXAMPLES)
@click.option(
    "--noise", type=click.FloatRange(min=0, min_open=True), default=None, help="Noise multiplier (standard deviation / clipping norm)."
)
@click.option(
    "--target",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Or: target epsilon; the noise multiplier for it is computed.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=None,
    help="Sampling rate: probability that an example is in a step.",
)
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Or: expected examples per step, with --examples.")
@click.option(
    "--examples", type=click.IntRange(min=1), default=None, help="Number of examples; delta is then checked against 1 / examples."
)
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Number of steps.")
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Or: passes over the data of 1 / rate steps each, rounded up as in training.",
)
@click.option("--delta", "deltas", type=float, multiple=True, help="Probability that the guarantee fails; may be repeated.")
@click.option("--sampling", type=SAMPLING, default="poisson", show_default=True, help="How the examples of a step are drawn.")
@click.option(
    "--schedule", default=None, help="How the noise changes during training: linear, cosine, '{kind: exponential, final: 0.5}', ..."
)
@click.option(
    "--accountant",
    type=ACCOUNTANT,
    default="pld",
    show_default=True,
    help="pld is tight; rdp is looser, and the only one for fixed-size sampling.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write the trade-off curve as an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def epsilon_command(
    noise: float | None, target: float | None, rate: float | None, batch: int | None, examples: int | None, steps: int | None,
    epochs: float | None, deltas: tuple[float, ...], sampling: Any, schedule: str | None, accountant: Any, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Compute epsilon from noise and steps; or, with --target, the noise for an epsilon. Reads no data and no ledger."""
    from tauon.config import parse, read_yaml
    from tauon.privacy.accounting import calibrate, guarantee
    from tauon.privacy.noise import NoiseConfig, NoisePlan
    from tauon.train import steps_for

    if (noise is None) == (target is None):
        raise click.UsageError("give either --noise or --target")
    if (rate is None) == (batch is None):
        raise click.UsageError("give either --rate, or --batch with --examples")
    if batch is not None and examples is None:
        raise click.UsageError("--batch needs --examples")
    if (steps is None) == (epochs is None):
        raise click.UsageError("give either --steps or --epochs")
    share = rate if rate is not None else (batch or 1) / (examples or 1)
    if batch is not None and examples is not None and epochs is not None:
        count = steps_for(epochs * examples, batch)
    else:
        count = steps if steps is not None else steps_for(epochs or 0, share)
    deltas = deltas or ((min(1e-5, 0.1 / examples),) if examples is not None else (1e-5,))
    config = parse(NoiseConfig, _with_kind(read_yaml(schedule))) if schedule else parse(NoiseConfig, {"kind": "constant"})

    def releases(z: float) -> list[Release]:
        return NoisePlan(config, z, count).releases(share, sampling)

    if target is not None:
        noise = calibrate(releases, target_epsilon=target, delta=deltas[0], accountant=accountant)
    assert noise is not None
    guarantees = [guarantee(releases(noise), d, accountant=accountant, examples=examples) for d in deltas]
    facts = {
        "noise multiplier": noise,
        "schedule": config.kind_,
        "sampling": sampling,
        "rate": share,
        "steps": count,
        "accountant": accountant,
    }
    if plot is not None:
        _write_curve(plot, guarantees[0], facts)
    if as_json:
        click.echo(
            json.dumps({k.replace(" ", "_"): v for k, v in facts.items()} | {"epsilons": [[g.delta, g.epsilon] for g in guarantees]})
        )
        return
    if target is not None:
        click.echo(f"noise multiplier {noise:.4f}   (privacy.noise_multiplier)")
    for g in guarantees:
        click.echo(f"epsilon {g.epsilon:.4f} at delta {g.delta:g}")
    neighbours = guarantees[0].neighbouring
    click.echo(f"{count:,} steps, {sampling} sampling at rate {share:.4g}; neighbours: {neighbours}; accountant: {accountant}")
    if plot is not None:
        click.echo(f"curve: {plot}")


def _write_curve(path: Path, guarantee: Guarantee, facts: dict[str, Any]) -> None:
    """Write the trade-off curve of a guarantee as an HTML page."""
    from tauon.artifacts import atomic_write
    from tauon.privacy.trade_off_page import trade_off_page

    epsilon = {"epsilon": guarantee.epsilon, "delta": guarantee.delta}
    page = trade_off_page(f"Privacy: {guarantee.sentence()}", guarantee.curve, facts | epsilon)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page)


def _with_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value
