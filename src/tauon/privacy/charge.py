"""A run and its data set's ledger: reserved before the first step, settled after the last, once, whatever kills the run in between.

The order, and what each step may rely on after a kill (the same command then goes on from there):

    key          `privacy.key`, new; or the run's own, which says what it is for
    bound        the key says which training it is for, before anything is drawn from it that stays
    intent       the manifest names the ledger and the key's hash
    reserve      the ledger names the key's hash and the training: found there, if the manifest does not name the number yet
    number       the manifest names the reservation
    statistics, steps, checkpoints
    settle       in the ledger; again, it is nothing
    key thrown away
    stage done   a run whose last step is there needs no key to come to this

A data set without a ledger is charged nothing, and the promise says so. A run that was killed keeps its reservation until it is resumed, or
settled by what it did (`tauon privacy settle`, `--fresh`); then its key goes, so that it is never resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tauon.artifacts import Run, erase, steps_in
from tauon.data import SourceConfig
from tauon.errors import Problem, RecipeError, RunError, TauonError
from tauon.privacy.accounting import Release
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.fitting import total_epsilon
from tauon.privacy.keys import NAME as KEY
from tauon.privacy.keys import discard_key, read_key
from tauon.privacy.ledger import SEEDED, Entry, Ledger, Opening, Owner, data_identity, ledger_for, settlement
from tauon.privacy.units import same_unit
from tauon.tracking import read_events

__all__ = ["first_steps", "give_up", "original_of", "reserve", "settle", "settle_run", "steps_done"]

NOTE = "privacy"
"""The manifest's section that says where a run has reserved: ledger (folder), data (identity), key (hash), reservation (number)."""
STEPPED = ("poisson", "fixed-size", "shuffled")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Account:
    """A run's place in a ledger."""

    ledger: Ledger
    entries: list[Entry]
    made: Entry
    """The run's reservation: the open one, or else the last."""
    settled: Entry | None

    @classmethod
    def of(cls, run: Run) -> Account | None:
        """What the run has reserved, by its manifest and its key; None where it has not."""
        where = run.manifest().get(NOTE) or {}
        if not {"ledger", "data"} <= set(where):
            return None
        root, _ = place_of(run)
        ledger = Ledger(where["ledger"], where["data"])
        if not ledger.exists():
            ledger, _ = ledger_for(where["data"], root)
        entries = ledger.entries()
        own = [e for e in entries if e.action == "reserve" and _is_of(e, where, os.path.realpath(run.folder))]
        if not own:
            return None
        waiting = [e for e in own if settlement(entries, e.number) is None]
        made = (waiting or own)[-1]
        return cls(ledger, entries, made, settlement(entries, made.number))


def _is_of(made: Entry, where: Mapping[str, Any], place: str) -> bool:
    """Whether a reservation is of the run whose manifest says `where`."""
    key = made.values.get("key")
    if key in (None, SEEDED):
        return made.number == where.get("reservation") or (key == SEEDED == where.get("key") and made.values["place"] == place)
    return bool(key == where.get("key"))


# ------------------------------------------------------------------------------------------------ before the first step


def reserve(
    run: Run, config: PrivacyConfig, source: SourceConfig, releases: list[Release], *, examples: int, unit: str, owner: Owner,
    on_note: Tell = lambda said: None,
) -> str:  # fmt: skip
    """Set aside what the run may tell; says how the data set stands. Once for a run, however often it is resumed.

    Raises:
        PrivacyError: over budget, with the arithmetic and what still fits.
        RecipeError: another budget than the ledger has.
        RunError: the data changed, the run is a copy or was settled already, or its ledger is not there.
    """
    root, name = place_of(run)
    before = run.manifest().get(NOTE) or {}
    data = data_identity(source)
    ledger, note = ledger_for(data, root, said=config.ledger, recorded=before.get("ledger") if before.get("data") == data else None)
    _refuse_other_data(run, before, data)
    opening = None
    if config.budget is not None:
        opening = Opening((config.budget.epsilon, config.budget.delta), examples, unit, accountant=config.accountant)
    entries = ledger.entries()
    _refuse_lost_ledger(run, before, ledger, entries)
    if opening is None and not entries:
        return "none: the data set has no ledger, so that nothing counts what other runs on it tell (privacy.budget opens one)"
    if note:
        on_note(note)
    if not entries:
        on_note(f"first use of data set {data[:12]} in {ledger.folder}. If it has an account elsewhere, name that folder: TAUON_LEDGER")
    counted = entries[0].values["unit"] if entries else unit
    if not same_unit(counted, unit):
        message = (
            f"protects one {unit}, and this data set's budget is for one {counted} ({ledger.path}): one sum cannot count both. Take the unit "
            "of the budget, or a ledger of its own (privacy.ledger)."
        )
        raise RecipeError([Problem("privacy.unit", message)])
    mine = _settle_earlier(run, releases, owner, on_note)
    where = before | {"ledger": str(ledger.folder.resolve()), "data": data, "key": owner.key}
    if mine is None:
        where.pop("reservation", None)
    run.update_manifest(**{NOTE: where})
    entry = ledger.reserve(name, releases, resumes=mine, owner=owner, opening=opening)
    run.update_manifest(**{NOTE: where | {"reservation": entry.number}})
    standing = ledger.standing()
    said = f"epsilon {standing.reserved:.3g} of {standing.budget[0]:g} at delta {standing.budget[1]:g} with this run"
    return f"{said}, ledger {ledger.data[:12]} in {ledger.folder}"


def _refuse_other_data(run: Run, before: Mapping[str, Any], data: str) -> None:
    """A run that has an open reservation goes on with the data that it reserved for."""
    if before.get("data") in (None, data):
        return
    account = Account.of(run)
    if account is not None and account.settled is None:
        raise RunError(
            f"run {run.name} has reserved on data set {before['data'][:12]} (entry {account.made.number}), and its data is now {data[:12]}: it "
            "changed. Put the old data back, or start over with --fresh, which settles what it made."
        )


def _refuse_lost_ledger(run: Run, before: Mapping[str, Any], ledger: Ledger, entries: Sequence[Entry]) -> None:
    """What a run has reserved must be in the ledger that it is charged in: another one would know nothing of it."""
    number = before.get("reservation")
    if number is None or before.get("data") != ledger.data:
        return
    named = [e for e in entries if e.action == "reserve" and e.number == number]
    if not named or named[0].values.get("key", before.get("key")) != before.get("key"):
        raise RunError(
            f"{run.folder} has reserved in {before['ledger']} (entry {number}), and the ledger in {ledger.folder} does not know of it. Put that "
            "ledger back, name its folder (privacy.ledger or TAUON_LEDGER), or start over with --fresh or another name."
        )


def _settle_earlier(run: Run, releases: Sequence[Release], owner: Owner, on_note: Tell) -> int | None:
    """The number of this training's own reservation, if its manifest names one. An open one of an earlier training in this folder, whose
    key is gone or which made no step, is settled first by what it made.
    """
    account = Account.of(run)
    if account is None:
        return None
    made, key = account.made, account.made.values.get("key")
    if original_of(run, account) is not None:
        return None  # it is the original's
    plain = [r.to_json() for r in releases]
    same = made.values.get("training", owner.training) == owner.training and made.values["releases"] == plain
    current = key == owner.key or (key is None and not owner.unused)
    if current and (same or account.settled is not None):
        return made.number
    if current and key != SEEDED and steps_done(run.folder) != 0:
        return made.number  # a key that was used for something else: `Ledger.reserve` refuses it
    if account.settled is None:
        settled, done = _settle_by_steps(run, account)
        what = "all that it may have made" if done is None else f"{done} steps"
        on_note(f"an earlier training in {run.folder} was settled: {what}, entry {settled.number} of {account.ledger.path}")
    return None


def place_of(run: Run) -> tuple[Path, str]:
    """(folder of all runs, the run's name in it). A run that lies in another, a fold, is charged where that one would be."""
    root, name = run.folder.parent, run.folder.name
    while (root / run.recipe_path.name).is_file():
        root, name = root.parent, f"{root.name}/{name}"
    return root, name


# ------------------------------------------------------------------------------------------------ afterwards


def settle(run: Run, releases: list[Release]) -> None:
    """Replace the reservation by what was really told. Where it was settled before, by as much or more, that stays."""
    account = Account.of(run)
    if account is None:
        return
    if account.settled is not None:
        delta, accountant = account.entries[0].values["budget"]["delta"], account.entries[0].values["accountant"]
        counted, told = account.settled.releases, releases
        if counted == told or total_epsilon(counted, delta, accountant) >= total_epsilon(told, delta, accountant) * (1 - 1e-9):
            return
    account.ledger.settle(account.made.number, releases)


def settle_run(folder: Path | str) -> tuple[Ledger, Entry, int] | None:
    """Settle what a run has reserved by the steps it made, and throw its key away: (ledger, entry, steps). For runs that were killed, or given
    up: they cannot go on. None where only the key was thrown away, as the run is charged in no ledger.

    Raises:
        RunError: a run that reserved nothing and has no key; one that left no trace of how far it came: then all stays charged; and a copy of
            a run, which would settle what the original goes on to use.
    """
    run = Run.read(folder)
    account = Account.of(run)
    if account is None:
        if not (run.folder / KEY).exists():
            raise RunError(f"{folder}: has reserved nothing in a ledger, so there is nothing to settle.")
        discard_key(run.folder)
        return None
    _refuse_copy(run, account)
    done = steps_done(folder)
    if account.settled is None and done is None:
        raise RunError(
            f"{folder}: left neither events nor checkpoints, so nobody knows what it released. Its reservation stays charged in full; --fresh "
            "starts over beside it."
        )
    entry, _ = _settle_by_steps(run, account)
    discard_key(run.folder)
    return account.ledger, entry, done or 0


def give_up(folder: Path | str, on_note: Tell) -> None:
    """Before a run is set aside (`--fresh`): settle it, and its folds, by what they made, in full where that is not known, and throw away every
    key in it. What cannot be settled stays charged in full, and is told.
    """
    folder = Path(folder)
    for each in [folder, *sorted(folder.glob("fold-*"))]:
        if not (each / "manifest.json").is_file():
            continue
        run = Run(each)
        try:
            account = Account.of(run)
            if account is not None and account.settled is None and original_of(run, account) is None:
                entry, done = _settle_by_steps(run, account)
                what = "all that it may have made" if done is None else f"{done} steps"
                on_note(f"{each} was settled: {what}, entry {entry.number} of {account.ledger.path}. It cannot go on any more")
        except TauonError as err:
            on_note(f"what {each} has reserved stays charged in full: {err}")
    for key in folder.rglob(f"*{KEY}"):
        erase(key)


def _settle_by_steps(run: Run, account: Account) -> tuple[Entry, int | None]:
    done = steps_done(run.folder)
    if account.settled is not None:
        return account.settled, done
    releases, note = account.made.releases, "nothing is known of how far it came"
    if done is not None:
        releases, note = first_steps(releases, done), f"stopped after {done} steps"
    return account.ledger.settle(account.made.number, releases, note=note), done


def _refuse_copy(run: Run, account: Account) -> None:
    original = original_of(run, account)
    if original is not None:
        raise RunError(
            f"{run.folder} is a copy of {original}, which made the reservation (entry {account.made.number} of {account.ledger.path}) and may go "
            f"on. Settle that one: tauon privacy settle {original}. The copy may be deleted."
        )
    key = account.made.values.get("key")
    moved = account.made.values.get("place") not in (None, os.path.realpath(run.folder))
    if moved and account.settled is None and key != SEEDED and _key_in(run.folder) != key:
        raise RunError(
            f"{run.folder} was moved or copied from {account.made.values['place']}, and has not the key that the reservation was made for: it "
            "cannot be known whether another copy goes on. Settle it where the key is, or move it back."
        )


def original_of(run: Run, account: Account | None = None) -> str | None:
    """The folder that a run was copied from, where that is still there and has the same reservation or key; None for a run that lies where
    it was made, and for one that was moved.
    """
    account = account or Account.of(run)
    places = {p for p in (_placed(run), account and account.made.values.get("place")) if p}
    if account is not None and "place" not in account.made.values:
        for root in (
            place_of(run)[0],
            account.ledger.folder.parent,
        ):  # of an earlier version, which named no place: where it was by default
            places.add(str(root / account.made.values["run"]))
    where = run.manifest().get(NOTE) or {}
    hashes = {h for h in (_key_in(run.folder), where.get("key")) if h not in (None, SEEDED)}
    for place in sorted(places):
        if not os.path.isdir(place) or os.path.samefile(place, run.folder):
            continue
        theirs = Run(place).manifest().get(NOTE) or {}
        numbered = account is not None and (theirs.get("data"), theirs.get("reservation")) == (account.ledger.data, account.made.number)
        if numbered or hashes & {_key_in(Path(place)), theirs.get("key")}:
            return place
    return None


def _key_in(folder: Path) -> str | None:
    try:
        return read_key(folder).hash
    except RunError:
        return None


def _placed(run: Run) -> str | None:
    try:
        return read_key(run.folder).place
    except RunError:
        return None


# ------------------------------------------------------------------------------------------------ how far a run came


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
    """Steps that a run is known to have made, by its event log, which it opens before it reserves, and its checkpoints; None where it left
    neither, so that nothing is known.

    Steps after the last event of a killed run left no trace outside its memory.
    """
    run = Run(folder)
    found = max((step for step, _ in steps_in(run.checkpoints)), default=None)
    if run.events_path.is_file():
        logged = [int(e["step"]) for e in read_events(run.events_path) if isinstance(e.get("step"), int)]
        found = max([0, *logged, *([found] if found is not None else [])])
    return found
