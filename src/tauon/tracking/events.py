"""The event log: one JSON object per line, append-only, readable while it grows. Every number that a run shows comes from it.

`log` only appends to a queue; a thread turns events into text and writes them at least every half second, so a killed
process loses less than a second. Independent of event kinds, except `resume`, which ends a killed attempt (`timeline`).
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tauon.errors import DataError, RunError

__all__ = ["EventLog", "nothing_logged", "read_events", "timeline"]

_PLAIN = frozenset((int, float, str, bool, type(None)))


class EventLog:
    """Append events to the file `path`; a context manager. Safe to share between threads; a forked child may continue to use it.

    A child that ends with `os._exit` (every worker of `multiprocessing` does) must `flush` first. Events that cannot be written
    (disk full) are kept in memory and tried again; `flush` and `close` then raise, `log` never does.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
    >>> with EventLog(path) as log:
    ...     log.log("step", step=1, loss=float("inf"))
    >>> [(e["kind"], e["step"], e["loss"]) for e in read_events(path)]
    [('step', 1, inf)]
    """

    def __init__(self, path: Path | str, *, flush_seconds: float = 0.5) -> None:
        if not flush_seconds > 0:
            raise ValueError(f"flush_seconds is {flush_seconds}: expected more than 0")
        self.path = Path(path)
        self.flush_seconds = flush_seconds
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            _mend(self._fd)
        except OSError as err:
            raise RunError(
                f"{self.path}: cannot be written: {err.strerror or err}. Check that the folder is writable, or choose another one."
            ) from err
        self._fresh()
        os.register_at_fork(after_in_child=partial(_fresh_in_child, weakref.ref(self)))  # cannot be unregistered, hence weak
        atexit.register(self.close)

    def _fresh(self) -> None:
        """Return the state of an unused log. In a forked child: the queue is the parent's to write, the thread does not exist."""
        self._queue: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._unwritten = b""
        self._writing = threading.Lock()
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, kind: str, /, **values: Any) -> None:
        """Record an event, with the time. Values: numbers, strings, lists, mappings, tensors and arrays of few elements.

        Costs about a microsecond: a tensor on an accelerator is copied there and read later, by the thread. The names
        `time` and `kind` are reserved (`ValueError`).
        """
        for value in values.values():
            if value.__class__ not in _PLAIN:
                values = {k: _freeze(v) for k, v in values.items()}  # the caller may change it before it is written
                break
        if "kind" in values or "time" in values:
            raise ValueError("an event's own values cannot be called 'kind' or 'time'; rename them")
        self._queue.append((time.time(), kind, values))
        if self._thread is None:
            self._start()

    def flush(self) -> None:
        """Write everything that was logged to the operating system. `RunError` if that fails."""
        try:
            self._drain()
        except OSError as err:
            raise RunError(
                f"{self.path}: events cannot be written: {err.strerror or err}. They are kept in memory and tried again. Free disk space."
            ) from err

    def close(self) -> None:
        """Flush, force to disk, stop the thread. Closing twice is safe; an event logged afterwards is a `RunError`."""
        if self._fd < 0:
            return
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        try:
            self.flush()
            os.fsync(self._fd)
        finally:
            with self._writing:
                os.close(self._fd)
                self._fd = -1
            self._thread = None
            atexit.unregister(self.close)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        with self._starting:
            if self._fd < 0:
                raise RunError(f"{self.path}: the event log is closed. Log before close, or open it again.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_regularly, args=(self._stop,), name="events", daemon=True)
                self._thread.start()

    def _write_regularly(self, stop: threading.Event) -> None:
        while not stop.wait(self.flush_seconds):
            with suppress(OSError):  # kept and tried again; flush and close raise
                self._drain()

    def _drain(self) -> None:
        with self._writing:
            queue, lines = self._queue, []
            while queue:
                lines.append(_line(*queue.popleft()))
            self._unwritten += b"".join(lines)
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten) :]


class _NothingLogged(EventLog):
    """An event log of a process that does not write."""

    def __init__(self) -> None:
        """No file."""

    def log(self, kind: str, /, **values: Any) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


@contextmanager
def nothing_logged() -> Iterator[EventLog]:
    """Replaces `EventLog` in processes other than rank 0."""
    yield _NothingLogged()


def _fresh_in_child(ref: weakref.ref[EventLog]) -> None:
    log = ref()
    if log is not None:
        log._fresh()


def _mend(fd: int) -> None:
    """Cut off the incomplete last line of a killed process, so that every line of the file is JSON."""
    size = os.fstat(fd).st_size
    end, tail = size, b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - 65536)
        tail = os.pread(fd, end - start, start) + tail
        end = start
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        os.ftruncate(fd, size - len(last))
    else:
        os.write(fd, b"\n")


# ---------------------------------------------------------------------------------------------- values as JSON


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ESCAPED = re.compile(r"\\*(?:NaN|-?Infinity)")


def _freeze(value: Any) -> Any:
    """Return a copy that is independent of the caller's later changes; a tensor that is not ready yet stays a tensor."""
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {k: _freeze(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_freeze(v) for v in value]
    device = getattr(value, "device", None)
    if hasattr(value, "detach") and getattr(device, "type", "cpu") != "cpu":
        return value.detach().clone()  # .item() here would wait for the device
    return value.tolist() if hasattr(value, "tolist") else value


def _plain(value: Any) -> Any:
    """Return JSON data for any value; values that JSON does not support become text: a log must not stop a run."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return "\\" + value if _ESCAPED.fullmatch(value) else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else _plain(str(value))


def _line(when: float, kind: str, values: dict[str, Any]) -> bytes:
    try:
        plain = _plain(values)
    except Exception as err:  # for example a tensor whose device has failed: the other events must still be written
        plain = {"unreadable": f"{type(err).__name__}: {err}"}
    record = {"time": round(when, 6), "kind": str(kind)} | plain
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _restore(value: Any) -> Any:
    if isinstance(value, str):
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        return value[1:] if value.startswith("\\") and _ESCAPED.fullmatch(value) else value
    if isinstance(value, dict):
        return {k: _restore(v) for k, v in value.items()}
    return [_restore(v) for v in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------- reading


def read_events(path: Path | str, *, warn: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Return every event in the file, oldest first; each has `time` (seconds since 1970) and `kind`.

    An incomplete last line (the writer is at work, or was killed) is skipped. A damaged line in the middle of the file
    is skipped too, with a message to `warn` (default: `warnings.warn`). `DataError` if the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}. A run's log is its events.jsonl.") from err
    events = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record or "time" not in record:
                raise ValueError("not an event")
        except (ValueError, RecursionError):
            if number < len(lines):
                text = f"{path}: line {number} is damaged and was skipped: {line[:80]!r}"
                (warn or (lambda t: warnings.warn(t, RuntimeWarning, stacklevel=3)))(text)
            continue
        events.append(_restore(record))
    return events


def timeline(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events as if the run had never been killed: after `{"kind": "resume", "step": n}`, earlier events of later steps are dropped.

    Events without a `step` are kept.

    >>> killed = [{"kind": "step", "step": s} for s in (1, 2, 3)]
    >>> [e["step"] for e in timeline([*killed, {"kind": "resume", "step": 2}, {"kind": "step", "step": 3}])]
    [1, 2, 2, 3]
    """
    kept: list[dict[str, Any]] = []
    for event in events:
        if event.get("kind") == "resume" and isinstance(event.get("step"), (int, float)):
            kept = [e for e in kept if not (isinstance(e.get("step"), (int, float)) and e["step"] > event["step"])]
        kept.append(dict(event))
    return kept
