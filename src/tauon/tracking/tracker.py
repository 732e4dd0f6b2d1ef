"""Trackers: adapters that show a run's numbers in another tool during the run. The family's base class, and a CSV file.

A tracker is only a copy: the event log is the record, and a tracker that fails must not stop a run (`guard`).
Each member is one file; its library is imported when the tracker is built.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tauon.config import Registered, register
from tauon.errors import RecipeError, RunError

__all__ = ["CsvConfig", "Tracker", "TrackerConfig", "flatten", "guard"]


class Tracker(Protocol):
    """Interface of a tracker. Steps never decrease, except that a resumed run continues from its checkpoint."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of one step."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """Log numbers of the whole run, at its end."""
        ...

    def close(self) -> None:
        """Send buffered values."""
        ...


class TrackerConfig(Registered, family="tracker"):
    """Base class of trackers: where a run's numbers are shown besides its own event log."""

    def build(self, run_folder: Path, name: str, recipe: Mapping[str, Any]) -> Tracker:
        """Return a tracker for the run `name`; with the same folder again, it continues the same curves.

        `recipe` is the whole recipe as plain data. Raises `MissingExtra` when the library is not installed.
        """
        raise NotImplementedError(type(self).__name__)


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the dotted keys of a tree of mappings and lists.

    >>> flatten({"optim": {"kind": "adamw", "betas": [0.9, 0.95]}})
    {'optim.kind': 'adamw', 'optim.betas.0': 0.9, 'optim.betas.1': 0.95}
    """
    if isinstance(tree, Mapping):
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, (list, tuple)):
        items = [(str(i), v) for i, v in enumerate(tree)]
    else:
        return {path: tree}
    return {key: value for k, v in items for key, value in flatten(v, f"{path}.{k}" if path else k).items()}


def guard(tracker: Tracker, warn: Callable[[str], None]) -> Tracker:
    """Wrap a tracker: its first failure (a server that is down, a full disk) calls `warn` and turns it off."""
    return _Guarded(tracker, warn)


class _Guarded:
    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._warn = warn

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda tracker: tracker.log(step, values))

    def summary(self, values: Mapping[str, float]) -> None:
        self._try(lambda tracker: tracker.summary(values))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())
        self._tracker = None

    def _try(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as err:
            name = type(self._tracker).__name__
            self._tracker = None
            self._warn(
                f"{name} failed and is turned off for the rest of the run ({type(err).__name__}: {err}); the event log has everything"
            )


@register("csv")
class CsvConfig(TrackerConfig):
    """A CSV file in the run's folder with columns step, name, value: one row per number, so that new names need no new column."""

    file: str = "metrics.csv"
    """Name of the file inside the run's folder."""

    def build(self, run_folder: Path, name: str, recipe: Mapping[str, Any]) -> Tracker:
        if not self.file or Path(self.file).name != self.file:
            raise RecipeError(f"csv tracker: file is {self.file!r}, expected a plain file name such as metrics.csv")
        return CsvTracker(Path(run_folder) / self.file)


class CsvTracker:
    """Rows are appended and flushed at each step. A resumed run first drops the killed attempt's rows from its own first step on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.TextIOWrapper | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row per value; `RunError` if the file cannot be written."""
        self._write([(step, name, float(value)) for name, value in values.items()], step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Write rows without a step."""
        self._write([("", name, float(value)) for name, value in values.items()], None)

    def close(self) -> None:
        """Close the file; a later `log` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, rows: list[tuple[int | str, str, float]], first_step: int | None) -> None:
        try:
            if self._file is None:
                kept = self._rows_before(first_step)
                self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - stays open between steps
                if not kept:
                    csv.writer(self._file).writerow(("step", "name", "value"))
            csv.writer(self._file).writerows(rows)
            self._file.flush()
        except OSError as err:
            raise RunError(f"{self.path}: cannot be written: {err.strerror or err}. Free disk space, or remove the csv tracker.") from err

    def _rows_before(self, step: int | None) -> bool:
        """Drop rows of `step` and later, summaries and an incomplete last row; return False if there is no file to continue."""
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        lines = self.path.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines[1:-1] if (at := line.split(",", 1)[0]).isdigit() and (step is None or int(at) < step)]
        if len(kept) != len(lines) - 2 or lines[-1]:
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("\n".join([lines[0], *kept, ""]), encoding="utf-8", newline="")
            os.replace(temporary, self.path)
        return True
