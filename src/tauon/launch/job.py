"""A job to launch: a `tauon` command on a recipe, and the folder of its run. Independent of launchers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tauon.artifacts import RunFolder, atomic_write

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """The command that every worker runs: `tauon VERB RECIPE --root ROOT OPTIONS`.

    >>> Job("first", "train", "name: first", Path("/runs"), options=("--quiet",)).command("r.yaml", python="python3")
    ['python3', '-m', 'tauon', 'train', 'r.yaml', '--root', '/runs', '--quiet']
    """

    name: str
    """Name of the run, and of its folder."""
    verb: str
    """`run` or `train`."""
    recipe: str
    """The complete recipe as YAML: every worker reads the same text, also if the original file changes."""
    root: Path
    """Folder of the runs."""
    options: tuple[str, ...] = ()
    """Additional arguments: --quiet, --json."""
    device: str = "auto"
    """`train.device` of the recipe: whether GPUs are used."""
    words: tuple[str, ...] = field(default=(), compare=False)
    """Program of a worker, before `options`; () for Tauon itself. For tests of launchers."""

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return self.root.absolute() / self.name

    @property
    def logs(self) -> Path:
        """Folder of `rank-<k>.log` of each worker."""
        return self.folder / "logs"

    @property
    def recipe_path(self) -> Path:
        """Path of the workers' recipe, which `write` writes."""
        return self.folder / "launch" / "recipe.yaml"

    def command(self, recipe: str | None = None, *, root: str | None = None, python: str = sys.executable) -> list[str]:
        """Command of a worker. `recipe` and `root`: paths on the worker."""
        if self.words:
            return [*self.words, *self.options]
        where = [recipe or str(self.recipe_path), "--root", root or str(self.root.absolute())]
        return [python, "-m", "tauon", self.verb, *where, *self.options]

    def shell(self, command: Sequence[str] | None = None) -> str:
        """The command as a line for a shell."""
        return shlex.join(command if command is not None else self.command())

    def write(self) -> Path:
        """Write the workers' recipe, and create the log folder.

        Raises `RunError` if the folder cannot be written, or another process trains in it: its workers would read this recipe after a
        restart.
        """
        with RunFolder.open(self.folder):
            for folder in (self.recipe_path.parent, self.logs):
                folder.mkdir(exist_ok=True)
            atomic_write(self.recipe_path, self.recipe)
        return self.recipe_path
