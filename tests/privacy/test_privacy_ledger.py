"""The ledger: what is composed, what is refused and with which arithmetic, and that nothing can be taken out of it unnoticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dp_accounting")

from tauon.artifacts import RunFolder
from tauon.config import parse
from tauon.data import SourceConfig
from tauon.errors import DataError, PrivacyError, RecipeError, RunError
from tauon.privacy import journal as module
from tauon.privacy import ledger as of_ledger
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.charge import first_steps, settle_run, steps_done
from tauon.privacy.ledger import SEEDED, Ledger, Opening, Owner, data_identity, find_ledgers, ledger_for, user_folder
from tauon.tracking import EventLog

DATA, OTHER = "a" * 64, "b" * 64
RUN = [Release(1.0, "poisson", 0.01, 500)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger", DATA)
    made.open((3.0, 1e-5), examples=50_000, name="people")
    return made


def test_runs_are_composed_together_not_added(ledger: Ledger) -> None:
    one = ledger.reserve("one", RUN)
    ledger.settle(one.number, RUN)
    ledger.reserve("two", RUN)
    s = ledger.standing()
    alone, both = epsilon(RUN, 1e-5), epsilon(RUN + RUN, 1e-5)
    assert s.spent == pytest.approx(alone)
    assert s.reserved == pytest.approx(both) and both < 1.7 * alone
    assert s.left == pytest.approx(3.0 - both)
    assert [e.values["run"] for e in s.open] == ["two"]
    assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle", "reserve"]


def test_over_budget_is_refused_with_the_arithmetic_and_nothing_is_written(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve("one", RUN).number, RUN)
    ledger.reserve("two", RUN)
    before = ledger.path.read_bytes()
    big = [Release(0.8, "poisson", 0.02, 1000)]
    with pytest.raises(PrivacyError) as caught:
        ledger.reserve("three", big)
    said = str(caught.value)
    for part in ("three cannot start", "budget of data set aaaaaaaaaaaa is epsilon 3 at delta 1e-05", "spent: ", "with open reservations",
                 f"{epsilon(big, 1e-5):.4g} alone", "> 3", "two (entry 4)", "tauon privacy settle"):  # fmt: skip
        assert part in said, said
    assert ledger.path.read_bytes() == before
    more = float(re.findall(r"fits with ([\d.]+) times the noise", said)[0])
    fits = [Release(0.8 * more * 1.005, "poisson", 0.02, 1000)]
    ledger.reserve("three", fits)  # the way out that was named
    assert 2.9 < ledger.standing().reserved <= 3.0
    with pytest.raises(PrivacyError) as caught:
        ledger.spend([Release(0.0, "known", known=(1.0, 0.0))], what="somebody")
    most = float(re.findall(r"Epsilon ([\d.e-]+) at delta 0 still fits", str(caught.value))[0])
    assert ledger.spend([Release(0.0, "known", known=(most, 0.0))], what="somebody").values["epsilon"] == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize("delta", [0.0, 1e-6])
@pytest.mark.parametrize("spent", [2.5, 3.0])
def test_what_is_said_to_fit_is_the_most_that_fits(ledger: Ledger, delta: float, spent: float) -> None:
    ledger.spend([Release(0.0, "known", known=(spent, 0.0))], what="one")
    with pytest.raises(PrivacyError) as caught:
        ledger.spend([Release(0.0, "known", known=(2.0, delta))], what="two")
    if spent == 3.0:
        found = re.findall(r"Epsilon ([\d.e-]+) at", str(caught.value))
        assert "Nothing fits any more" in str(caught.value) or float(found[0]) < 0.01
        return
    most = float(re.findall(rf"Epsilon ([\d.e-]+) at delta {delta:g} still fits", str(caught.value))[0])
    assert 0.45 <= most <= 0.55
    with pytest.raises(PrivacyError):
        ledger.spend([Release(0.0, "known", known=(most * 1.01, delta))], what="two")
    ledger.spend([Release(0.0, "known", known=(most, delta))], what="two")


def test_a_budget_is_set_once(ledger: Ledger) -> None:
    assert ledger.open((3.0, 1e-5), examples=50_000).number == 1
    with pytest.raises(RecipeError, match=r"was set to epsilon 3, delta 1e-05 on \d{4}-\d\d-\d\d and cannot change"):
        ledger.open((4.0, 1e-5), examples=50_000)
    with pytest.raises(RecipeError, match=r"1/N"):
        Ledger(ledger.folder, OTHER).open((3.0, 1e-5), examples=100_000)
    with pytest.raises(RecipeError, match=r"first use of data set bbbbbbbbbbbb"):
        Ledger(ledger.folder, OTHER).reserve("x", RUN)
    with pytest.raises(DataError, match=r"no ledger yet"):
        Ledger(ledger.folder, "c" * 64).opening()
    with pytest.raises(DataError, match=r"hexadecimal"):
        Ledger(ledger.folder, "../etc")


def test_a_resume_gets_its_own_reservation_back_and_nobody_else_does(ledger: Ledger) -> None:
    first = ledger.reserve("mine", RUN)
    assert ledger.reserve("mine", list(RUN), resumes=first.number) == first
    assert len(ledger.entries()) == 2
    with pytest.raises(RunError, match=r"a run mine has an open reservation \(entry 2.*tauon privacy settle"):
        ledger.reserve("mine", RUN)  # started over: new noise, so a new charge
    with pytest.raises(RunError, match=r"other settings"):
        ledger.reserve("mine", [Release(2.0, "poisson", 0.01, 500)], resumes=first.number)
    ledger.settle(first.number, first_steps(RUN, 100))
    assert ledger.reserve("mine", RUN, resumes=first.number).number == 4  # settled too early: charged anew


def test_settling_frees_what_was_not_used_and_happens_once(ledger: Ledger) -> None:
    made = ledger.reserve("killed", RUN)
    part = first_steps(RUN, 100)
    entry = ledger.settle(made.number, part, note="stopped")
    assert ledger.settle(made.number, part) == entry
    assert ledger.standing().reserved == pytest.approx(epsilon([Release(1.0, "poisson", 0.01, 100)], 1e-5))
    with pytest.raises(RunError, match=r"was already settled by entry 3"):
        ledger.settle(made.number, RUN)
    with pytest.raises(RunError, match=r"entry 1 is not a reservation"):
        ledger.settle(1, RUN)


def test_the_first_steps_of_a_plan_are_cut_in_its_order() -> None:
    plan = [Release(2.0, "poisson", 0.1, 3), Release(1.0, "poisson", 0.1, 3), Release(9.0, "full", count=2)]
    assert first_steps(plan, 4) == [Release(2.0, "poisson", 0.1, 3), Release(1.0, "poisson", 0.1, 1), Release(9.0, "full", count=2)]
    assert first_steps(plan, 0) == [Release(9.0, "full", count=2)]
    assert first_steps(plan, 99) == plan
    whole = [Release(3.0, "shuffled", 1.0)]
    assert first_steps(whole, 5) == whole and first_steps(whole, 0) == []


def test_runs_with_fixed_batches_enter_one_sum_for_one_relation(ledger: Ledger) -> None:
    fixed = [Release(6.0, "fixed-size", 0.01, 100)]
    ledger.settle(ledger.reserve("poisson", RUN).number, RUN)
    ledger.settle(ledger.reserve("fixed", fixed).number, fixed)
    by_parts = epsilon(RUN, 5e-6) + epsilon(fixed, 5e-6, accountant="rdp")
    in_one = epsilon([*RUN, *fixed], 1e-5, accountant="rdp")
    standing = ledger.standing()
    assert standing.spent == pytest.approx(min(by_parts, in_one)) and standing.neighbouring == "zero out one"
    assert standing.spent > max(epsilon(RUN, 1e-5), epsilon(fixed, 1e-5, accountant="rdp"))


def test_a_damaged_ledger_stops_nobody_but_its_own_data_set(ledger: Ledger) -> None:
    broken = {"c" * 64: b"", "d" * 64: b"{}\n", "e" * 64: b"\xff\xfe\n\n", "f" * 64: b"\0" * 4096}
    for data, content in broken.items():
        Ledger(ledger.folder, data).open((3.0, 1e-5), examples=50_000)
        (ledger.folder / f"{data}.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"line 1: not a ledger entry|its end was cut off"):
            Ledger(ledger.folder, data).reserve("mine", RUN)
    (ledger.folder / "notes.jsonl").write_text("no ledger")
    made = ledger.reserve("mine", RUN)
    ledger.settle(made.number, RUN)
    ledger.spend([Release(50.0, "full")], what="x")
    assert len(find_ledgers(ledger.folder, "")) == 5


# ---------------------------------------------------------------------------------------------- edited, cut, torn


def filled(ledger: Ledger) -> list[str]:
    for name in ("one", "two", "three"):
        ledger.settle(ledger.reserve(name, [Release(3.0, "poisson", 0.01, 10)]).number, [Release(3.0, "poisson", 0.01, 10)])
    return ledger.path.read_text().splitlines(keepends=True)


def test_any_edited_removed_or_inserted_line_is_named(ledger: Ledger) -> None:
    lines = filled(ledger)

    def broken(changed: list[str], says: str) -> None:
        ledger.path.write_text("".join(changed))
        with pytest.raises(DataError, match=says):
            ledger.entries()
        with pytest.raises(DataError):
            ledger.spend([Release(50.0, "full")], what="x")
        ledger.path.write_text("".join(lines))
        ledger.entries()

    for number in range(1, len(lines) + 1):
        text = lines[number - 1]
        broken([*lines[: number - 1], text.replace('"number"', '"NUMBER"', 1), *lines[number:]], rf"line {number}: not a ledger entry")
        edited = text.replace("3.0", "9.0", 1)
        assert edited != text
        broken([*lines[: number - 1], edited, *lines[number:]], rf"line {number}: the hash chain is broken: it was edited")
        if number < len(lines):
            broken([*lines[: number - 1], *lines[number:]], rf"line {number}: the hash chain is broken: an entry before it is missing")
    broken([lines[0], lines[0], *lines[1:]], r"line 2: the hash chain is broken")
    broken(lines[:-1], r"has 6 lines, but 7 were written")


def test_a_rehashed_line_breaks_the_next_and_a_rehashed_end_the_head(ledger: Ledger) -> None:
    lines = filled(ledger)
    for at, says in ((2, r"line 4: the hash chain is broken"), (len(lines) - 1, r"its end was cut off or replaced")):
        values = json.loads(lines[at])
        values["values"]["note"] = "forged"
        body = {k: values[k] for k in ("number", "time", "action", "values", "previous")}
        values["hash"] = module.hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        ledger.path.write_text("".join([*lines[:at], json.dumps(values) + "\n", *lines[at + 1 :]]))
        with pytest.raises(DataError, match=says):
            ledger.entries()


def test_a_removed_file_or_head_is_noticed(ledger: Ledger) -> None:
    filled(ledger)
    kept = ledger.head_path.read_text()
    ledger.head_path.unlink()
    with pytest.raises(DataError, match=r"head is missing"):
        ledger.entries()
    ledger.head_path.write_text("{")
    with pytest.raises(DataError, match=r"head: was edited"):
        ledger.entries()
    ledger.head_path.write_text(kept)
    ledger.path.unlink()
    for act in (ledger.entries, lambda: ledger.spend(RUN, what="x"), lambda: ledger.open((9.0, 1e-5), examples=50_000)):
        with pytest.raises(DataError, match=r"is missing, but .* says that it had entries"):
            act()


def test_a_line_torn_by_a_kill_is_no_entry(ledger: Ledger) -> None:
    whole = filled(ledger)
    with ledger.path.open("a") as file:
        file.write('{"number": 8, "ti')
    assert len(ledger.entries()) == 7
    ledger.spend([Release(50.0, "full")], what="x")
    assert ledger.path.read_text().startswith("".join(whole)) and len(ledger.entries()) == 8


def test_an_entry_whose_head_was_not_written_any_more_still_counts(ledger: Ledger) -> None:
    before = ledger.head_path.read_bytes()
    ledger.spend([Release(50.0, "full")], what="x")
    ledger.head_path.write_bytes(before)
    assert len(ledger.entries()) == 2
    ledger.spend([Release(50.0, "full")], what="y")
    assert json.loads(ledger.head_path.read_text())["entries"] == 3


def test_a_clock_that_went_back_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) - timedelta(hours=3)

    monkeypatch.setattr(module, "datetime", Yesterday)
    with pytest.raises(RunError, match=r"10800 s earlier"):
        ledger.reserve("x", RUN)
    monkeypatch.undo()
    assert len(ledger.entries()) == 1


# ---------------------------------------------------------------------------------------------- several processes


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


# ---------------------------------------------------------------------------------------------- whose a reservation is

OWNER = Owner("k" * 64, "t" * 64, "/runs/mine")
"""A training that goes on: its key is there."""


def test_a_key_pays_once_and_for_one_training(ledger: Ledger) -> None:
    first = ledger.reserve("mine", RUN, owner=OWNER)
    assert ledger.reserve("mine", RUN, owner=OWNER) == first  # the manifest was not written any more
    assert ledger.reserve("moved", RUN, owner=replace(OWNER, place="/runs/moved")) == first
    for other, releases in ((replace(OWNER, training="u" * 64), RUN), (OWNER, [Release(2.0, "poisson", 0.01, 500)])):
        with pytest.raises(RunError, match=r"has an open reservation \(entry 2"):
            ledger.reserve("mine", releases, owner=other)
    second = ledger.reserve("mine", RUN, owner=replace(OWNER, key="l" * 64))
    assert second.number == 3  # other noise
    ledger.settle(first.number, RUN)
    assert ledger.reserve("mine", RUN, owner=OWNER) == first  # the same draws again tell nothing new
    ledger.settle(second.number, first_steps(RUN, 100))
    with pytest.raises(RunError, match=r"cannot be resumed: entry 5 .* settled it before it finished"):
        ledger.reserve("mine", RUN, owner=replace(OWNER, key="l" * 64))
    third = ledger.reserve("mine", [Release(9.0, "poisson", 0.01, 10)], owner=replace(OWNER, key="m" * 64))
    ledger.settle(third.number, [])
    assert ledger.reserve("mine", [Release(9.0, "poisson", 0.01, 10)], owner=replace(OWNER, key="m" * 64)).number == third.number + 2


def test_seeded_runs_have_one_key_and_pay_each(ledger: Ledger) -> None:
    small = [Release(9.0, "poisson", 0.01, 10)]
    one = ledger.reserve("one", small, owner=replace(OWNER, key=SEEDED))
    two = ledger.reserve("two", small, owner=Owner(SEEDED, "t" * 64, "/runs/two"))
    assert one.number != two.number and ledger.reserve("one", small, owner=replace(OWNER, key=SEEDED)) == one
    ledger.settle(one.number, small)
    assert ledger.reserve("one", small, owner=replace(OWNER, key=SEEDED)) == one  # the very same draws
    assert ledger.reserve("one", small, owner=replace(OWNER, key=SEEDED, training="u" * 64)).number == 5


def test_entries_of_earlier_versions_name_no_key(ledger: Ledger) -> None:
    """They go on with the number in the manifest and a key that was there before; a new key pays."""
    old = ledger.reserve("mine", RUN)
    assert ledger.reserve("mine", RUN, resumes=old.number, owner=OWNER) == old
    assert ledger.reserve("mine", RUN, resumes=old.number, owner=replace(OWNER, key="n" * 64, unused=True)).number == 3
    ledger.settle(old.number, first_steps(RUN, 3))
    with pytest.raises(RunError, match=r"cannot be resumed: entry 4"):
        ledger.reserve("mine", RUN, resumes=old.number, owner=OWNER)


def test_nothing_is_made_by_what_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "not" / "there", DATA)
    opening = Opening((1.0, 1e-5), 50_000)
    refused: list[tuple[type[Exception], Any]] = [
        (RecipeError, lambda: ledger.spend(RUN, what="x")),
        (RecipeError, lambda: ledger.reserve("x", RUN)),
        (RunError, lambda: ledger.settle(2, RUN)),
        (RecipeError, lambda: ledger.open((0.0, 1e-5), examples=10)),
        (RecipeError, lambda: ledger.reserve("x", RUN, opening=replace(opening, examples=10**6))),
        (PrivacyError, lambda: ledger.reserve("x", RUN, opening=opening)),
        (PrivacyError, lambda: ledger.spend(RUN, what="x", opening=opening)),
    ]
    for error, act in refused:
        with pytest.raises(error):
            act()
        assert list(tmp_path.iterdir()) == []
    assert not ledger.exists()
    for act in (ledger.opening, ledger.standing):
        with pytest.raises(DataError, match="no ledger yet"):
            act()


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot create the ledger folder.*TAUON_LEDGER"):
        Ledger(tmp_path / "file" / "below", DATA).open((1.0, 1e-5), examples=10)


def test_where_ledgers_are_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAUON_LEDGER", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / "mine"
    monkeypatch.delenv("TAUON_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data/tauon/ledger"
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")  # which its specification says to ignore
    assert user_folder() == tmp_path / ".local/share/tauon/ledger"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert user_folder() == tmp_path / ".local/share/tauon/ledger"
    assert ledger_for(DATA, tmp_path, said="said", recorded="there")[0].folder == Path("said")
    Ledger(tmp_path / "there", DATA).open((1.0, 1e-5), examples=10)
    assert ledger_for(DATA, tmp_path, recorded=tmp_path / "there")[0].folder == tmp_path / "there"
    assert ledger_for(DATA, tmp_path, recorded=tmp_path / "gone")[0].folder == user_folder()


def test_without_a_home_the_place_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TAUON_LEDGER")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(RunError, match="Set TAUON_LEDGER"):
        user_folder()


# ---------------------------------------------------------------------------------------------- runs and data sets


def killed_run(folder: Path, ledger: Ledger, steps: int) -> Path:
    made = ledger.reserve(folder.name, RUN)
    with RunFolder.open(folder) as run:
        run.update_manifest(privacy={"ledger": str(ledger.folder), "data": ledger.data, "reservation": made.number})
        if steps:
            with EventLog(run.events_path) as log:
                for step in range(1, steps + 1):
                    log.log("step", step=step, loss=0.0)
    return folder


def test_a_killed_run_is_charged_for_its_steps(ledger: Ledger, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs" / "killed", ledger, 40)
    assert steps_done(folder) == 40
    found = settle_run(folder)
    assert found is not None
    _, entry, done = found
    assert done == 40 and entry.releases == [Release(1.0, "poisson", 0.01, 40)]
    (folder / "checkpoints" / "step-000060").mkdir(parents=True)
    assert steps_done(folder) == 60


def test_a_run_of_which_nothing_is_known_stays_charged_in_full(ledger: Ledger, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs" / "silent", ledger, 0)
    with pytest.raises(RunError, match=r"the number of steps is not known.*charged in full"):
        settle_run(folder)
    assert ledger.standing().reserved == pytest.approx(epsilon(RUN, 1e-5))
    with RunFolder.open(tmp_path / "runs" / "open") as run:
        run.update_manifest(seed=1)
    with pytest.raises(RunError, match=r"has no reservation"):
        settle_run(tmp_path / "runs" / "open")


def test_a_data_set_is_known_by_its_content_not_by_how_it_is_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "c.csv").write_text("x,y\n1,2\n3,5\n")

    def source(name: str, **settings: Any) -> SourceConfig:
        return parse(SourceConfig, {"kind": "csv", "path": str(tmp_path / f"{name}.csv"), **settings})

    assert data_identity(source("a")) == data_identity(source("b")) == data_identity(source("a", label="y"))
    assert data_identity(source("a")) != data_identity(source("c"))
    assert len(data_identity(parse(SourceConfig, {"kind": "sklearn", "name": "iris"}))) == 64


def test_ledgers_are_found_by_the_beginning_of_their_name(ledger: Ledger) -> None:
    Ledger(ledger.folder, OTHER).open((1.0, 1e-6), examples=100)
    assert [x.data for x in find_ledgers(ledger.folder, "aa")] == [DATA]
    assert len(find_ledgers(ledger.folder, "")) == 2 and find_ledgers(ledger.folder / "none", "a") == []
