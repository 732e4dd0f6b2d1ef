"""Logs of all ranks in one place: prefixes, one error text, what ended a worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tauon.launch.logs import Console, Follower, error_in
from tauon.launch.outcome import cause, failed, is_final
from tauon.launch.worker import HEADER


def collect() -> tuple[Console, list[str]]:
    lines: list[str] = []
    return Console(lambda text, _rank: lines.append(text)), lines


def test_rank_0_speaks_as_it_is_and_others_with_their_rank() -> None:
    console, lines = collect()
    console.line(0, "step 1")
    console.line(12, "step 1")
    assert lines == ["step 1", "[rank 12] step 1"]


def test_an_error_is_held_back_until_the_worker_starts_again() -> None:
    console, lines = collect()
    for text in (
        "before",
        "Traceback (most recent call last):",
        "  File x",
        f"{HEADER} 1 of 2",
        "after",
        "\x1b[31merror\x1b[0m: bad",
        "more",
    ):
        console.line(1, text)
    assert lines == ["[rank 1] before", "[rank 1] after"]


def test_following_hands_over_whole_lines_from_where_the_file_ended(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    path.write_text("of an earlier run\n")
    console, lines = collect()
    with Follower(tmp_path, console).following(0.01):
        with path.open("a") as file:
            file.write("half")
            file.flush()
            time.sleep(0.05)
            assert lines == []
            file.write(" and half\n")
        (tmp_path / "rank-3.log").write_bytes(b"caf\xc3\xa9 \xff\nunfinished")
    assert sorted(lines) == ["[rank 3] caf\xe9 \ufffd", "half and half"]


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("", ""),
        ("a\nb\n", "a\nb"),
        ("noise\nerror: 2 problems\n  - one\n  - two\n", "2 problems\n  - one\n  - two"),
        ("\x1b[1merror\x1b[0m: bad\n", "bad"),
        ("x\nTraceback (most recent call last):\n  File y\nValueError: z\n", "Traceback (most recent call last):\n  File y\nValueError: z"),
        (f"error: old\n{HEADER} 0 of 1, restart 1\nerror: new\n", "new"),
    ],
)
def test_the_error_that_ended_a_worker(tmp_path: Path, log: str, found: str) -> None:
    (tmp_path / "rank-0.log").write_text(log)
    assert error_in(tmp_path / "rank-0.log") == found


def test_a_log_that_is_not_there_has_no_error(tmp_path: Path) -> None:
    assert error_in(tmp_path / "rank-9.log") == ""


def test_the_cause_is_who_died_first_of_its_own() -> None:
    assert cause({0: 1, 1: -9, 2: -15}) == 1
    assert cause({0: 1, 1: 2}) == 1
    assert cause({0: 130, 1: 1}) == 1
    assert cause({2: 1, 1: 1}) == 1


def test_what_cannot_get_better_is_not_tried_again() -> None:
    assert [c for c in (1, 2, 3, 4, 5, 6, 7, 8, 130, -9, -11) if is_final({0: c})] == [2, 3, 4, 7, 8, 130]
    assert is_final({0: 5}, restarts=1), "a folder in use is worth one more try, and not a third"


def test_one_error_names_rank_words_and_log(tmp_path: Path) -> None:
    (tmp_path / "rank-1.log").write_text("error: gradients stay bad\n")
    err = failed({0: 1, 1: 6}, tmp_path, 2)
    assert err.exit_code == 6
    assert "[rank 1] gradients stay bad" in str(err) and "rank-1.log" in str(err)
    killed = failed({1: -9}, tmp_path, 3)
    assert killed.exit_code == 6 and "killed by SIGKILL after 3 restarts" in str(killed) and "memory" in str(killed)
