"""How a ledger lies on disk: a file of JSON lines that is only appended to, and a `.head` that says how many lines there are.

Each line has the SHA-256 of the line before it, so that an edited, removed or inserted line breaks the chain; the head shows that an end was
cut off. (Who can write both files can forge both; keep the folder where runs may append and people may not edit, or compare the head with the
copy that each run keeps.)

Writers lock the file. Readers do not, so that a read-only file system will do: they read the head before the lines, and lines that were
appended meanwhile are more than the head says, which is allowed; fewer never are. A line that a kill cut in the middle was no entry yet.
A file without any line, and without a head or with one that counts none, is what a kill left before the first line: there is no account yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tauon.artifacts import atomic_write
from tauon.errors import DataError, RunError
from tauon.privacy.accounting import Release

__all__ = ["Entry", "Journal", "is_identity"]

START = "0" * 64
SKEW = 2.0
"""Seconds by which clocks of machines that share a ledger may differ."""
RESTORE = "Restore it from a backup; without one, the data set's budget must count as spent."


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
    """What it says: run, kind, releases, of (the number of the reservation that it settles), key, note, ..."""
    previous: str
    hash: str

    @property
    def releases(self) -> list[Release]:
        """What was, or may be, released."""
        return [Release.from_json(r) for r in self.values.get("releases", [])]


class Journal:
    """The chained file of one data set, and its head."""

    def __init__(self, folder: Path | str, data: str) -> None:
        """`folder`: of all ledgers; `data`: the data set's identity, hexadecimal digits."""
        if not is_identity(data):
            raise DataError(f"{data!r} is no identity of a data set: expected 8 to 64 hexadecimal digits, as data_identity gives them.")
        self.folder, self.data = Path(folder), data
        self.path = self.folder / f"{data}.jsonl"
        self.head_path = self.folder / f"{data}.head"
        self._fd = -1

    # ------------------------------------------------------------------------------------------ reading

    def exists(self) -> bool:
        """Whether the data set has an account. `DataError` where there was one, and it is gone or damaged."""
        return bool(self.entries())

    def entries(self) -> list[Entry]:
        """All lines, the chain checked. Raises `DataError` naming the first line that is not what was written."""
        return self._read()[0]

    def _read(self) -> tuple[list[Entry], int]:
        """(entries, bytes that hold them): less than the file has where the last line was cut while being written."""
        head = self._head()  # before the lines: those that are appended meanwhile make them more, never fewer
        raw = self._raw()
        if head is None and b"\n" in raw:
            head = self._head()  # the first line was written in between: its head is older than it
            if head is None:
                raise DataError(f"{self.head_path}: is gone, so nobody knows whether the ledger is whole. {RESTORE}")
        whole = raw.rfind(b"\n") + 1
        entries = self._parsed(raw[:whole])
        known, digest = head or (0, START)
        if len(entries) < known or (known and entries[known - 1].hash != digest):
            raise DataError(
                f"{self.path}: ends after line {len(entries)}, and {known} were written: its end was cut off or replaced. {RESTORE}"
            )
        return entries, whole

    def _parsed(self, lines: bytes) -> list[Entry]:
        entries: list[Entry] = []
        previous = START
        for number, line in enumerate(lines.splitlines(), start=1):
            where = f"{self.path}, line {number}"
            try:
                values = json.loads(line)
                entry = Entry(
                    values["number"], values["time"], values["action"], dict(values["values"]), values["previous"], values["hash"]
                )
            except (ValueError, KeyError, TypeError) as err:
                raise DataError(f"{where}: is no entry of a ledger ({err}). It was edited: {RESTORE}") from None
            if entry.number != number or entry.previous != previous or _hash(entry) != entry.hash:
                what = "an entry is missing or was put in before it" if _hash(entry) == entry.hash else "it was edited"
                raise DataError(f"{where}: the hash chain is broken: {what}. {RESTORE}")
            entries.append(entry)
            previous = entry.hash
        return entries

    def _raw(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._refuse_gone()
            return b""
        except OSError as err:
            raise DataError(f"{self.path}: cannot be read: {err.strerror or err}. Check the file and its rights.") from None

    def _refuse_gone(self) -> None:
        head = self._head()
        if head is not None and head[0] and not self.path.exists():
            raise DataError(f"{self.path}: is gone, and {self.head_path.name} says that it held entries. Restore it from a backup.")

    def _head(self) -> tuple[int, str] | None:
        """(lines, hash of the last) as the head says; None where there is none."""
        try:
            head = json.loads(self.head_path.read_bytes())
            found = int(head["entries"]), str(head["hash"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise DataError(f"{self.head_path}: cannot be read: {err.strerror or err}. Check the file and its rights.") from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.head_path}: was edited. {RESTORE}") from None
        if found[0] < 0:
            raise DataError(f"{self.head_path}: was edited. {RESTORE}")
        return found

    # ------------------------------------------------------------------------------------------ writing

    @contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[list[Entry]]:
        """The checked entries, while no other process writes; [] where there is no account, which only `create` makes. What is refused
        inside leaves nothing that was not there before. Ends of lines that a kill cut off are removed: nobody was told of them.
        """
        self._refuse_gone()
        made = self._make_folder() if create else []
        fd, blank = -1, False
        try:
            fd = self._locked(create)
            entries, whole = self._read()
            blank = not entries
            if fd >= 0 and whole < os.fstat(fd).st_size:
                os.ftruncate(fd, whole)
            self._fd = fd
            yield entries
        finally:
            self._fd = -1
            if fd >= 0:
                if blank and not os.fstat(fd).st_size:
                    self._remove_empty()
                os.close(fd)  # lets the lock go
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()  # where it is empty

    def _remove_empty(self) -> None:
        with suppress(OSError, DataError):
            if self._head() == (0, START):
                self.head_path.unlink()
        with suppress(OSError):
            self.path.unlink()

    def _make_folder(self) -> list[Path]:
        """Make the folder of the ledgers; those that were made for it, the outermost first."""
        made = []
        try:
            for folder in [*reversed(self.folder.absolute().parents), self.folder]:
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
        except OSError as err:
            raise RunError(
                f"{self.folder}: the folder of the ledgers cannot be made: {err.strerror or err}. Set privacy.ledger or TAUON_LEDGER."
            ) from err
        return made

    def _locked(self, create: bool) -> int:
        """The open file, locked; -1 where there is none. One that was removed while we waited for it is opened anew."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o666)
            except FileNotFoundError:
                if create:
                    self._make_folder()  # another process took away the empty one
                    continue
                return -1
            except OSError as err:
                raise RunError(
                    f"{self.path}: cannot be written: {err.strerror or err}. Check the folder, or set privacy.ledger or TAUON_LEDGER."
                ) from err
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except FileNotFoundError:
                pass
            except OSError as err:
                os.close(fd)
                raise RunError(
                    f"{self.path}: cannot be locked: {err.strerror or err}. Put the ledger on a file system that knows flock."
                ) from err
            os.close(fd)

    def _append(self, entries: list[Entry], action: str, **values: Any) -> Entry:
        """One more entry, on disk; inside `_writing`. `RunError` where it cannot be written: then it is not there."""
        values = json.loads(json.dumps(values, allow_nan=False))
        previous = entries[-1].hash if entries else START
        entry = Entry(len(entries) + 1, self._now(entries).isoformat(timespec="microseconds"), action, values, previous, "")
        entry = replace(entry, hash=_hash(entry))
        line = (json.dumps(_body(entry) | {"hash": entry.hash}, sort_keys=True, ensure_ascii=False) + "\n").encode()
        before = os.fstat(self._fd).st_size
        try:
            if not entries:
                self._write_head(0, START)  # a line without any head is never right
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
            self._write_head(entry.number, entry.hash)
        except (OSError, RunError) as err:
            if self._head() != (entry.number, entry.hash):  # else it is there; its name in the folder was not forced to disk, no more
                self._take_back(before, err)
        entries.append(entry)
        return entry

    def _write_head(self, count: int, digest: str) -> None:
        atomic_write(self.head_path, json.dumps({"entries": count, "hash": digest}) + "\n")

    def _take_back(self, size: int, err: OSError | RunError) -> None:
        """Remove a line that was not written whole, and raise."""
        reason = (err.strerror or err) if isinstance(err, OSError) else err
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError:
            said = "Whether it was charged, `tauon privacy ledger` shows."
        else:
            said = "Nothing was charged; free some space."
        raise RunError(f"{self.path}: cannot be written: {reason}. {said}") from err

    def _now(self, entries: list[Entry]) -> datetime:
        now = datetime.now(UTC)
        if not entries:
            return now
        last = datetime.fromisoformat(entries[-1].time)
        behind = (last - now).total_seconds()
        if behind > SKEW:
            raise RunError(
                f"{self.path}: the last entry is of {entries[-1].time}, and this machine's clock says {now.isoformat(timespec='seconds')}: it went "
                f"back by {behind:.0f} s. Set the clock; a ledger is written in the order of time."
            )
        return max(now, last)


def is_identity(name: str) -> bool:
    """Whether a data set can be called so."""
    return 8 <= len(name) <= 64 and all(c in "0123456789abcdef" for c in name)


def _body(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "time": entry.time, "action": entry.action, "values": entry.values, "previous": entry.previous}


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(_body(entry), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
