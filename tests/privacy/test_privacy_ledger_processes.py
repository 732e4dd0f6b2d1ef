"""The ledger, used by several processes at once, and killed at any write: never more is spent than there is, and it stays readable."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dp_accounting")

from ledger_samples import DATA, OWNER, RUN, filled, opened

from tauon.errors import PrivacyError, RecipeError, RunError
from tauon.privacy import journal as module
from tauon.privacy import ledger as of_ledger
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.ledger import Ledger, Opening


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path / "ledger")


def spend_in_turn(folder: Path, name: str, results: Any) -> None:
    ledger = Ledger(folder, DATA)
    done = 0
    for i in range(8):
        try:
            ledger.spend([Release(0.0, "known", known=(0.3, 0.0))], what=f"{name}-{i}")
            done += 1
        except PrivacyError:
            break
    results.put(done)


def test_two_spending_at_once_never_spend_more_than_there_is(ledger: Ledger) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=spend_in_turn, args=(ledger.folder, name, results)) for name in ("a", "b")]
    for w in workers:
        w.start()
    counts = [results.get(timeout=60) for _ in workers]
    for w in workers:
        w.join(60)
    s = ledger.standing()
    assert sum(counts) == len(ledger.entries()) - 1
    assert s.spent <= 3.0 and s.spent + 0.3 > 2.9
    one_more = [r for e in ledger.entries() for r in e.releases] + [Release(0.0, "known", known=(0.3, 0.0))]
    assert epsilon(one_more, 1e-5) > 3.0


def die_while_writing(folder: Path) -> None:
    write = os.write

    def half(fd: int, data: Any) -> int:
        write(fd, bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    module.os.write = half  # type: ignore[assignment]
    Ledger(folder, DATA).spend([Release(5.0, "full")], what="doomed")


def test_a_process_that_is_killed_while_writing_leaves_a_usable_ledger(ledger: Ledger) -> None:
    worker = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(ledger.folder,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert not ledger.path.read_bytes().endswith(b"\n")
    ledger.spend([Release(5.0, "full")], what="next")
    assert [e.values.get("run") for e in ledger.entries()] == [None, "next"]


def open_or_be_refused(folder: Path, number: int, results: Any) -> None:
    """One opens each ledger, the others are refused and take away what they made, all at the same moment."""
    of_ledger.total_epsilon = lambda releases, delta, accountant: float(sum(r.count for r in releases))  # type: ignore[assignment]
    wrong = []
    for i in range(60):
        ledger, told = Ledger(folder / str(i), DATA), Release(0.0, "known", known=(1.0, 0.0), count=1 if i % 4 == number else 99)
        try:
            ledger.spend([told], what=str(number), opening=Opening((3.0, 1e-5), 50_000))
        except PrivacyError:
            if i % 4 == number:
                wrong.append(i)
        except Exception as err:
            wrong.append(f"{i}: {type(err).__name__} {err}")
    results.put(wrong)


def test_refused_and_accepted_at_once_leave_what_was_accepted(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=open_or_be_refused, args=(tmp_path, n, results)) for n in range(4)]
    for w in workers:
        w.start()
    assert [results.get(timeout=120) for _ in workers] == [[]] * 4
    for w in workers:
        w.join(60)
    for i in range(60):
        assert [e.action for e in Ledger(tmp_path / str(i), DATA).entries()] == ["open", "spend"]


def append_in_a_loop(folder: Path, stop: Any) -> None:
    ledger = Ledger(folder, DATA)
    while not stop.is_set():
        ledger.spend([Release(500.0, "full")], what="x")


def test_a_reader_without_a_lock_never_sees_a_torn_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one that appends as fast as it can, from before the first line."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(of_ledger, "total_epsilon", lambda releases, delta, accountant: 0.1)  # time goes into writing
    read = 0
    for part in range(4):
        stop = context.Event()
        ledger = Ledger(tmp_path / str(part), DATA)
        worker = context.Process(target=open_and_append, args=(ledger.folder, stop))
        worker.start()
        before = 0
        while before < 60:
            now = len(ledger.entries())
            assert now >= before
            before, read = now, read + 1
        stop.set()
        worker.join(60)
        assert worker.exitcode == 0
    assert read > 100


def open_and_append(folder: Path, stop: Any) -> None:
    Ledger(folder, DATA).open((3.0, 1e-5), examples=50_000)
    append_in_a_loop(folder, stop)


def test_every_state_between_two_writes_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would see at each write, exactly: never an error, never fewer entries."""
    seen: list[int] = []
    reader = Ledger(tmp_path / "ledger", DATA)

    def looking(name: str) -> Any:
        whole = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            seen.append(len(reader.entries()))
            done = whole(*args, **more)
            seen.append(len(reader.entries()))
            return done

        return call

    for name in ("write", "replace", "fsync", "unlink", "ftruncate"):
        monkeypatch.setattr(os, name, looking(name))
    writer = Ledger(tmp_path / "ledger", DATA)
    with pytest.raises(RecipeError):
        writer.open((0.0, 1e-5), examples=10)
    writer.open((3.0, 1e-5), examples=50_000)
    writer.settle(writer.reserve("one", RUN).number, RUN)
    assert seen == sorted(seen) and {0, 1, 2, 3} == set(seen)


def test_a_ledger_is_read_where_nothing_may_be_written(ledger: Ledger) -> None:
    filled(ledger)
    for path in (ledger.path, ledger.head_path):
        path.chmod(0o444)
    ledger.folder.chmod(0o555)
    try:
        assert len(ledger.entries()) == 7 and ledger.standing().spent > 0
        assert {p.name for p in ledger.folder.iterdir()} == {ledger.path.name, ledger.head_path.name}
    finally:
        ledger.folder.chmod(0o755)


def die_at(folder: Path, at: int) -> None:
    count = 0

    def dying(whole: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if whole.__name__ == "write":
                    whole(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(17)
            return whole(*args, **more)

        return call

    for name in ("write", "replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    opening = Opening((3.0, 1e-5), 50_000)
    ledger = Ledger(folder, DATA)
    ledger.settle(ledger.reserve("one", RUN, owner=OWNER, opening=opening).number, RUN)
    os._exit(0)


def test_killed_at_any_write_of_a_new_ledger_the_same_again_goes_on(tmp_path: Path) -> None:
    at = 0
    code: int | None = 17
    while code == 17:
        at += 1
        ledger = Ledger(tmp_path / str(at) / "ledger", DATA)
        worker = multiprocessing.get_context("fork").Process(target=die_at, args=(ledger.folder, at))
        worker.start()
        worker.join(60)
        code = worker.exitcode
        ledger.entries()
        made = ledger.reserve("one", RUN, owner=OWNER, opening=Opening((3.0, 1e-5), 50_000))
        ledger.settle(made.number, RUN)
        assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle"]
    assert at > 15 and code == 0


def test_what_cannot_be_written_is_not_charged(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at every write of an entry: an error, and the ledger as it was."""
    before = ledger.path.read_bytes(), ledger.head_path.read_bytes()
    for name, at in (("write", 1), ("fsync", 1), ("write", 2), ("fsync", 2), ("replace", 1)):
        count, there = 0, getattr(os, name)

        def full(*args: Any, whole: Any = there, at: int = at, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(28, "No space left on device")
            return whole(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(RunError, match=r"Nothing was charged\. Free some disk space"):
                ledger.spend([Release(50.0, "full")], what="x")
        assert (ledger.path.read_bytes(), ledger.head_path.read_bytes()) == before, (name, at)
    assert ledger.spend([Release(50.0, "full")], what="x").number == 2
