"""Progress reports of long steps: code anywhere calls `report`, independent of the listener.

A listener is any callable `(what, done, total)`, total None if unknown. `bar()` is one that draws with rich.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Progress", "bar", "listening", "report"]

Progress = Callable[[str, int, int | None], None]

_listener: ContextVar[Progress | None] = ContextVar("tauon_data_progress", default=None)


def report(what: str, done: int, total: int | None = None) -> None:
    """Report that `done` of `total` units (bytes, documents) of `what` are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextlib.contextmanager
def listening(listener: Progress | None) -> Iterator[None]:
    """Within the block, reports go to `listener`; None keeps the enclosing block's listener."""
    if listener is None:
        yield
        return
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """A rich progress bar on standard error, one line for each `what`, removed when the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # fmt: skip
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as drawn:
        lines: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in lines:
                lines[what] = drawn.add_task(what, total=total)
            drawn.update(lines[what], completed=done, total=total)

        yield show
