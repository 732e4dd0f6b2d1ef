"""Every error that Tauon raises on purpose, as one tree, so that a caller can catch as much of it as it wants:

    TauonError                  exit code
    ├── RecipeError                 2      the recipe is wrong: every problem found, at once
    ├── DataError                   3      a file, a row, a value in the data is wrong
    │   └── ChecksumError           3      bytes on disk are not the bytes that were written
    ├── CheckpointError             4      a checkpoint is incomplete, missing, or of another model
    ├── RunError                    5      the run folder is in use, locked, or of another recipe
    ├── TrainingError               6      training cannot continue (loss is not finite, out of memory)
    ├── MissingExtra                7      an optional library is not installed
    ├── LaunchError                 8      workers cannot be started (no scheduler, a port taken), a site of a federation is not let in
    ├── PrivacyError                9      an audit contradicts the privacy guarantee; a privacy budget is exceeded
    └── Interrupted               130      Ctrl-C or SIGTERM: everything was saved first

A message says what was got, what was expected, and how to fix it. `assert` is for our own bugs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "ChecksumError",
    "DataError",
    "Interrupted",
    "LaunchError",
    "MissingExtra",
    "PrivacyError",
    "Problem",
    "RecipeError",
    "RunError",
    "TauonError",
    "TrainingError",
]


class TauonError(Exception):
    """Root of the tree. `exit_code` is the exit code of the command line."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One problem in a recipe: `path` is the dotted key ("" for the whole recipe), `message` says what is wrong and how to fix it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(TauonError):
    """The recipe is wrong. `problems` lists all problems, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, where: str = "") -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        head = f"{where}: " if where else ""
        if len(self.problems) == 1:
            text = f"{head}{self.problems[0]}"
        else:
            text = f"{head}{len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(text)


class DataError(TauonError):
    """Data cannot be read or does not match the recipe."""

    exit_code = 3


class ChecksumError(DataError):
    """Bytes on disk are not the bytes that were written or published."""


class CheckpointError(TauonError):
    """A checkpoint is incomplete, missing, or belongs to another model."""

    exit_code = 4


class RunError(TauonError):
    """A run folder is in use by another process, or has another recipe."""

    exit_code = 5


class TrainingError(TauonError):
    """Training cannot continue; the last complete checkpoint is kept."""

    exit_code = 6


class MissingExtra(TauonError):
    """An optional library is missing; the message says how to install it."""

    exit_code = 7

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs: pip install 'tauon[{extra}]'")


class LaunchError(TauonError):
    """Workers cannot be started as the recipe asks; nothing ran."""

    exit_code = 8


class PrivacyError(TauonError):
    """A privacy guarantee does not hold, or would not: an audit contradicts it, or a budget is exceeded."""

    exit_code = 9


class Interrupted(TauonError):
    """Stopped from outside (Ctrl-C, SIGTERM). Everything was saved first; run the same command again to continue."""

    exit_code = 130
