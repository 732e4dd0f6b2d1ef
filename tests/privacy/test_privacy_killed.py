"""A run and its ledger: killed, or out of disk, at every single write; the same command then ends right and pays once."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from ledger_runs import actions, die, entries, in_child, keys_in, killed, recipe, remembered, train, weights

from tauon.artifacts import RunFolder, read_json
from tauon.errors import TauonError
from tauon.privacy import fitting
from tauon.privacy import run as of_run
from tauon.privacy.charge import settle_run
from tauon.privacy.ledger import find_ledgers
from tauon.recipe import Recipe

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked children compute, too; and the same guarantees are not worked out again and again."""
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "epsilon", remembered(fitting.epsilon))
    monkeypatch.setattr(of_run, "guarantee", remembered(of_run.guarantee))


# ------------------------------------------------------------------------------------------------ every write


CHANGES = ("write", "replace", "rename", "unlink", "rmdir", "ftruncate", "mkdir")


class Writes:
    """Counts what changes a file system, and does something at the k-th: before it is done."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.seen = at, act, 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CHANGES:
            monkeypatch.setattr(os, name, functools.partial(self._call, getattr(os, name)))
        monkeypatch.setattr(os, "open", functools.partial(self._open, os.open))

    def _open(self, whole: Any, path: Any, flags: int, *args: Any, **more: Any) -> Any:
        return self._call(whole, path, flags, *args, **more) if flags & os.O_CREAT else whole(path, flags, *args, **more)

    def _call(self, whole: Any, *args: Any, **more: Any) -> Any:
        if re.search(r"step-0|events", str(args[0])) and whole.__name__ != "rename":
            return whole(*args, **more)  # what is inside of a checkpoint is killed in other tests
        self.seen += 1
        if self.seen == self.at:
            self.act()
        return whole(*args, **more)


def writes_of(made: Recipe, folder: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many there are, the data being prepared."""
    monkeypatch.setenv("TAUON_LEDGER", str(ledgers / "first"))
    train(made, folder.with_name("first"))
    monkeypatch.setenv("TAUON_LEDGER", str(ledgers / "whole"))
    counter = Writes(0, die)
    with monkeypatch.context() as patch:
        counter.patch(patch)
        train(made, folder)
    return counter.seen


def ended_right(folder: Path, ledgers: Path, whole: dict[str, torch.Tensor]) -> None:
    assert RunFolder.read(folder).stage("train") is not None
    assert all(torch.equal(whole[k], v) for k, v in weights(folder).items())
    (ledger,) = find_ledgers(ledgers, "")
    standing = ledger.standing()
    assert not standing.open and not keys_in(folder)
    paid = [e for e in ledger.entries() if e.action == "settle" and e.values["releases"]]
    assert len(paid) == 1 and [r.to_json() for r in paid[0].releases] == read_json(folder / "privacy.json")["guarantee"]["releases"]


@pytest.fixture
def known_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's key is always the same, so that weights can be compared."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
@pytest.mark.usefixtures("known_key")
def test_killed_at_any_write_the_same_command_ends_right_and_pays_once(
    part: int, tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, privacy={"generator": "seeded"} if part == 3 else None)
    count = writes_of(made, tmp_path / "whole", ledgers, monkeypatch)
    whole = weights(tmp_path / "whole/runs/table")
    assert count > 60
    for k in range(1 + part % 3, count + 1, 3 if part < 3 else 5):
        folder = tmp_path / str(k)
        monkeypatch.setenv("TAUON_LEDGER", str(ledgers / str(k)))

        def work(k: int = k, folder: Path = folder) -> None:
            Writes(k, die).patch(monkeypatch)
            train(made, folder)

        assert in_child(work) == 17, k
        train(made, folder)
        ended_right(folder / "runs/table", ledgers / str(k), whole)
        assert actions(ledgers / str(k)) == ["open", "reserve", "settle"], k
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("known_key")
def test_out_of_disk_at_any_write_the_same_command_ends_right_and_pays_once(
    tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)
    count = writes_of(made, tmp_path / "whole", ledgers, monkeypatch)
    whole = weights(tmp_path / "whole/runs/table")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for k in range(1, count + 1, 2):
        folder = tmp_path / str(k)
        monkeypatch.setenv("TAUON_LEDGER", str(ledgers / str(k)))
        with monkeypatch.context() as patch:
            Writes(k, full).patch(patch)
            with contextlib.suppress(TauonError, OSError):
                train(made, folder)
        train(made, folder)
        ended_right(folder / "runs/table", ledgers / str(k), whole)
        shutil.rmtree(folder)


@pytest.mark.parametrize("way", ["settle", "fresh", "resume"])
def test_killed_while_it_is_settled_set_aside_or_resumed(way: str, tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again then ends right: nothing stays open, no key stays, and nothing is paid twice that was told once."""
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    shutil.copytree(tmp_path / "runs", tmp_path / "kept/runs")
    shutil.copytree(ledgers, tmp_path / "kept/ledgers")
    ways: dict[str, Callable[[], Any]] = {
        "settle": lambda: settle_run(folder),
        "fresh": lambda: train(made, tmp_path, fresh=True),
        "resume": lambda: train(made, tmp_path),
    }
    code, k = 17, 1
    while code == 17:
        for name, place in (("runs", tmp_path / "runs"), ("ledgers", ledgers)):
            shutil.rmtree(place)
            shutil.copytree(tmp_path / "kept" / name, place)

        def work(k: int = k) -> None:
            Writes(k, die).patch(monkeypatch)
            ways[way]()

        code = in_child(work) or 0
        ways[way]()
        assert not find_ledgers(ledgers, "")[0].standing().open and not keys_in(tmp_path / "runs"), k
        told = [[r.count for r in e.releases] for e in entries(ledgers) if e.action == "settle"]
        part, whole = [1, 3], [1, 4]
        if way == "fresh":  # which the same again does once more: what the one in between has told is charged, too
            assert told[0] == part and told[-1] == whole and len(told) <= 3, k
        else:
            assert told == ([part] if way == "settle" else [whole]), k
        k += 1 if way == "settle" else 5
    assert code == 0 and k > 8
