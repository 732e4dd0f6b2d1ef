"""What is launched: a `tauon` command on a recipe, and where it leaves its records. Knows no place to run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tauon.artifacts import Run, atomic_write

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """One command that every worker runs: `tauon VERB RECIPE --root ROOT OPTIONS`.

    >>> Job("first", "train", "name: first", Path("/runs"), options=("--quiet",)).command("r.yaml", python="python3")
    ['python3', '-m', 'tauon', 'train', 'r.yaml', '--root', '/runs', '--quiet']
    """

    name: str
    """Name of the run, and of its folder."""
    verb: str
    """`run` or `train`."""
    recipe: str
    """The complete recipe as YAML: every worker reads the same text, whatever becomes of the file it came from."""
    root: Path
    """Folder of the runs."""
    options: tuple[str, ...] = ()
    """Further arguments: --quiet, --json."""
    device: str = "auto"
    """`train.device` of the recipe: whether GPUs count."""
    words: tuple[str, ...] = field(default=(), compare=False)
    """The program of a worker, in front of `options`; () for Tauon itself. For tests of launchers."""

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return self.root.absolute() / self.name

    @property
    def logs(self) -> Path:
        """Where `rank-<k>.log` of each worker lies."""
        return self.folder / "logs"

    @property
    def recipe_path(self) -> Path:
        """Where `write` puts the recipe for the workers."""
        return self.folder / "launch" / "recipe.yaml"

    def command(self, recipe: str | None = None, *, root: str | None = None, python: str = sys.executable) -> list[str]:
        """A worker's command. `recipe` and `root` where the worker sees them."""
        if self.words:
            return [*self.words, *self.options]
        where = [recipe or str(self.recipe_path), "--root", root or str(self.root.absolute())]
        return [python, "-m", "tauon", self.verb, *where, *self.options]

    def shell(self, command: Sequence[str] | None = None) -> str:
        """The command as a line for a shell."""
        return shlex.join(command if command is not None else self.command())

    def write(self) -> Path:
        """Put the recipe where the workers read it, and make the folder of their logs.

        Raises `RunError` where the folder cannot be written, or another process trains in it: that one's workers, started again,
        would read this recipe.
        """
        with Run.open(self.folder):
            for folder in (self.recipe_path.parent, self.logs):
                folder.mkdir(exist_ok=True)
            atomic_write(self.recipe_path, self.recipe)
        return self.recipe_path
