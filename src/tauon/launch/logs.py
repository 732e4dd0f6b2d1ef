"""The logs of all ranks in one place: files to read later, and lines on the console while it runs, prefixed by rank.

Rank 0's lines have no prefix, others have `[rank k]`. Error messages and tracebacks are not printed on the console: five ranks failing
for one reason would print five, and the launcher prints it once. The files have everything.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tauon.launch.worker import HEADER

__all__ = ["Console", "Follower", "error_in", "log_path", "print_line"]

_ERROR = re.compile(r"^(?:\x1b\[[0-9;]*m)*error(?:\x1b\[[0-9;]*m)*: ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = "Traceback (most recent call last)"
_LONGEST = 40
"""Maximum lines of an error message on the console; the rest is in the file."""


def log_path(folder: Path, rank: int) -> Path:
    """Path of the log of a rank."""
    return folder / f"rank-{rank}.log"


def print_line(text: str, rank: int, *, json: bool = False) -> None:
    """Write to the terminal. With --json only rank 0's objects go to stdout, so that a script can parse it."""
    out = sys.stderr if json and not (rank == 0 and text.startswith("{")) else sys.stdout
    out.write(text + "\n")
    out.flush()


class Console:
    """Merges the lines of many ranks. `write` is called with (text, rank) for each line."""

    def __init__(self, write: Callable[[str, int], None]) -> None:
        self._write = write
        self._held: set[int] = set()

    def line(self, rank: int, text: str) -> None:
        """Add one line, without its newline."""
        if text.startswith(HEADER):
            self._held.discard(rank)
            return
        if _TRACEBACK in text or _ERROR.match(text):
            self._held.add(rank)
        if rank not in self._held:
            self._write(text if rank == 0 else f"[rank {rank}] {text}", rank)


class Follower:
    """Follows `rank-*.log` from their current end, and passes each complete line to a console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self._at = {path: path.stat().st_size for path in folder.glob("rank-*.log")}
        self._rest: dict[Path, bytes] = {}
        self._done = threading.Event()

    @contextlib.contextmanager
    def following(self, seconds: float = 0.1) -> Iterator[None]:
        """Context with a thread that follows the logs; the rest is read at the end."""
        thread = threading.Thread(target=self._run, args=(seconds,), name="logs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            self.read()

    def _run(self, seconds: float) -> None:
        while not self._done.wait(seconds):
            self.read()

    def read(self) -> None:
        """Read the text written since the last call."""
        for path in sorted(self.folder.glob("rank-*.log"), key=rank_of):
            with open(path, "rb") as file:
                file.seek(self._at.get(path, 0))
                new = file.read()
            self._at[path] = self._at.get(path, 0) + len(new)
            *lines, self._rest[path] = (self._rest.get(path, b"") + new).split(b"\n")
            for line in lines:
                self.console.line(rank_of(path), line.decode("utf-8", "replace").rstrip("\r"))


def rank_of(path: Path) -> int:
    """Rank of a log file; -1 if the name is not a log's."""
    number = path.stem.removeprefix("rank-")
    return int(number) if number.isdigit() else -1


def error_in(path: Path) -> str:
    """Error of a worker from its log: the text after `error:`, otherwise its traceback, otherwise its last lines; "" if empty."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    starts = [i for i, text in enumerate(lines) if text.startswith(HEADER)]
    lines = [_COLOUR.sub("", text).rstrip() for text in lines[starts[-1] + 1 if starts else 0 :]]
    said = [i for i, text in enumerate(lines) if _ERROR.match(text)]
    if said:
        return "\n".join(lines[said[-1] : said[-1] + _LONGEST]).removeprefix("error: ")
    traced = [i for i, text in enumerate(lines) if _TRACEBACK in text]
    found = lines[traced[0] :] if traced else [text for text in lines if text][-5:]
    cut = [*found[: _LONGEST // 2], "  ...", *found[-_LONGEST // 2 :]] if len(found) > _LONGEST else found
    return "\n".join(cut)
