"""A run and its data set's ledger: reserved before the first step, settled after the last.

A data set without a ledger is charged nothing, and the promise says so. A run that was killed keeps its reservation until it is resumed, or
settled by what it did (`tauon privacy settle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tauon.artifacts import Run, steps_in
from tauon.data import SourceConfig
from tauon.errors import Problem, RecipeError, RunError
from tauon.privacy.accounting import Release
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.ledger import Entry, Ledger, data_identity
from tauon.privacy.units import same_unit
from tauon.tracking import read_events

__all__ = ["first_steps", "reserve", "settle", "settle_run", "steps_done"]

NOTE = "privacy"
"""The manifest's section that says where a run has reserved."""
STEPPED = ("poisson", "fixed-size", "shuffled")


def reserve(run: Run, config: PrivacyConfig, source: SourceConfig, releases: list[Release], *, examples: int, unit: str) -> str:
    """Set aside what the run may tell; says how the data set stands. Once for a run, however often it is resumed.

    Raises:
        PrivacyError: over budget, with the arithmetic and what still fits.
        RecipeError: another budget than the ledger has.
        RunError: the data changed, or an earlier run of this name is not settled.
    """
    root, name = place_of(run)
    folder = Path(config.ledger) if config.ledger is not None else root / "ledger"
    ledger = Ledger(folder, data_identity(source))
    if config.budget is not None:
        ledger.open((config.budget.epsilon, config.budget.delta), examples=examples, unit=unit, accountant=config.accountant)
    elif not ledger.exists():
        return "none: the data set has no ledger, so that nothing counts what other runs on it tell (privacy.budget opens one)"
    counted = ledger.entries()[0].values["unit"]
    if not same_unit(counted, unit):
        message = (
            f"protects one {unit}, and this data set's budget is for one {counted} ({ledger.path}): one sum cannot count both. Take the unit "
            "of the budget, or a ledger of its own (privacy.ledger)."
        )
        raise RecipeError([Problem("privacy.unit", message)])
    before = run.manifest().get(NOTE) or {}
    mine = before.get("reservation") if before.get("data") == ledger.data else None
    plain = [r.to_json() for r in releases]
    paid = any(e.action == "settle" and e.values["of"] == mine and e.values["releases"] == plain for e in ledger.entries())
    if not paid:
        entry = ledger.reserve(name, releases, resumes=mine)
        run.update_manifest(**{NOTE: before | {"ledger": str(folder.resolve()), "data": ledger.data, "reservation": entry.number}})
    standing = ledger.standing()
    return f"epsilon {standing.reserved:.3g} of {standing.budget[0]:g} at delta {standing.budget[1]:g} with this run, ledger {ledger.data[:12]}"


def place_of(run: Run) -> tuple[Path, str]:
    """(folder of all runs, the run's name in it). A run that lies in another, a fold, is charged where that one would be."""
    root, name = run.folder.parent, run.folder.name
    while (root / run.recipe_path.name).is_file():
        root, name = root.parent, f"{root.name}/{name}"
    return root, name


def settle(run: Run, releases: list[Release]) -> None:
    """Replace the reservation by what was really told."""
    where = run.manifest().get(NOTE) or {}
    if "reservation" in where:
        Ledger(where["ledger"], where["data"]).settle(where["reservation"], releases)


def settle_run(folder: Path | str) -> tuple[Ledger, Entry, int]:
    """Settle what a run has reserved by the steps it made: (ledger, entry, steps). For runs that were killed, or given up.

    The run's manifest says, under `privacy`, where its reservation stands: `ledger` (folder), `data` (identity), `reservation` (number).

    Raises:
        RunError: a run that reserved nothing, or that left no trace of how far it came: then all stays charged.
    """
    run = Run.read(folder)
    where = run.manifest().get("privacy") or {}
    if not {"ledger", "data", "reservation"} <= set(where):
        raise RunError(f"{folder}: has reserved nothing in a ledger, so there is nothing to settle.")
    ledger = Ledger(where["ledger"], where["data"])
    made = next((e for e in ledger.entries() if e.number == where["reservation"] and e.action == "reserve"), None)
    if made is None:
        raise RunError(f"{ledger.path}: has no reservation {where['reservation']}, which {folder} says it made. Is it another ledger?")
    done = steps_done(folder)
    if done is None:
        raise RunError(
            f"{folder}: left neither events nor checkpoints, so nobody knows what it released. Its reservation stays charged in full."
        )
    return ledger, ledger.settle(made.number, first_steps(made.releases, done), note=f"stopped after {done} steps"), done


def first_steps(releases: Sequence[Release], done: int) -> list[Release]:
    """What a run that was stopped after `done` steps has released of its plan, `releases` being in the order of the steps. Answers that are
    no steps (full, known) stay charged; so does correlated noise, which is one release for all steps.
    """
    found: list[Release] = []
    for r in releases:
        if r.sampling not in STEPPED:
            found.append(r)
        elif r.sampling == "shuffled" and r.rate == 1 and r.count == 1:
            found += [r] if done else []
        elif done > 0:
            found.append(replace(r, count=min(done, r.count)))
            done -= r.count
    return found


def steps_done(folder: Path | str) -> int | None:
    """Steps that a run is known to have made, by its event log and its checkpoints; None where it left neither, so that nothing is known.

    Steps after the last event of a killed run left no trace outside its memory.
    """
    run = Run.read(folder)
    found = max((step for step, _ in steps_in(run.checkpoints)), default=None)
    if run.events_path.is_file():
        logged = [int(e["step"]) for e in read_events(run.events_path) if isinstance(e.get("step"), int)]
        found = max([*logged, *([found] if found is not None else [])], default=found)
    return found
