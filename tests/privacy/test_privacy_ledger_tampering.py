"""The ledger: nothing can be taken out of it, changed or torn unnoticed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dp_accounting")

from ledger_samples import RUN, filled, opened

from tauon.errors import DataError, RunError
from tauon.privacy import journal as module
from tauon.privacy.accounting import Release
from tauon.privacy.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path / "ledger")


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
