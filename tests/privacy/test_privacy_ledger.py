"""The ledger: what is composed, what is refused and with which arithmetic, and that nothing can be taken out of it unnoticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dp_accounting")

from tauon.artifacts import Run
from tauon.config import parse
from tauon.data import SourceConfig
from tauon.errors import DataError, PrivacyError, RecipeError, RunError
from tauon.privacy import ledger as module
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.charge import first_steps, settle_run, steps_done
from tauon.privacy.ledger import Ledger, data_identity, find_ledgers
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
    for part in ("three may not run", "budget of data set aaaaaaaaaaaa is epsilon 3 at delta 1e-05", "spent are", "with open reservations",
                 f"{epsilon(big, 1e-5):.4g} alone", "> 3", "two (entry 4)", "tauon privacy settle"):  # fmt: skip
        assert part in said, said
    assert ledger.path.read_bytes() == before
    more = float(re.findall(r"With ([\d.]+) times the noise", said)[0])
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
    with pytest.raises(RecipeError, match=r"was set to epsilon 3, delta 1e-05 on \d{4}-\d\d-\d\d and stays"):
        ledger.open((4.0, 1e-5), examples=50_000)
    with pytest.raises(RecipeError, match=r"1/N"):
        Ledger(ledger.folder, OTHER).open((3.0, 1e-5), examples=100_000)
    with pytest.raises(RecipeError, match=r"first use of data set bbbbbbbbbbbb"):
        Ledger(ledger.folder, OTHER).reserve("x", RUN)
    with pytest.raises(DataError, match=r"no account yet"):
        Ledger(ledger.folder, "c" * 64).opening()
    with pytest.raises(DataError, match=r"hexadecimal"):
        Ledger(ledger.folder, "../etc")


def test_a_resume_gets_its_own_reservation_back_and_nobody_else_does(ledger: Ledger) -> None:
    first = ledger.reserve("mine", RUN)
    assert ledger.reserve("mine", list(RUN), resumes=first.number) == first
    assert len(ledger.entries()) == 2
    with pytest.raises(RunError, match=r"a run mine has reserved already \(entry 2.*tauon privacy settle"):
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
    with pytest.raises(RunError, match=r"was settled by entry 3"):
        ledger.settle(made.number, RUN)
    with pytest.raises(RunError, match=r"entry 1 is no reservation"):
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


def test_a_changed_data_set_under_a_running_run_is_refused(ledger: Ledger) -> None:
    ledger.reserve("mine", RUN)
    other = Ledger(ledger.folder, OTHER)
    other.open((3.0, 1e-5), examples=50_000)
    with pytest.raises(RunError, match=r"mine has reserved on data set aaaaaaaaaaaa.*its data is now bbbbbbbbbbbb: it changed"):
        other.reserve("mine", RUN)
    other.reserve("another", RUN)


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
        broken([*lines[: number - 1], text.replace('"number"', '"NUMBER"', 1), *lines[number:]], rf"line {number}: is no entry")
        edited = text.replace("3.0", "9.0", 1)
        assert edited != text
        broken([*lines[: number - 1], edited, *lines[number:]], rf"line {number}: the hash chain is broken: it was edited")
        if number < len(lines):
            broken([*lines[: number - 1], *lines[number:]], rf"line {number}: the hash chain is broken: an entry is missing")
    broken([lines[0], lines[0], *lines[1:]], r"line 2: the hash chain is broken")
    broken(lines[:-1], r"ends after line 6, and 7 were written")


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
    with pytest.raises(DataError, match=r"head: is gone"):
        ledger.entries()
    ledger.head_path.write_text("{")
    with pytest.raises(DataError, match=r"head: was edited"):
        ledger.entries()
    ledger.head_path.write_text(kept)
    ledger.path.unlink()
    for act in (ledger.entries, lambda: ledger.spend(RUN, what="x"), lambda: ledger.open((9.0, 1e-5), examples=50_000)):
        with pytest.raises(DataError, match=r"is gone, and .* says that it held entries"):
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
    with pytest.raises(RunError, match=r"it went back by 10800 s"):
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


# ---------------------------------------------------------------------------------------------- runs and data sets


def killed_run(folder: Path, ledger: Ledger, steps: int) -> Path:
    made = ledger.reserve(folder.name, RUN)
    with Run.open(folder) as run:
        run.update_manifest(privacy={"ledger": str(ledger.folder), "data": ledger.data, "reservation": made.number})
        if steps:
            with EventLog(run.events_path) as log:
                for step in range(1, steps + 1):
                    log.log("step", step=step, loss=0.0)
    return folder


def test_a_killed_run_is_charged_for_its_steps(ledger: Ledger, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs" / "killed", ledger, 40)
    assert steps_done(folder) == 40
    _, entry, done = settle_run(folder)
    assert done == 40 and entry.releases == [Release(1.0, "poisson", 0.01, 40)]
    (folder / "checkpoints" / "step-000060").mkdir(parents=True)
    assert steps_done(folder) == 60


def test_a_run_of_which_nothing_is_known_stays_charged_in_full(ledger: Ledger, tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "runs" / "silent", ledger, 0)
    with pytest.raises(RunError, match=r"nobody knows what it released.*charged in full"):
        settle_run(folder)
    assert ledger.standing().reserved == pytest.approx(epsilon(RUN, 1e-5))
    with Run.open(tmp_path / "runs" / "open") as run:
        run.update_manifest(seed=1)
    with pytest.raises(RunError, match=r"has reserved nothing"):
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
