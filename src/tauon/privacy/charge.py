"""A run and its data set's ledger: the cost is reserved before the first step and settled after the last, exactly once, also after a kill.

The order of the steps, with what each one leaves behind. After a kill the same command continues from there:

    key          `privacy.key` is created, or the run's own is read
    bound        the key file names the training it is for, before anything is drawn from it
    intent       the manifest names the ledger and the key's hash
    reserve      the ledger has the key's hash and the training; found by these, if the manifest has no reservation number yet
    number       the manifest names the reservation
    statistics, steps, checkpoints
    settle       in the ledger; repeating it changes nothing
    key deleted
    stage done   a run that has its last step needs no key for this

A data set without a ledger is not charged, and the guarantee says so. A killed run keeps its reservation until it is resumed, or settled by the
steps it made (`tauon privacy settle`, `--fresh`); its key is then deleted, so that it can never be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tauon.artifacts import RunFolder, erase, read_json, steps_in
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

__all__ = ["RELEASED", "first_steps", "give_up", "original_of", "place_of", "reserve", "settle", "settle_run", "steps_done"]

NOTE = "privacy"
"""Section of the manifest about the reservation of a run: ledger (folder), data (identity), key (hash), reservation (number)."""
RELEASED = "federate/released.json"
"""Of a federated run: rounds that were released, and those of them that were settled."""
STEPPED = ("poisson", "fixed-size", "shuffled")
NoteCallback = Callable[[str], None]


@dataclass(frozen=True)
class Account:
    """The ledger entries of a run."""

    ledger: Ledger
    entries: list[Entry]
    made: Entry
    """The run's reservation: the open one, otherwise the last."""
    settled: Entry | None

    @classmethod
    def of(cls, run: RunFolder) -> Account | None:
        """Find the run's reservation by its manifest and its key; None if it has none."""
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
    """Whether a reservation belongs to the run whose manifest section is `where`."""
    key = made.values.get("key")
    if key in (None, SEEDED):
        return made.number == where.get("reservation") or (key == SEEDED == where.get("key") and made.values["place"] == place)
    return bool(key == where.get("key"))


# ------------------------------------------------------------------------------------------------ before the first step


def reserve(
    run: RunFolder, config: PrivacyConfig, source: SourceConfig, releases: list[Release], *, examples: int, unit: str, owner: Owner,
    on_note: NoteCallback = lambda message: None,
) -> str:  # fmt: skip
    """Reserve the releases of the run in the ledger; return a line about the budget. One reservation per run, also if it is resumed.

    Raises:
        PrivacyError: over budget; the message has the sums and the epsilon that is left.
        RecipeError: the budget differs from the ledger's.
        RunError: the data changed, the run is a copy or was settled, or its ledger is missing.
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
        return "none: the data set has no ledger, so other runs on it are not counted (set privacy.budget to open one)"
    if note:
        on_note(note)
    if not entries:
        on_note(f"first use of data set {data[:12]} in {ledger.folder}. If it has a ledger elsewhere, set TAUON_LEDGER to that folder")
    counted = entries[0].values["unit"] if entries else unit
    if not same_unit(counted, unit):
        message = (
            f"is {unit}, but this data set's budget is for one {counted} ({ledger.path}), and one ledger cannot count both. Set the unit "
            "of the budget, or use another ledger (privacy.ledger)."
        )
        raise RecipeError([Problem("privacy.unit", message)])
    own_reservation = _settle_earlier(run, releases, owner, on_note)
    where = before | {"ledger": str(ledger.folder.resolve()), "data": data, "key": owner.key}
    if own_reservation is None:
        where.pop("reservation", None)
    run.update_manifest(**{NOTE: where})
    entry = ledger.reserve(name, releases, resumes=own_reservation, owner=owner, opening=opening)
    run.update_manifest(**{NOTE: where | {"reservation": entry.number}})
    standing = ledger.standing()
    summary = f"epsilon {standing.reserved:.3g} of {standing.budget[0]:g} at delta {standing.budget[1]:g} with this run"
    return f"{summary}, ledger {ledger.data[:12]} in {ledger.folder}"


def _refuse_other_data(run: RunFolder, before: Mapping[str, Any], data: str) -> None:
    """Raise `RunError` if a run with an open reservation has other data now."""
    if before.get("data") in (None, data):
        return
    account = Account.of(run)
    if account is not None and account.settled is None:
        raise RunError(
            f"the data of run {run.name} changed: it reserved budget for data set {before['data'][:12]} (entry {account.made.number}), and the data is "
            f"now {data[:12]}. Restore the old data, or start over with --fresh, which settles the steps it made."
        )


def _refuse_lost_ledger(run: RunFolder, before: Mapping[str, Any], ledger: Ledger, entries: Sequence[Entry]) -> None:
    """Raise `RunError` if the run's reservation is missing in the ledger in use, which would then grant a fresh budget."""
    number = before.get("reservation")
    if number is None or before.get("data") != ledger.data:
        return
    named = [e for e in entries if e.action == "reserve" and e.number == number]
    if not named or named[0].values.get("key", before.get("key")) != before.get("key"):
        raise RunError(
            f"{run.folder} has reserved budget in {before['ledger']} (entry {number}), but the ledger in {ledger.folder} has no such entry. Restore "
            "that ledger, set its folder (privacy.ledger or TAUON_LEDGER), or start over with --fresh or another name."
        )


def _settle_earlier(run: RunFolder, releases: Sequence[Release], owner: Owner, on_note: NoteCallback) -> int | None:
    """Return the number of this training's own reservation, if the manifest names one. First settle an open reservation of an earlier training
    in this folder whose key is gone or which made no step.
    """
    account = Account.of(run)
    if account is None:
        return None
    made, key = account.made, account.made.values.get("key")
    if original_of(run, account) is not None:
        return None  # the run is a copy: the reservation belongs to the original
    plain = [r.to_json() for r in releases]
    same = made.values.get("training", owner.training) == owner.training and made.values["releases"] == plain
    current = key == owner.key or (key is None and not owner.unused)
    if current and (same or account.settled is not None):
        return made.number
    if current and key != SEEDED and steps_done(run.folder) != 0:
        return made.number  # a key that was used for something else: `Ledger.reserve` refuses it
    if account.settled is None:
        settled, done = _settle_by_steps(run, account)
        amount = "in full, its steps are not known" if done is None else f"for {done} steps"
        on_note(f"an earlier training in {run.folder} was settled {amount}: entry {settled.number} of {account.ledger.path}")
    return None


def place_of(run: RunFolder) -> tuple[Path, str]:
    """(folder of all runs, name of the run in it). A fold, which is inside another run, is charged like that run."""
    root, name = run.folder.parent, run.folder.name
    while (root / run.recipe_path.name).is_file():
        root, name = root.parent, f"{root.name}/{name}"
    return root, name


# ------------------------------------------------------------------------------------------------ afterwards


def settle(run: RunFolder, releases: list[Release]) -> None:
    """Replace the reservation by what was really released. A settlement of the same cost or more is kept."""
    account = Account.of(run)
    if account is None:
        return
    if account.settled is not None:
        delta, accountant = account.entries[0].values["budget"]["delta"], account.entries[0].values["accountant"]
        counted = account.settled.releases
        if counted == releases or total_epsilon(counted, delta, accountant) >= total_epsilon(releases, delta, accountant) * (1 - 1e-9):
            return
    account.ledger.settle(account.made.number, releases)


def settle_run(folder: Path | str) -> tuple[Ledger, Entry, int] | None:
    """Settle a run's reservation by the steps it made, and delete its key; return (ledger, entry, steps). For runs that were killed or
    abandoned: they cannot be resumed afterwards. None if the run is in no ledger, and only the key was deleted.

    Raises:
        RunError: the run reserved nothing and has no key; it left neither events nor checkpoints (then it stays charged in full); or it is
            a copy of a run that may still continue.
    """
    run = RunFolder.read(folder)
    account = Account.of(run)
    if account is None:
        if not (run.folder / KEY).exists():
            raise RunError(f"{folder}: this run has no reservation in a ledger, so there is nothing to settle.")
        discard_key(run.folder)
        return None
    _refuse_copy(run, account)
    done = steps_done(folder)
    if account.settled is None and done is None:
        raise RunError(
            f"{folder}: there are no events and no checkpoints, so the number of steps is not known. Its reservation stays charged in full. "
            "To start over: --fresh."
        )
    entry, done = _settle_by_steps(run, account)
    discard_key(run.folder)
    return account.ledger, entry, done or 0


def give_up(folder: Path | str, on_note: NoteCallback) -> None:
    """Before a run is set aside (`--fresh`): settle it and its folds by the steps they made (in full if not known), and delete all its keys.
    What cannot be settled stays charged in full, and is reported through `on_note`.
    """
    folder = Path(folder)
    for each in [folder, *sorted(folder.glob("fold-*"))]:
        if not (each / "manifest.json").is_file():
            continue
        run = RunFolder(each)
        try:
            account = Account.of(run)
            if account is not None and account.settled is None and original_of(run, account) is None:
                entry, done = _settle_by_steps(run, account)
                amount = "in full, its steps are not known" if done is None else f"for {done} steps"
                on_note(f"{each} was settled {amount}: entry {entry.number} of {account.ledger.path}. It cannot be resumed any more")
        except TauonError as err:
            on_note(f"the reservation of {each} stays charged in full: {err}")
    for key in folder.rglob(f"*{KEY}"):
        erase(key)


def _settle_by_steps(run: RunFolder, account: Account) -> tuple[Entry, int | None]:
    done = steps_done(run.folder)
    if account.settled is not None:
        return account.settled, done
    if account.made.values["kind"] == "federated-round":
        counts = read_json(run.folder / RELEASED)
        done = counts["rounds"]
        releases = [replace(r, count=done - counts["settled"]) for r in account.made.releases] if done > counts["settled"] else []
        return account.ledger.settle(account.made.number, releases, note=f"stopped after {done} rounds"), done
    releases, note = account.made.releases, "the number of steps is not known"
    if done is not None:
        releases, note = first_steps(releases, done), f"stopped after {done} steps"
    return account.ledger.settle(account.made.number, releases, note=note), done


def _refuse_copy(run: RunFolder, account: Account) -> None:
    original = original_of(run, account)
    if original is not None:
        raise RunError(
            f"{run.folder} is a copy of {original}, which made the reservation (entry {account.made.number} of {account.ledger.path}) and may still "
            f"continue. Settle the original: tauon privacy settle {original}. The copy may be deleted."
        )
    key = account.made.values.get("key")
    moved = account.made.values.get("place") not in (None, os.path.realpath(run.folder))
    if moved and account.settled is None and key != SEEDED and _key_in(run.folder) != key:
        raise RunError(
            f"{run.folder} was moved or copied from {account.made.values['place']} without the key of its reservation, so another copy may still "
            "continue. Run tauon privacy settle where the key is, or move the run back."
        )


def original_of(run: RunFolder, account: Account | None = None) -> str | None:
    """Return the folder that a run was copied from, if it still exists and has the same reservation or key. None for a run that is where it
    was made, and for one that was moved.
    """
    account = account or Account.of(run)
    places = {p for p in (_placed(run), account and account.made.values.get("place")) if p}
    if account is not None and "place" not in account.made.values:
        for root in (place_of(run)[0], account.ledger.folder.parent):  # entries of an earlier version have no place: the default ones
            places.add(str(root / account.made.values["run"]))
    where = run.manifest().get(NOTE) or {}
    hashes = {h for h in (_key_in(run.folder), where.get("key")) if h not in (None, SEEDED)}
    for place in sorted(places):
        if not os.path.isdir(place) or os.path.samefile(place, run.folder):
            continue
        other_note = RunFolder(place).manifest().get(NOTE) or {}
        numbered = account is not None and (other_note.get("data"), other_note.get("reservation")) == (
            account.ledger.data,
            account.made.number,
        )
        if numbered or hashes & {_key_in(Path(place)), other_note.get("key")}:
            return place
    return None


def _key_in(folder: Path) -> str | None:
    try:
        return read_key(folder).hash
    except RunError:
        return None


def _placed(run: RunFolder) -> str | None:
    try:
        return read_key(run.folder).place
    except RunError:
        return None


# ------------------------------------------------------------------------------------------------ how far a run came


def first_steps(releases: Sequence[Release], done: int) -> list[Release]:
    """Return the part of the planned `releases` (in the order of the steps) that a run stopped after `done` steps has made. Releases that are
    not steps (full, known) stay charged; so does correlated noise, which is one release for all steps.
    """
    made: list[Release] = []
    for r in releases:
        if r.sampling not in STEPPED:
            made.append(r)
        elif r.sampling == "shuffled" and r.rate == 1 and r.count == 1:
            made += [r] if done else []
        elif done > 0:
            made.append(replace(r, count=min(done, r.count)))
            done -= r.count
    return made


def steps_done(folder: Path | str) -> int | None:
    """Return the number of steps that a run made, from its event log (opened before the reservation) and its checkpoints; None if it has
    neither.

    Steps after the last event of a killed run were only in its memory: nothing of them was released.
    """
    run = RunFolder(folder)
    last_checkpoint = max((step for step, _ in steps_in(run.checkpoints)), default=None)
    if run.events_path.is_file():
        logged = [int(e["step"]) for e in read_events(run.events_path) if isinstance(e.get("step"), int)]
        return max([0, *logged, *([last_checkpoint] if last_checkpoint is not None else [])])
    return last_checkpoint
