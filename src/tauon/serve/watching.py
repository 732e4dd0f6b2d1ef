"""Newer weights of the served run: looked for from time to time, or on SIGHUP, and swapped in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tauon.serve.admin import change_version
from tauon.serve.loading import version_of
from tauon.serve.state import ServerState

__all__ = ["reload", "watching"]

log = logging.getLogger("tauon.serve")


@asynccontextmanager
async def watching(state: ServerState) -> AsyncIterator[None]:
    """Within the block, SIGHUP reloads, and so does a timer where `settings.watch` asks for one."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        task = loop.create_task(reload(state))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(NotImplementedError, AttributeError):  # no such signal on Windows
            loop.add_signal_handler(signal.SIGHUP, start)
    timer = loop.create_task(_every(state.settings.watch, state)) if state.settings.watch > 0 else None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


async def _every(seconds: float, state: ServerState) -> None:
    while True:
        await asyncio.sleep(seconds)
        await reload(state)


async def reload(state: ServerState) -> None:
    """Load the newest weights of the served folder and swap to them, if they differ. After an error the old ones stay, and the log says why."""
    try:
        newest = version_of(state.place)
        if newest != state.version:
            await change_version(state, state.place.resolve().name)
            log.warning("now serving %s, version %s", state.name, state.version)
    except Exception as err:  # whatever is wrong with the new weights must not stop the old ones
        log.error("the served version stays: %s", err)
