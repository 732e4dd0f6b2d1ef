"""The ledger: one append-only account for each data set, so that no number of runs together tells more of anybody than its budget.

A data set is known by the content of its source (`data_identity`), not by how a recipe splits, cuts or normalises it. Its account is a chained
file (`journal`), `<folder>/<identity>.jsonl`:

    open      the data set, its budget (epsilon, delta), whom it protects: at first use, never changed
    reserve   before a run: what it will release at most; counts in full until settled. It names the hash of the key that noise is drawn from
              and what is trained with it: another key is another release, and pays again; one key is never used for two trainings
    settle    after it: what it really released. A run that was killed is settled by `tauon privacy settle`, by `--fresh`, or by the next
              training in its folder; one of which nothing is known stays charged in full
    spend     anything else: a statistic, an analysis made elsewhere, a federated round

All releases are composed as one list (`accounting`), which costs less than adding up epsilons, for one unit zeroed out; the figures of fixed-size
sampling, which are for one replaced, hold for that too (`fitting.py`). Runs whose settings were chosen by looking at earlier results are composed
adaptively: proven for Renyi divergence (`rdp`; Feldman & Zrnic 2021, arXiv:2008.11193), usual but not proven in general for `pld`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauon.artifacts import sha256_file
from tauon.data import SourceConfig
from tauon.errors import DataError, PrivacyError, Problem, RecipeError, RunError
from tauon.privacy.accounting import ZERO_OUT, Accountant, Release, refuse_delta, refuse_epsilon
from tauon.privacy.fitting import total_epsilon, what_fits
from tauon.privacy.journal import Entry, Journal, is_identity

__all__ = [
    "SEEDED",
    "Entry",
    "Ledger",
    "Opening",
    "Owner",
    "Standing",
    "data_identity",
    "find_ledgers",
    "ledger_for",
    "settlement",
    "user_folder",
]

SEEDED = "seeded"
"""What stands in the place of a key's hash where anybody can make the key again."""


@dataclass(frozen=True)
class Owner:
    """Which training a reservation is for."""

    key: str
    """Hash of the key that its noise and sampling are drawn from (`keys.key_hash`), or `SEEDED`."""
    training: str
    """Stands for everything that is drawn for: recipe, data, steps, noise."""
    place: str
    """Absolute path of the run's folder."""
    unused: bool = False
    """The key was made just now: no earlier reservation can be its own."""


@dataclass(frozen=True)
class Opening:
    """What a data set's account is opened with, at its first use."""

    budget: tuple[float, float]
    examples: int
    unit: str = "example"
    name: str = ""
    accountant: Accountant = "pld"


@dataclass(frozen=True)
class Standing:
    """How a data set stands: everything at the budget's delta."""

    budget: tuple[float, float]
    spent: float
    """Epsilon of what is settled and spent."""
    reserved: float
    """Epsilon of that and all open reservations together: what counts against the budget."""
    open: tuple[Entry, ...]
    """Reservations that are not settled."""
    neighbouring: str = ZERO_OUT
    """What neighbouring data sets are, for all figures here: the same number of units, one of them set to nothing."""

    @property
    def left(self) -> float:
        """Budget less what counts: a lower bound of the epsilon that another mechanism may have."""
        return max(0.0, self.budget[0] - self.reserved)


def data_identity(source: SourceConfig) -> str:
    """What the account of a source's data is called: SHA-256 over the content of its files, whatever they are called and however a recipe reads
    them; of a source without files, its fingerprint. Two files with people in common are two data sets to the ledger: keep one file a data
    set, or charge both.
    """
    digests = sorted(sha256_file(path) for path, _ in source.files())
    return hashlib.sha256("/".join(digests or [source.fingerprint()]).encode()).hexdigest()


class Ledger(Journal):
    """The account of one data set. Every change happens under a file lock, is forced to disk, and is checked against the whole chain first."""

    def opening(self) -> Entry:
        """The first entry, with the budget."""
        return self._first_of(self.entries())

    def _first_of(self, entries: Sequence[Entry]) -> Entry:
        if not entries:
            raise DataError(f"{self.path}: the data set has no account yet. A private run opens it; so does tauon privacy spend --budget.")
        return entries[0]

    def standing(self, entries: Sequence[Entry] | None = None) -> Standing:
        """What is spent, and what counts."""
        entries = self.entries() if entries is None else entries
        first = self._first_of(entries)
        budget = _budget(first)
        accountant: Accountant = first.values["accountant"]
        settled = {e.values["of"] for e in entries if e.action == "settle"}
        waiting = tuple(e for e in entries if e.action == "reserve" and e.number not in settled)
        spent = [r for e in entries if e.action in ("settle", "spend") for r in e.releases]
        promised = [r for e in waiting for r in e.releases]
        known = total_epsilon(spent, budget[1], accountant)
        return Standing(budget, known, total_epsilon([*spent, *promised], budget[1], accountant) if promised else known, waiting)

    # ------------------------------------------------------------------------------------------ writing

    def open(
        self, budget: tuple[float, float], *, examples: int, unit: str = "example", name: str = "", accountant: Accountant = "pld"
    ) -> Entry:
        """Set the data set's budget at first use; later, check that nobody means another one (`RecipeError`)."""
        opening = Opening(budget, examples, unit, name, accountant)
        with self._writing(create=True) as entries:
            self._opened(entries, opening)
            return entries[0] if entries else self._append(entries, "open", **self._first(opening))

    def reserve(
        self, run: str, releases: Iterable[Release], *, kind: str = "training", note: str = "", resumes: int | None = None,
        owner: Owner | None = None, opening: Opening | None = None,
    ) -> Entry:  # fmt: skip
        """Set aside what a run may release, once: what was reserved before for the same key and training is given back.

        Args:
            run: its name.
            releases: all that it can release, in the order of its steps.
            kind: training, federated-round, audit, ...
            note: for a reader.
            resumes: the reservation that this very run has made before (from its manifest).
            owner: which training it is for. None: known by its name alone, of which there is then one open reservation at a time.
            opening: opens the account, if this is its first use and the run is not refused.

        Raises:
            PrivacyError: over budget, with the arithmetic and what still fits.
            RunError: the run's key was used for something else, or its reservation was settled before it was done; or the clock went back.
            RecipeError: no account, and no `opening`; or an `opening` with another budget.
        """
        plain = [r.to_json() for r in releases]
        with self._writing(create=opening is not None) as entries:
            opened = self._opened(entries, opening)
            same = {"kind": kind, "releases": plain} | ({} if owner is None else {"training": owner.training})
            before = self._reserved_before(entries, run, same, resumes, owner)
            if before is not None:
                return before
            wanted = [Release.from_json(r) for r in plain]
            self._refuse_overspending(opened, run, wanted)
            own = total_epsilon(wanted, _budget(opened[0])[1], opened[0].values["accountant"])
            if not entries and opening is not None:
                self._append(entries, "open", **self._first(opening))
            who = {} if owner is None else {"key": owner.key, "training": owner.training, "place": owner.place}
            return self._append(entries, "reserve", run=run, kind=kind, note=note, releases=plain, epsilon=own, by=_who(), **who)

    def settle(self, reservation: int, releases: Iterable[Release], *, note: str = "") -> Entry:
        """Replace a reservation by what was really released. Settling twice with the same is nothing, with other releases a `RunError`."""
        plain = [r.to_json() for r in releases]
        with self._writing() as entries:
            made = next((e for e in entries if e.action == "reserve" and e.number == reservation), None)
            if made is None:
                look = f"tauon privacy ledger {self.data[:12]} --ledger {shlex.quote(str(self.folder))}"
                raise RunError(f"{self.path}: entry {reservation} is no reservation. To see them: {look}")
            before = settlement(entries, reservation)
            if before is not None:
                if before.values["releases"] == plain:
                    return before
                raise RunError(f"{self.path}: reservation {reservation} was settled by entry {before.number}, with other releases.")
            own = total_epsilon([Release.from_json(r) for r in plain], _budget(entries[0])[1], entries[0].values["accountant"])
            return self._append(
                entries, "settle", of=reservation, run=made.values["run"], kind=made.values["kind"], note=note, releases=plain, epsilon=own,
            )  # fmt: skip

    def spend(
        self, releases: Iterable[Release], *, what: str, kind: str = "manual", note: str = "", opening: Opening | None = None
    ) -> Entry:
        """Charge something that is already clear, a noisy statistic or an analysis made elsewhere. Over budget: `PrivacyError`, and nothing
        is written, not even by an `opening`.
        """
        wanted = list(releases)
        with self._writing(create=opening is not None) as entries:
            opened = self._opened(entries, opening)
            self._refuse_overspending(opened, what, wanted)
            own = total_epsilon(wanted, _budget(opened[0])[1], opened[0].values["accountant"])
            if not entries and opening is not None:
                self._append(entries, "open", **self._first(opening))
            return self._append(
                entries, "spend", run=what, kind=kind, note=note, releases=[r.to_json() for r in wanted], epsilon=own, by=_who()
            )

    # ------------------------------------------------------------------------------------------ what is refused

    def _first(self, opening: Opening) -> dict[str, Any]:
        """What the first entry says."""
        budget = {"epsilon": float(opening.budget[0]), "delta": float(opening.budget[1])}
        return {
            "data": self.data, "name": opening.name, "budget": budget, "examples": int(opening.examples), "unit": opening.unit,
            "accountant": opening.accountant,
        }  # fmt: skip

    def _opened(self, entries: list[Entry], opening: Opening | None) -> list[Entry]:
        """The entries, or, before the first use, what they would be with `opening`. `RecipeError` for none, or another budget."""
        if opening is None:
            if not entries:
                said = f"is missing, and this is the first use of data set {self.data[:12]}. Say epsilon and delta."
                raise RecipeError([Problem("privacy.budget", said)])
            return entries
        refuse_epsilon(opening.budget[0])
        refuse_delta(opening.budget[1], opening.examples)
        if not entries:
            return [Entry(1, "", "open", self._first(opening), "", "")]
        there = _budget(entries[0])
        if there != (float(opening.budget[0]), float(opening.budget[1])):
            said = (
                f"epsilon {opening.budget[0]:g}, delta {opening.budget[1]:g}, but this data set's budget was set to epsilon {there[0]:g}, delta "
                f"{there[1]:g} on {entries[0].time[:10]} and stays ({self.path}). Drop the key, or write that."
            )
            raise RecipeError([Problem("privacy.budget", said)])
        return entries

    def _reserved_before(
        self, entries: Sequence[Entry], run: str, same: dict[str, Any], resumes: int | None, owner: Owner | None
    ) -> Entry | None:
        """The reservation of the very same draws, open or paid; None where a new one is needed. `RunError` where a key would be used twice."""
        secret = owner is None or owner.key != SEEDED
        for made in reversed([e for e in entries if e.action == "reserve" and _is_own(e, run, resumes, owner)]):
            alike = all(made.values.get(k, v) == v for k, v in same.items())
            settled = settlement(entries, made.number)
            if settled is None:
                if alike and (owner is not None or made.number == resumes):
                    return made
                if secret:
                    raise RunError(
                        f"a run {run} has reserved already (entry {made.number} of {self.path}) and is not settled: it was killed, set aside, or had "
                        f"other settings. Settle it first: tauon privacy settle, with its folder. Or give this run another name."
                    )
            elif owner is not None and settled.values["releases"] == same["releases"] and alike:
                return made
            elif owner is not None and secret and settled.values["releases"]:
                raise RunError(
                    f"run {run} was settled by entry {settled.number} of {self.path} before it was done, so it cannot go on: its noise was counted "
                    f"for what it had made by then. Start over with --fresh, or give this run another name (name=...)."
                )
        return None

    def _refuse_overspending(self, entries: Sequence[Entry], run: str, wanted: list[Release]) -> None:
        standing, accountant = self.standing(entries), entries[0].values["accountant"]
        limit, delta = standing.budget
        before = [r for e in entries if e.action in ("settle", "spend") for r in e.releases] + [
            r for e in standing.open for r in e.releases
        ]
        together = total_epsilon([*before, *wanted], delta, accountant)
        if together <= limit * (1 + 1e-9):
            return
        alone = total_epsilon(wanted, delta, accountant)
        words = [
            f"{run} may not run: the budget of data set {self.data[:12]} is epsilon {limit:g} at delta {delta:g}",
            f"spent are {standing.spent:.4g}" + (f", with open reservations {standing.reserved:.4g}" if standing.open else ""),
            f"this needs {alone:.4g} alone, together {together:.4g} > {limit:g}",
        ]
        way = what_fits(before, wanted, standing.budget, accountant)
        waiting = ", ".join(f"{e.values['run']} (entry {e.number})" for e in standing.open)
        waiting = f" Reserved, not settled: {waiting}; wait for them, or: tauon privacy settle, with the run's folder." if waiting else ""
        raise PrivacyError(f"{'; '.join(words)}. {way}{waiting}")


def settlement(entries: Sequence[Entry], reservation: int) -> Entry | None:
    """The entry that settles a reservation; None while it is open."""
    return next((e for e in entries if e.action == "settle" and e.values["of"] == reservation), None)


def _is_own(made: Entry, run: str, resumes: int | None, owner: Owner | None) -> bool:
    """Whether a reservation is that of the training which asks. Keys tell; entries of earlier versions do not name any."""
    if owner is None:
        return bool(made.values["run"] == run)
    key = made.values.get("key")
    if key is None:
        return made.number == resumes and not owner.unused
    if key != owner.key:
        return False
    return key != SEEDED or made.number == resumes or made.values["place"] == owner.place


def _budget(opening: Entry) -> tuple[float, float]:
    return float(opening.values["budget"]["epsilon"]), float(opening.values["budget"]["delta"])


def _who() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


# ------------------------------------------------------------------------------------------------ where they are


def user_folder() -> Path:
    """Folder of the ledgers of whoever works here: TAUON_LEDGER; else `tauon/ledger` in XDG_DATA_HOME, or in ~/.local/share."""
    said, data = os.environ.get("TAUON_LEDGER"), os.environ.get("XDG_DATA_HOME", "")
    try:
        if said:
            return Path(said).expanduser()
        return Path(data if os.path.isabs(data) else "~/.local/share").expanduser() / "tauon" / "ledger"
    except RuntimeError as err:  # a container's user, say
        raise RunError(f"the folder of the ledgers is not known: {err} Set TAUON_LEDGER to one that stays.") from None


def ledger_for(data: str, root: Path, *, said: Path | str | None = None, recorded: Path | str | None = None) -> tuple[Ledger, str]:
    """(the ledger that a data set is charged in, what a person should know of that choice, or "").

    In this order: the folder that somebody has `said`; the one that the run has `recorded`, and `root/ledger`, beside the runs, where earlier
    versions kept them, if the data set has an account there; else `user_folder()`, one for all roots.
    """
    if said is not None:
        return Ledger(said, data), ""
    own = Ledger(user_folder(), data)
    if recorded is not None and (there := Ledger(recorded, data)).exists():
        return there, ""
    beside = Ledger(root / "ledger", data)
    if beside.path.resolve() == own.path.resolve() or not beside.exists():
        return own, ""
    note = f"the data set has its account beside the runs, in {beside.folder}: it goes on there"
    if own.exists():
        note += f". There is another one in {own.folder}, and neither counts the other: take the one that should stay (privacy.ledger)"
    return beside, note


def find_ledgers(folder: Path | str, prefix: str) -> list[Ledger]:
    """Ledgers whose data set's identity begins with `prefix`, by identity."""
    names = (p.stem for p in sorted(Path(folder).glob("*.jsonl")))
    return [Ledger(folder, name) for name in names if name.startswith(prefix) and is_identity(name)]
