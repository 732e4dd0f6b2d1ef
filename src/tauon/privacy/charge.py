"""A run and its data set's ledger: reserved before the first step, settled after the last.

A data set without a ledger is charged nothing, and the promise says so. A run that was killed keeps its reservation until it is resumed, or
settled by what it did (`tauon privacy settle`).
"""

from __future__ import annotations

from pathlib import Path

from tauon.artifacts import Run
from tauon.data import SourceConfig
from tauon.privacy.accounting import Release
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.ledger import Ledger, data_identity

__all__ = ["reserve", "settle"]

NOTE = "privacy"
"""The manifest's section that says where a run has reserved."""


def reserve(run: Run, config: PrivacyConfig, source: SourceConfig, releases: list[Release], *, examples: int, unit: str) -> str:
    """Set aside what the run may tell; says how the data set stands. Once for a run, however often it is resumed.

    Raises:
        RecipeError: over budget, with the arithmetic; another budget than the ledger has.
        RunError: the data changed, or an earlier run of this name is not settled.
    """
    root, name = place_of(run)
    folder = Path(config.ledger) if config.ledger is not None else root / "ledger"
    ledger = Ledger(folder, data_identity(source))
    if config.budget is not None:
        ledger.open((config.budget.epsilon, config.budget.delta), examples=examples, unit=unit, accountant=config.accountant)
    elif not ledger.exists():
        return "none: the data set has no ledger, so that nothing counts what other runs on it tell (privacy.budget opens one)"
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
