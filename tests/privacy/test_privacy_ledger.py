"""The ledger: what is composed, what is refused and with which arithmetic; whose a reservation is; runs and data sets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dp_accounting")

from ledger_samples import DATA, OTHER, OWNER, RUN, opened

from tauon.artifacts import RunFolder
from tauon.config import parse
from tauon.data import SourceConfig
from tauon.errors import DataError, PrivacyError, RecipeError, RunError
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.charge import first_steps, settle_run, steps_done
from tauon.privacy.ledger import SEEDED, Ledger, Opening, Owner, data_identity, find_ledgers, ledger_for, user_folder
from tauon.tracking import EventLog


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path / "ledger")


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


# ---------------------------------------------------------------------------------------------- whose a reservation is


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
