"""The ledger file: append-only JSON lines, and a `.head` file with the number of lines.

Each line has the SHA-256 of the line before it, so that an edited, removed or inserted line breaks the chain; the head shows if the end was
cut off. (Anyone who can write both files can forge both: keep the folder where runs may append and people may not edit, or compare the head
with the copy that each run has.)

Writers lock the file. Readers do not, so a read-only file system is enough: they read the head before the lines. More lines than in the head
were appended in between, which is allowed; fewer are an error. A line that a kill cut in the middle is not an entry yet. A file without lines,
and with no head or a head of 0, was left by a kill before the first line: there is no account yet.
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
"""Maximum clock difference, in seconds, of machines that share a ledger."""
RESTORE = "Restore it from a backup; without one, count the data set's budget as spent."


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
    """run, kind, releases, of (number of the reservation that it settles), key, note, ..."""
    previous: str
    hash: str

    @property
    def releases(self) -> list[Release]:
        """What was released, or may be."""
        return [Release.from_json(r) for r in self.values.get("releases", [])]


class Journal:
    """Hash-chained file of one data set, and its head."""

    def __init__(self, folder: Path | str, data: str) -> None:
        """`folder`: of all ledgers; `data`: the data set's identity, hexadecimal digits."""
        if not is_identity(data):
            raise DataError(
                f"{data!r} is not a data set identity: expected 8 to 64 hexadecimal digits, as `tauon privacy ledger` lists them."
            )
        self.folder, self.data = Path(folder), data
        self.path = self.folder / f"{data}.jsonl"
        self.head_path = self.folder / f"{data}.head"
        self._fd = -1

    # ------------------------------------------------------------------------------------------ reading

    def exists(self) -> bool:
        """Whether the data set has an account. Raises `DataError` if it had one that is now missing or damaged."""
        return bool(self.entries())

    def entries(self) -> list[Entry]:
        """Return all entries after checking the chain. Raises `DataError` naming the first damaged line."""
        return self._read()[0]

    def _read(self) -> tuple[list[Entry], int]:
        """(entries, bytes they take): fewer than the file has if the last line was cut off while being written."""
        head = self._head()  # read before the lines: appends in between can only add lines
        raw = self._raw()
        if head is None and b"\n" in raw:
            head = self._head()  # the first line was written in between: read the head again
            if head is None:
                raise DataError(f"{self.head_path} is missing, so it is not known whether the ledger is complete. {RESTORE}")
        complete = raw.rfind(b"\n") + 1
        entries = self._parsed(raw[:complete])
        known, digest = head or (0, START)
        if len(entries) < known or (known and entries[known - 1].hash != digest):
            raise DataError(f"{self.path} has {len(entries)} lines, but {known} were written: its end was cut off or replaced. {RESTORE}")
        return entries, complete

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
                raise DataError(f"{where}: not a ledger entry ({err}): it was edited. {RESTORE}") from None
            if entry.number != number or entry.previous != previous or _hash(entry) != entry.hash:
                cause = "an entry before it is missing or was inserted" if _hash(entry) == entry.hash else "it was edited"
                raise DataError(f"{where}: the hash chain is broken: {cause}. {RESTORE}")
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
            raise DataError(f"{self.path}: cannot be read: {err.strerror or err}. Check the file and its permissions.") from None

    def _refuse_gone(self) -> None:
        head = self._head()
        if head is not None and head[0] and not self.path.exists():
            raise DataError(f"{self.path} is missing, but {self.head_path.name} says that it had entries. Restore it from a backup.")

    def _head(self) -> tuple[int, str] | None:
        """(number of lines, hash of the last) from the head; None if there is no head."""
        try:
            head = json.loads(self.head_path.read_bytes())
            count, digest = int(head["entries"]), str(head["hash"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise DataError(f"{self.head_path}: cannot be read: {err.strerror or err}. Check the file and its permissions.") from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.head_path}: was edited. {RESTORE}") from None
        if count < 0:
            raise DataError(f"{self.head_path}: was edited. {RESTORE}")
        return count, digest

    # ------------------------------------------------------------------------------------------ writing

    @contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[list[Entry]]:
        """Context with the file lock: yields the checked entries, [] if there is no account (only `create` makes one). If the body raises,
        the files are as before. A last line that a kill cut off is removed: it was never acknowledged.
        """
        self._refuse_gone()
        made = self._make_folder() if create else []
        fd, blank = -1, False
        try:
            fd = self._locked(create)
            entries, complete = self._read()
            blank = not entries
            if fd >= 0 and complete < os.fstat(fd).st_size:
                os.ftruncate(fd, complete)
            self._fd = fd
            yield entries
        finally:
            self._fd = -1
            if fd >= 0:
                if blank and not os.fstat(fd).st_size:
                    self._remove_empty()
                os.close(fd)  # releases the lock
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()  # if it is empty

    def _remove_empty(self) -> None:
        with suppress(OSError, DataError):
            if self._head() == (0, START):
                self.head_path.unlink()
        with suppress(OSError):
            self.path.unlink()

    def _make_folder(self) -> list[Path]:
        """Create the ledger folder; return the folders that were created, the outermost first."""
        made = []
        try:
            for folder in [*reversed(self.folder.absolute().parents), self.folder]:
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
        except OSError as err:
            raise RunError(
                f"{self.folder}: cannot create the ledger folder: {err.strerror or err}. Set privacy.ledger or TAUON_LEDGER to another one."
            ) from err
        return made

    def _locked(self, create: bool) -> int:
        """Open and lock the file; return its descriptor, -1 if there is none. If it was removed while waiting for the lock, open it again."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o666)
            except FileNotFoundError:
                if create:
                    self._make_folder()  # another process removed the empty one
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
                    f"{self.path}: cannot be locked: {err.strerror or err}. Put the ledger on a file system that supports flock."
                ) from err
            os.close(fd)

    def _append(self, entries: list[Entry], action: str, **values: Any) -> Entry:
        """Append an entry and flush it to disk; only inside `_writing`. Raises `RunError` if that fails; then the entry does not exist."""
        values = json.loads(json.dumps(values, allow_nan=False))
        previous = entries[-1].hash if entries else START
        entry = Entry(len(entries) + 1, self._now(entries).isoformat(timespec="microseconds"), action, values, previous, "")
        entry = replace(entry, hash=_hash(entry))
        line = (json.dumps(_body(entry) | {"hash": entry.hash}, sort_keys=True, ensure_ascii=False) + "\n").encode()
        before = os.fstat(self._fd).st_size
        try:
            if not entries:
                self._write_head(0, START)  # a line without a head is an error for readers
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
            self._write_head(entry.number, entry.hash)
        except (OSError, RunError) as err:
            if self._head() != (entry.number, entry.hash):  # otherwise it was written, and only the flush of the folder failed
                self._take_back(before, err)
        entries.append(entry)
        return entry

    def _write_head(self, count: int, digest: str) -> None:
        atomic_write(self.head_path, json.dumps({"entries": count, "hash": digest}) + "\n")

    def _take_back(self, size: int, err: OSError | RunError) -> None:
        """Remove a partly written line, and raise."""
        reason = (err.strerror or err) if isinstance(err, OSError) else err
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError:
            advice = "Run `tauon privacy ledger` to see whether it was charged."
        else:
            advice = "Nothing was charged. Free some disk space and repeat."
        raise RunError(f"{self.path}: cannot be written: {reason}. {advice}") from err

    def _now(self, entries: list[Entry]) -> datetime:
        now = datetime.now(UTC)
        if not entries:
            return now
        last = datetime.fromisoformat(entries[-1].time)
        behind = (last - now).total_seconds()
        if behind > SKEW:
            raise RunError(
                f"{self.path}: the last entry is of {entries[-1].time}, but this machine's clock says {now.isoformat(timespec='seconds')}, "
                f"{behind:.0f} s earlier. Set the clock: ledger entries must be in the order of time."
            )
        return max(now, last)


def is_identity(name: str) -> bool:
    """Whether `name` has the form of a data set identity."""
    return 8 <= len(name) <= 64 and all(c in "0123456789abcdef" for c in name)


def _body(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "time": entry.time, "action": entry.action, "values": entry.values, "previous": entry.previous}


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(_body(entry), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
