"""The ledger: one append-only account per data set, so that all runs on it together stay within one privacy budget.

A data set is identified by the content of its source (`data_identity`), not by how a recipe splits, cuts or normalizes it. Its account is a
hash-chained file (`journal`), `<folder>/<identity>.jsonl`:

    open      the data set, its budget (epsilon, delta), its unit: written at first use, never changed
    reserve   before a run: its maximum releases, which count in full until settled. Names the hash of the noise key and the training:
              another key is another release and is charged again; one key is never used for two trainings
    settle    after a run: what it really released. A killed run is settled by `tauon privacy settle`, by `--fresh`, or by the next
              training in its folder; if its steps are not known, it stays charged in full
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
"""Written instead of a key's hash if the key comes from the recipe's seed."""


@dataclass(frozen=True)
class Owner:
    """The training that a reservation is for."""

    key: str
    """Hash of the key that its noise and sampling are drawn from (`keys.key_hash`), or `SEEDED`."""
    training: str
    """Hash of everything the draws are used for: recipe, data, steps, noise."""
    place: str
    """Absolute path of the run's folder."""
    unused: bool = False
    """The key is new: no earlier reservation can belong to it."""


@dataclass(frozen=True)
class Opening:
    """Budget and unit that open the account of a data set at its first use."""

    budget: tuple[float, float]
    examples: int
    unit: str = "example"
    name: str = ""
    accountant: Accountant = "pld"


@dataclass(frozen=True)
class Standing:
    """Budget and spending of a data set, at the budget's delta."""

    budget: tuple[float, float]
    spent: float
    """Epsilon of everything settled and spent."""
    reserved: float
    """Epsilon including all open reservations: what counts against the budget."""
    open: tuple[Entry, ...]
    """Reservations that are not settled."""
    neighbouring: str = ZERO_OUT
    """Neighboring relation of all figures here: the same number of units, one of them zeroed out."""

    @property
    def left(self) -> float:
        """Budget minus what is reserved: a lower bound of the epsilon that another mechanism may use."""
        return max(0.0, self.budget[0] - self.reserved)


def data_identity(source: SourceConfig) -> str:
    """Identity of a source's data in the ledger: SHA-256 over the content of its files, independent of their names and of the recipe; for a
    source without files, its fingerprint. Two files with the same people are two data sets to the ledger: keep one file per data set, or
    charge both.
    """
    digests = sorted(sha256_file(path) for path, _ in source.files())
    return hashlib.sha256("/".join(digests or [source.fingerprint()]).encode()).hexdigest()


class Ledger(Journal):
    """The account of one data set. Each change checks the complete hash chain, under a file lock, and is flushed to disk."""

    def opening(self) -> Entry:
        """The first entry, with the budget."""
        return self._first_of(self.entries())

    def _first_of(self, entries: Sequence[Entry]) -> Entry:
        if not entries:
            raise DataError(
                f"{self.path}: the data set has no ledger yet. A private run with privacy.budget opens one; so does tauon privacy spend --budget."
            )
        return entries[0]

    def standing(self, entries: Sequence[Entry] | None = None) -> Standing:
        """Budget, spending and open reservations."""
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
        """Set the data set's budget at first use; later, check that it is the same (`RecipeError`)."""
        opening = Opening(budget, examples, unit, name, accountant)
        with self._writing(create=True) as entries:
            self._opened(entries, opening)
            return entries[0] if entries else self._append(entries, "open", **self._first(opening))

    def reserve(
        self, run: str, releases: Iterable[Release], *, kind: str = "training", note: str = "", resumes: int | None = None,
        owner: Owner | None = None, opening: Opening | None = None,
    ) -> Entry:  # fmt: skip
        """Reserve the releases of a run, once: an existing reservation for the same key and training is returned.

        Args:
            run: name of the run.
            releases: maximum releases, in the order of the steps.
            kind: training, federated-round, audit, ...
            note: free text.
            resumes: number of this run's earlier reservation (from its manifest).
            owner: the training it is for. None: identified by its name only, with one open reservation at a time.
            opening: opens the account at its first use, if the run is accepted.

        Raises:
            PrivacyError: over budget, with the arithmetic and what still fits.
            RunError: the run's key was used for another training, its reservation was settled before it finished, or the clock went backwards.
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
        """Replace a reservation by the real releases. Repeating it with the same releases changes nothing; with others it is a `RunError`."""
        plain = [r.to_json() for r in releases]
        with self._writing() as entries:
            made = next((e for e in entries if e.action == "reserve" and e.number == reservation), None)
            if made is None:
                command = f"tauon privacy ledger {self.data[:12]} --ledger {shlex.quote(str(self.folder))}"
                raise RunError(f"{self.path}: entry {reservation} is not a reservation. To list the entries: {command}")
            before = settlement(entries, reservation)
            if before is not None:
                if before.values["releases"] == plain:
                    return before
                raise RunError(
                    f"{self.path}: reservation {reservation} was already settled by entry {before.number} with other releases. See: tauon privacy ledger"
                )
            own = total_epsilon([Release.from_json(r) for r in plain], _budget(entries[0])[1], entries[0].values["accountant"])
            return self._append(
                entries, "settle", of=reservation, run=made.values["run"], kind=made.values["kind"], note=note, releases=plain, epsilon=own,
            )  # fmt: skip

    def spend(
        self, releases: Iterable[Release], *, what: str, kind: str = "manual", note: str = "", opening: Opening | None = None
    ) -> Entry:
        """Charge known releases: a noisy statistic, or an analysis made elsewhere. Raises `PrivacyError` over budget; then nothing is
        written, also no `opening`.
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
        """Values of the first entry."""
        budget = {"epsilon": float(opening.budget[0]), "delta": float(opening.budget[1])}
        return {
            "data": self.data, "name": opening.name, "budget": budget, "examples": int(opening.examples), "unit": opening.unit,
            "accountant": opening.accountant,
        }  # fmt: skip

    def _opened(self, entries: list[Entry], opening: Opening | None) -> list[Entry]:
        """The entries, or before the first use the ones that `opening` would make. Raises `RecipeError` without a budget, or for another one."""
        if opening is None:
            if not entries:
                message = f"is missing, and this is the first use of data set {self.data[:12]}. Set it: {{epsilon: ..., delta: ...}}."
                raise RecipeError([Problem("privacy.budget", message)])
            return entries
        refuse_epsilon(opening.budget[0])
        refuse_delta(opening.budget[1], opening.examples)
        if not entries:
            return [Entry(1, "", "open", self._first(opening), "", "")]
        first = _budget(entries[0])
        if first != (float(opening.budget[0]), float(opening.budget[1])):
            message = (
                f"is epsilon {opening.budget[0]:g}, delta {opening.budget[1]:g}, but this data set's budget was set to epsilon {first[0]:g}, delta "
                f"{first[1]:g} on {entries[0].time[:10]} and cannot change ({self.path}). Remove the key, or set those values."
            )
            raise RecipeError([Problem("privacy.budget", message)])
        return entries

    def _reserved_before(
        self, entries: Sequence[Entry], run: str, same: dict[str, Any], resumes: int | None, owner: Owner | None
    ) -> Entry | None:
        """The reservation of the same draws, open or settled; None if a new one is needed. Raises `RunError` if a key would be used twice."""
        secret = owner is None or owner.key != SEEDED
        for made in reversed([e for e in entries if e.action == "reserve" and _is_own(e, run, resumes, owner)]):
            alike = all(made.values.get(k, v) == v for k, v in same.items())
            settled = settlement(entries, made.number)
            if settled is None:
                if alike and (owner is not None or made.number == resumes):
                    return made
                if secret:
                    raise RunError(
                        f"a run {run} has an open reservation (entry {made.number} of {self.path}): it was killed, set aside, or had other settings. "
                        f"Settle it first: tauon privacy settle RUN_FOLDER. Or give this run another name (name=...)."
                    )
            elif owner is not None and settled.values["releases"] == same["releases"] and alike:
                return made
            elif owner is not None and secret and settled.values["releases"]:
                raise RunError(
                    f"run {run} cannot be resumed: entry {settled.number} of {self.path} settled it before it finished, for the steps it had made by "
                    f"then. Start over with --fresh, or give this run another name (name=...)."
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
            f"{run} cannot start: the budget of data set {self.data[:12]} is epsilon {limit:g} at delta {delta:g}",
            f"spent: {standing.spent:.4g}" + (f", with open reservations: {standing.reserved:.4g}" if standing.open else ""),
            f"this run needs {alone:.4g} alone, together {together:.4g} > {limit:g}",
        ]
        way = what_fits(before, wanted, standing.budget, accountant)
        waiting = ", ".join(f"{e.values['run']} (entry {e.number})" for e in standing.open)
        waiting = f" Open reservations: {waiting}; wait for these runs, or settle them: tauon privacy settle RUN_FOLDER." if waiting else ""
        raise PrivacyError(f"{'; '.join(words)}. {way}{waiting}")


def settlement(entries: Sequence[Entry], reservation: int) -> Entry | None:
    """The entry that settles a reservation; None if it is open."""
    return next((e for e in entries if e.action == "settle" and e.values["of"] == reservation), None)


def _is_own(made: Entry, run: str, resumes: int | None, owner: Owner | None) -> bool:
    """Whether a reservation is for the same training, by its key; entries of earlier versions have none."""
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
    """Default folder of the ledgers of this user: TAUON_LEDGER; else `tauon/ledger` in XDG_DATA_HOME, or in ~/.local/share."""
    folder, data = os.environ.get("TAUON_LEDGER"), os.environ.get("XDG_DATA_HOME", "")
    try:
        if folder:
            return Path(folder).expanduser()
        return Path(data if os.path.isabs(data) else "~/.local/share").expanduser() / "tauon" / "ledger"
    except RuntimeError as err:  # e.g. a container's user without a home
        raise RunError(f"the folder of the ledgers is not known: {err} Set TAUON_LEDGER to a persistent folder.") from None


def ledger_for(data: str, root: Path, *, said: Path | str | None = None, recorded: Path | str | None = None) -> tuple[Ledger, str]:
    """(ledger that a data set is charged in, note about the choice, or "").

    In this order: the folder `said` in the recipe or on the command line; the one `recorded` in the run's manifest, and `root/ledger`, beside the
    runs (of earlier versions), if the data set has an account there; otherwise `user_folder()`.
    """
    if said is not None:
        return Ledger(said, data), ""
    own = Ledger(user_folder(), data)
    if recorded is not None and (ledger := Ledger(recorded, data)).exists():
        return ledger, ""
    beside = Ledger(root / "ledger", data)
    if beside.path.resolve() == own.path.resolve() or not beside.exists():
        return own, ""
    note = f"the data set has its ledger beside the runs, in {beside.folder}, and is charged there"
    if own.exists():
        note += f". There is a second one in {own.folder}, and neither counts the other: set privacy.ledger to the one to keep"
    return beside, note


def find_ledgers(folder: Path | str, prefix: str) -> list[Ledger]:
    """Ledgers of data sets whose identity starts with `prefix`, sorted by identity."""
    names = (p.stem for p in sorted(Path(folder).glob("*.jsonl")))
    return [Ledger(folder, name) for name in names if name.startswith(prefix) and is_identity(name)]
