"""Choices by measurement: the faster way is chosen, measured once, and whatever happens to the file costs time and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.plan import measured
from tauon.plan.measured import chosen, fastest, interleaved, machine, measured_file, recall, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test."""
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Clock:
    """A clock that ways move: their times are exact."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []  # type: ignore[var-annotated]
        monkeypatch.setattr(measured.time, "perf_counter", lambda: self.now)

    def way(self, name: str, *seconds: float) -> Callable[[], None]:
        """A way that takes `seconds`, one after the other, and then the last again."""

        def run() -> None:
            done = self.calls.count(name)
            self.calls.append(name)
            self.now += seconds[min(done, len(seconds) - 1)]

        return run


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process measured, as a new one would not know it."""
    monkeypatch.setattr(measured, "_here", {})


def test_the_faster_way_is_chosen_by_the_median_of_interleaved_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ways = {"a": clock.way("a", 99.0, 2.0, 50.0, 2.0, 2.0), "b": clock.way("b", 77.0, 1.0, 1.0, 60.0, 1.0)}
    assert fastest("test", ways, {"rows": 4}, seconds=1e3) == ("b", {"a": 2.0, "b": 1.0})  # neither a first call nor one hiccup counts
    assert clock.calls == ["a", "b"] * 10


def test_a_long_way_is_called_three_times_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert interleaved({"a": clock.way("a", 5.0), "b": clock.way("b", 4.0)}, 1.5) == {"a": 5.0, "b": 4.0}
    assert clock.calls == ["a", "b"] * 4


@pytest.mark.parametrize(
    ("timed", "margin", "choice"),
    [
        ({"a": 1.0, "b": 0.94}, 0.05, "b"),
        ({"a": 1.0, "b": 0.96}, 0.05, "a"),
        ({"a": 1.0, "b": 1.0}, 0.0, "a"),
        ({"a": 1.0, "b": 0.9, "c": 0.8}, 0.1, "c"),
        ({"a": 0.0, "b": 0.0}, 0.1, "a"),
    ],
)
def test_another_way_than_the_first_must_be_faster_by_the_margin(timed: dict[str, float], margin: float, choice: str) -> None:
    assert chosen(timed, margin) == choice


def test_what_was_measured_is_not_measured_again_on_this_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    clock = Clock(monkeypatch)
    ways = {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}
    first = fastest("test", ways, {"rows": 4})
    clock.calls.clear()
    assert fastest("test", ways, {"rows": 4}) == first and clock.calls == []
    another_process(monkeypatch)
    assert fastest("test", ways, {"rows": 4}) == first and clock.calls == []
    assert [e["key"]["processor"] for e in json.loads((cache / "measured.json").read_text()).values()] == [machine()["processor"]]
    for name, key in (("test", {"rows": 8}), ("another", {"rows": 4})):
        clock.calls.clear()
        fastest(name, ways, key)
        assert clock.calls


@pytest.mark.parametrize("change", ["threads", "torch", "processor", "version", "ways"])
def test_another_machine_torch_or_way_is_measured(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ways = {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}
    fastest("test", ways, {"rows": 4})
    clock.calls.clear()
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    elif change == "processor":
        monkeypatch.setattr(measured, "_processor", lambda: "another")
    elif change == "version":
        monkeypatch.setattr(measured, "VERSION", measured.VERSION + 1)
    else:
        ways["c"] = clock.way("c", 0.5)
    choice, _ = fastest("test", ways, {"rows": 4})
    assert clock.calls and choice == ("c" if change == "ways" else "b")


DAMAGED: list[bytes] = [
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"NUMBER": 3}', b'{"NUMBER": {"seconds": []}}', b'{"NUMBER": {"seconds": {}}}',
    b'{"NUMBER": {"seconds": {"a": "fast", "b": 1}}}', b'{"NUMBER": {"seconds": {"a": NaN, "b": 1}}}', b'{"NUMBER": {"seconds": {"a": -1, "b": 1}}}',
    b'{"NUMBER": {"seconds": {"a": true, "b": 1}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=lambda c: repr(c[:40]))
def test_a_damaged_file_is_measured_again_and_mended(content: bytes, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    clock = Clock(monkeypatch)
    ways = {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}
    cache.mkdir()
    number = measured._number("test", {"rows": 4})
    (cache / "measured.json").write_bytes(content.replace(b"NUMBER", number.encode()))
    assert fastest("test", ways, {"rows": 4}) == ("b", {"a": 2.0, "b": 1.0}) and clock.calls
    another_process(monkeypatch)
    assert recall("test", {"rows": 4}) == {"a": 2.0, "b": 1.0}


@pytest.mark.parametrize("obstacle", ["folder is a file", "file is a folder", "read only", "no home"])
def test_a_cache_that_cannot_be_written_costs_the_time_alone(obstacle: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    if obstacle == "folder is a file":
        cache.write_text("not a folder")
    elif obstacle == "file is a folder":
        (cache / "measured.json").mkdir(parents=True)
    elif obstacle == "read only":
        cache.mkdir(mode=0o500)
    else:
        monkeypatch.delenv("TAUON_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no such folder")
    clock = Clock(monkeypatch)
    ways = {"a": clock.way("a", 2.0), "b": clock.way("b", 1.0)}
    first = fastest("test", ways, {"rows": 4})
    clock.calls.clear()
    assert fastest("test", ways, {"rows": 4}) == first and clock.calls == []  # within a process, two plans agree all the same


def test_the_file_is_in_the_users_cache_for_that_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TAUON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert measured_file() == tmp_path / "xdg" / "tauon" / "measured.json"
    remember("test", {}, {"a": 1.0})
    assert stat.S_IMODE((tmp_path / "xdg" / "tauon").stat().st_mode) & 0o077 == 0
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert measured_file() == tmp_path / "home" / ".cache" / "tauon" / "measured.json"


def test_the_file_stays_small(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(measured, "MOST_ENTRIES", 3)
    for n in range(5):
        remember("test", {"rows": n}, {"a": float(n)})
    another_process(monkeypatch)
    assert [recall("test", {"rows": n}) for n in range(5)] == [None, None, {"a": 2.0}, {"a": 3.0}, {"a": 4.0}]
    assert sorted(p.name for p in cache.iterdir()) == [".measured.json.lock", "measured.json"]  # no leftovers


def _write(folder: str, first: int) -> None:
    os.environ["TAUON_CACHE"] = folder
    for n in range(first, first + 20):
        remember("test", {"rows": n}, {"a": float(n)})


def test_processes_that_write_at_once_lose_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(cache), 20 * i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [recall("test", {"rows": n}) for n in range(80)] == [{"a": float(n)} for n in range(80)]


def test_a_real_choice_is_the_one_with_less_work() -> None:
    small, large = torch.randn(64, 64), torch.randn(1024, 1024)
    choice, timed = fastest("product", {"large": lambda: large @ large, "small": lambda: small @ small}, {})
    assert choice == "small" and timed["small"] < timed["large"]
