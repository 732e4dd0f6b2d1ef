"""The ledger: one append-only account for each data set, so that no number of runs together tells more of anybody than its budget.

A data set is known by the content of its source (`data_identity`), not by how a recipe splits, cuts or normalises it. Its account is a file
of JSON lines, `<folder>/<identity>.jsonl`, each with the SHA-256 of the line before it: an edited, removed or inserted line breaks the chain,
and `<identity>.head` remembers how many lines there were, so that a cut-off end is noticed, too. (Who can write both files can forge both;
keep the folder where runs may append and people may not edit, or compare the head with the copy that each run keeps.)

    open      the data set, its budget (epsilon, delta), whom it protects: at first use, never changed
    reserve   before a run: what it will release at most; counts in full until settled
    settle    after it: what it really released. A run that was killed is settled by `tauon privacy settle` or by the next run of that name;
              one of which nothing is known stays charged in full
    spend     anything else: a statistic, an analysis made elsewhere, a federated round

All releases are composed as one list (`accounting`), which costs less than adding up epsilons, for one unit zeroed out; the figures of fixed-size
sampling, which are for one replaced, hold for that too (`fitting.py`). Runs whose settings were chosen by looking at earlier results are composed
adaptively: proven for Renyi divergence (`rdp`; Feldman & Zrnic 2021, arXiv:2008.11193), usual but not proven in general for `pld`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tauon.artifacts import atomic_write, sha256_file
from tauon.data import SourceConfig
from tauon.errors import DataError, PrivacyError, Problem, RecipeError, RunError
from tauon.privacy.accounting import ZERO_OUT, Accountant, Release, refuse_delta, refuse_epsilon
from tauon.privacy.fitting import total_epsilon, what_fits

__all__ = ["Entry", "Ledger", "Standing", "data_identity", "find_ledgers"]

START = "0" * 64
SKEW = 2.0
"""Seconds by which clocks of machines that share a ledger may differ."""


@dataclass(frozen=True)
class Entry:
    """One line of a ledger."""

    number: int
    """From 1."""
    time: str
    """ISO 8601, UTC."""
    action: str
    """open, reserve, settle, spend."""
    values: dict[str, Any]
    """What it says: run, kind, releases, of (the number of the reservation that it settles), note, ..."""
    previous: str
    hash: str

    @property
    def releases(self) -> list[Release]:
        """What was, or may be, released."""
        return [Release.from_json(r) for r in self.values.get("releases", [])]


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


class Ledger:
    """The account of one data set.

    Every change happens under a file lock, is forced to disk, and is checked against the whole chain first.
    """

    def __init__(self, folder: Path | str, data: str) -> None:
        """`folder`: of all ledgers; `data`: the data set's identity, hexadecimal digits."""
        if not (8 <= len(data) <= 64 and all(c in "0123456789abcdef" for c in data)):
            raise DataError(f"{data!r} is no identity of a data set: expected 8 to 64 hexadecimal digits, as data_identity gives them.")
        self.folder, self.data = Path(folder), data
        self.path = self.folder / f"{data}.jsonl"
        self.head_path = self.folder / f"{data}.head"

    # ------------------------------------------------------------------------------------------ reading

    def exists(self) -> bool:
        """Whether the data set has an account. `DataError` where there was one, and its file is gone."""
        if not self.path.exists() and self.head_path.exists():
            raise DataError(f"{self.path}: is gone, and {self.head_path.name} says that it held entries. Restore it from a backup.")
        return self.path.exists()

    def entries(self) -> list[Entry]:
        """All lines, the chain checked. Raises `DataError` naming the first line that is not what was written."""
        return self._read()[0] if self.exists() else []

    def _read(self) -> tuple[list[Entry], int]:
        """(entries, bytes that hold them): less than the file has where the last line was cut while being written."""
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        entries: list[Entry] = []
        previous = START
        for number, line in enumerate(raw[:whole].splitlines(), start=1):
            where = f"{self.path}, line {number}"
            try:
                values = json.loads(line)
                entry = Entry(values["number"], values["time"], values["action"], values["values"], values["previous"], values["hash"])
            except (ValueError, KeyError, TypeError) as err:
                raise DataError(f"{where}: is no entry of a ledger ({err}). It was edited: {_RESTORE}") from None
            if entry.number != number or entry.previous != previous or _hash(entry) != entry.hash:
                what = "an entry is missing or was put in before it" if _hash(entry) == entry.hash else "it was edited"
                raise DataError(f"{where}: the hash chain is broken: {what}. {_RESTORE}")
            entries.append(entry)
            previous = entry.hash
        head = self._head()
        known = int(head["entries"])
        if len(entries) < known or (known and entries[known - 1].hash != head["hash"]):
            raise DataError(
                f"{self.path}: ends after line {len(entries)}, and {known} were written: its end was cut off or replaced. {_RESTORE}"
            )
        return entries, whole

    def _head(self) -> dict[str, Any]:
        if not self.head_path.exists():
            if self.path.stat().st_size == 0:
                return {"entries": 0, "hash": START}
            raise DataError(f"{self.head_path}: is gone, so nobody knows whether the ledger is whole. {_RESTORE}")
        try:
            head = json.loads(self.head_path.read_text())
            return {"entries": int(head["entries"]), "hash": str(head["hash"])}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.head_path}: was edited. {_RESTORE}") from None

    def opening(self) -> Entry:
        """The first entry, with the budget."""
        entries = self.entries()
        if not entries:
            raise DataError(f"{self.path}: the data set has no account yet. A private run opens it; so does tauon privacy spend --budget.")
        return entries[0]

    def standing(self, entries: Sequence[Entry] | None = None) -> Standing:
        """What is spent, and what counts."""
        entries = self.entries() if entries is None else entries
        budget = _budget(entries[0])
        accountant: Accountant = entries[0].values["accountant"]
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
        refuse_epsilon(budget[0])
        refuse_delta(budget[1], examples)
        with self._writing() as entries:
            if entries:
                there = _budget(entries[0])
                if there != (float(budget[0]), float(budget[1])):
                    said = (
                        f"epsilon {budget[0]:g}, delta {budget[1]:g}, but this data set's budget was set to epsilon {there[0]:g}, delta "
                        f"{there[1]:g} on {entries[0].time[:10]} and stays. Drop the key, or write that."
                    )
                    raise RecipeError([Problem("privacy.budget", said)])
                return entries[0]
            return self._append(
                entries, "open", data=self.data, name=name, budget={"epsilon": float(budget[0]), "delta": float(budget[1])},
                examples=int(examples), unit=unit, accountant=accountant,
            )  # fmt: skip

    def reserve(
        self, run: str, releases: Iterable[Release], *, kind: str = "training", note: str = "", resumes: int | None = None
    ) -> Entry:
        """Set aside what a run may release.

        Args:
            run: its name.
            releases: all that it can release, in the order of its steps.
            kind: training, federated-round, audit, ...
            note: for a reader.
            resumes: the reservation that this very run has made before (from its manifest): given back if it is open and for the same releases.

        Raises:
            PrivacyError: over budget, with the arithmetic and what still fits.
            RunError: the run has a reservation on other data, or another one here that is not settled; or the clock went back.
        """
        plain = [r.to_json() for r in releases]
        with self._writing() as entries:
            self._must_be_open(entries)
            mine = [e for e in self.standing(entries).open if e.values["run"] == run]
            for entry in mine:
                if (entry.number, entry.values["releases"], entry.values["kind"]) == (resumes, plain, kind):
                    return entry
            if mine:
                raise RunError(
                    f"a run {run} has reserved already (entry {mine[0].number} of {self.path}) and is not settled: it was killed, set aside, or had "
                    f"other settings. Settle it first: tauon privacy settle, with its folder. Or give this run another name."
                )
            self._refuse_other_data(run)
            wanted = [Release.from_json(r) for r in plain]
            self._refuse_overspending(entries, run, wanted)
            own = total_epsilon(wanted, _budget(entries[0])[1], entries[0].values["accountant"])
            return self._append(entries, "reserve", run=run, kind=kind, note=note, releases=plain, epsilon=own, by=_who())

    def settle(self, reservation: int, releases: Iterable[Release], *, note: str = "") -> Entry:
        """Replace a reservation by what was really released. Settling twice with the same is nothing, with other releases a `RunError`."""
        plain = [r.to_json() for r in releases]
        with self._writing() as entries:
            made = next((e for e in entries if e.action == "reserve" and e.number == reservation), None)
            if made is None:
                look = f"tauon privacy ledger {self.data[:12]} --ledger {shlex.quote(str(self.folder))}"
                raise RunError(f"{self.path}: entry {reservation} is no reservation. To see them: {look}")
            before = next((e for e in entries if e.action == "settle" and e.values["of"] == reservation), None)
            if before is not None:
                if before.values["releases"] == plain:
                    return before
                raise RunError(f"{self.path}: reservation {reservation} was settled by entry {before.number}, with other releases.")
            own = total_epsilon([Release.from_json(r) for r in plain], _budget(entries[0])[1], entries[0].values["accountant"])
            return self._append(
                entries, "settle", of=reservation, run=made.values["run"], kind=made.values["kind"], note=note, releases=plain, epsilon=own,
            )  # fmt: skip

    def spend(self, releases: Iterable[Release], *, what: str, kind: str = "manual", note: str = "") -> Entry:
        """Charge something that is already clear, a noisy statistic or an analysis made elsewhere. Over budget: `PrivacyError`."""
        wanted = list(releases)
        with self._writing() as entries:
            self._must_be_open(entries)
            self._refuse_overspending(entries, what, wanted)
            own = total_epsilon(wanted, _budget(entries[0])[1], entries[0].values["accountant"])
            return self._append(
                entries, "spend", run=what, kind=kind, note=note, releases=[r.to_json() for r in wanted], epsilon=own, by=_who()
            )

    # ------------------------------------------------------------------------------------------ how it is written

    @contextmanager
    def _writing(self) -> Iterator[list[Entry]]:
        """The checked entries, while no other process writes. Ends of lines that a kill cut off are removed: nobody was told of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.exists()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as err:
            raise RunError(f"{self.path}: cannot be written: {err.strerror or err}. Check the folder, or set privacy.ledger.") from err
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as err:
                raise RunError(
                    f"{self.path}: cannot be locked: {err.strerror or err}. Put the ledger on a file system that knows flock."
                ) from err
            entries, whole = self._read()
            if whole < os.fstat(fd).st_size:
                os.ftruncate(fd, whole)
            self._fd = fd
            yield entries
        finally:
            os.close(fd)  # lets the lock go

    def _append(self, entries: list[Entry], action: str, **values: Any) -> Entry:
        now = datetime.now(UTC)
        if entries:
            last = datetime.fromisoformat(entries[-1].time)
            behind = (last - now).total_seconds()
            if behind > SKEW:
                raise RunError(
                    f"{self.path}: the last entry is of {entries[-1].time}, and this machine's clock says {now.isoformat(timespec='seconds')}: it went "
                    f"back by {behind:.0f} s. Set the clock; a ledger is written in the order of time."
                )
            now = max(now, last)
        values = json.loads(json.dumps(values, allow_nan=False))
        previous = entries[-1].hash if entries else START
        entry = Entry(len(entries) + 1, now.isoformat(timespec="microseconds"), action, values, previous, "")
        entry = replace(entry, hash=_hash(entry))
        line = (json.dumps(_body(entry) | {"hash": entry.hash}, sort_keys=True, ensure_ascii=False) + "\n").encode()
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as err:
            raise RunError(f"{self.path}: cannot be written: {err.strerror or err}. Nothing was charged; free some space.") from err
        atomic_write(self.head_path, json.dumps({"entries": entry.number, "hash": entry.hash}) + "\n")
        entries.append(entry)
        return entry

    def _must_be_open(self, entries: Sequence[Entry]) -> None:
        if not entries:
            raise RecipeError(
                [Problem("privacy.budget", f"is missing, and this is the first use of data set {self.data[:12]}. Say epsilon and delta.")]
            )

    def _refuse_other_data(self, run: str) -> None:
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.stem == self.data:
                continue
            other = Ledger(self.folder, path.stem)
            for e in other.standing().open if other.entries() else ():
                if e.values["run"] == run:
                    raise RunError(
                        f"run {run} has reserved on data set {path.stem[:12]} (entry {e.number}), and its data is now {self.data[:12]}: it changed. Put "
                        f"the old data back, or settle that run (tauon privacy settle, with its folder) and start over with --fresh."
                    )

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


_RESTORE = "Restore it from a backup; without one, the data set's budget must count as spent."


def _body(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "time": entry.time, "action": entry.action, "values": entry.values, "previous": entry.previous}


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(_body(entry), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _budget(opening: Entry) -> tuple[float, float]:
    return float(opening.values["budget"]["epsilon"]), float(opening.values["budget"]["delta"])


def _who() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


# ------------------------------------------------------------------------------------------------ finding, settling


def find_ledgers(folder: Path | str, prefix: str) -> list[Ledger]:
    """Ledgers whose data set's identity begins with `prefix`, by identity."""
    return [Ledger(folder, p.stem) for p in sorted(Path(folder).glob("*.jsonl")) if p.stem.startswith(prefix)]
