"""A run and its ledger: killed, or out of disk, at every single write; the same command then ends right and pays once. Keys are for one training."""

from __future__ import annotations

import contextlib
import errno
import functools
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from tauon.artifacts import Run, load_checkpoint, read_json, write_json
from tauon.errors import DataError, PrivacyError, RunError, TauonError
from tauon.pipeline import run
from tauon.privacy import fitting
from tauon.privacy import run as of_run
from tauon.privacy.charge import settle_run
from tauon.privacy.ledger import Entry, Ledger, find_ledgers, ledger_for
from tauon.recipe import Recipe, load_recipe
from tauon.tracking import read_events
from toy import Tauon, table_recipe

PRIVACY = {
    "noise_multiplier": 3.0, "delta": 1e-3, "accountant": "rdp", "statistics": {"noise": 4.0}, "budget": {"epsilon": 3.9, "delta": 1e-3},
}  # fmt: skip
"""One run fits into the budget, two do not."""
DATA = {"normalize": "standard", "bounds": {"*": [0, 8]}, "split": {"validation": 0.1, "test": 0.2}}
TRAIN = {"steps": 4, "checkpoint_every": 2, "validate_every": 4, "validate_examples": 4, "precision": "fp32", "compile": False}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked children compute, too; and the same guarantees are not worked out again and again."""
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "epsilon", remembered(fitting.epsilon))
    monkeypatch.setattr(of_run, "guarantee", remembered(of_run.guarantee))


KNOWN: dict[str, Any] = {}


def remembered(whole: Callable[..., Any]) -> Callable[..., Any]:
    def asked(releases: Any, *args: Any, **more: Any) -> Any:
        name = f"{whole.__name__} {list(releases)} {args} {more}"
        if name not in KNOWN:
            KNOWN[name] = whole(releases, *args, **more)
        return KNOWN[name]

    return asked


def recipe(folder: Path, *assigned: str, privacy: Any = None, data: Any = None, **sections: Any) -> Recipe:
    made = table_recipe(folder / "recipes", data=DATA | (data or {}), train=TRAIN, privacy=PRIVACY | (privacy or {}), **sections)
    return load_recipe(made, list(assigned))


def train(made: Recipe, folder: Path, **more: Any) -> Run:
    return run(made, root=folder / "runs", stages=("prepare", "train"), **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints/step-000004").tensors("model")


def entries(ledgers: Path) -> list[Entry]:
    (ledger,) = find_ledgers(ledgers, "")
    return ledger.entries()


def actions(ledgers: Path) -> list[str]:
    return [e.action for e in entries(ledgers)]


def keys_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*privacy.key"))


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[..., None]:
    def on_event(kind: str, **facts: Any) -> None:
        if kind == "step" and facts["step"] == step:
            raise Stop

    return on_event


def killed(made: Recipe, folder: Path, step: int) -> Path:
    """The folder of a run that was killed after so many steps, whose log and checkpoints are on disk; 0: before the first."""
    place = folder / "runs" / made.name
    until = time.monotonic() + 60

    def work() -> None:
        def on_event(kind: str, **facts: Any) -> None:
            if kind == "training" and not step:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "step" and facts["step"] == step:
                while not on_disk(place, step) and time.monotonic() < until:
                    time.sleep(0.002)
                os.kill(os.getpid(), signal.SIGKILL)

        train(made, folder, on_event=on_event)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL and (not step or on_disk(place, step))
    return place


def on_disk(folder: Path, step: int) -> bool:
    logged = [(e["kind"], e.get("step")) for e in read_events(folder / "events.jsonl")]
    return ("step", step) in logged and (step < 3 or ("saved", 2) in logged)


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


def die() -> None:
    os._exit(17)


def in_child(work: Callable[[], None]) -> int | None:
    """What a forked process ends with."""

    def quietly() -> None:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=quietly)
    child.start()
    child.join(120)
    return child.exitcode


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
    assert Run.read(folder).stage("train") is not None
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


@pytest.mark.parametrize("part", range(4))
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


# ------------------------------------------------------------------------------------------------ one key, one training


def test_a_second_release_is_paid_for(tmp_path: Path, ledgers: Path) -> None:
    """Checkpoints deleted, trained again: other noise, another release."""
    made = recipe(tmp_path)
    folder = train(made, tmp_path).folder
    first = weights(folder)
    spent = find_ledgers(ledgers, "")[0].standing().spent
    shutil.rmtree(folder / "checkpoints")
    again = recipe(tmp_path, "track=[csv]")
    train(again, tmp_path)
    assert any(not torch.equal(first[k], v) for k, v in weights(folder).items())
    assert actions(ledgers) == ["open", "reserve", "settle", "reserve", "settle"]
    one, two = (e for e in entries(ledgers) if e.action == "reserve")
    assert one.values["key"] != two.values["key"] and one.values["training"] == two.values["training"]
    assert find_ledgers(ledgers, "")[0].standing().spent > 1.2 * spent
    shutil.rmtree(folder / "checkpoints")
    dear = recipe(tmp_path, privacy={"budget": {"epsilon": 3.9, "delta": 1e-3}, "noise_multiplier": 0.5}, name="dear")
    with pytest.raises(PrivacyError, match=r"budget of data set"):
        train(dear, tmp_path)
    assert not keys_in(tmp_path) and not list((tmp_path / "runs/dear").rglob("checkpoints/step-*"))


def test_a_second_release_over_budget_is_refused_before_anything_happens(tmp_path: Path, ledgers: Path) -> None:
    budget = {"budget": {"epsilon": 0.9, "delta": 1e-3}}
    folder = train(recipe(tmp_path, privacy=budget), tmp_path).folder
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(PrivacyError, match=r"budget of data set"):
        train(recipe(tmp_path, "track=[csv]", privacy=budget), tmp_path)
    assert actions(ledgers) == ["open", "reserve", "settle"]
    assert not (folder / "checkpoints").exists() and not keys_in(folder)


def test_the_same_training_with_its_own_key_is_the_same_bits_and_free(tmp_path: Path, ledgers: Path) -> None:
    """A run was killed, its checkpoints were deleted: it begins anew with the same draws."""
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    kept = load_checkpoint(folder / "checkpoints/step-000002").tensors("model")
    shutil.rmtree(folder / "checkpoints")
    train(made, tmp_path)
    again = load_checkpoint(folder / "checkpoints/step-000002").tensors("model")
    assert all(torch.equal(kept[k], v) for k, v in again.items())
    assert actions(ledgers) == ["open", "reserve", "settle"]


@pytest.mark.parametrize("budget", [True, False])
@pytest.mark.parametrize("change", ["optim.lr=0.5", "train.steps=3", "privacy.noise_multiplier=5", "seed=1", "data", "train.batch=8"])
def test_a_key_is_not_used_for_another_training(change: str, budget: bool, tmp_path: Path, ledgers: Path) -> None:
    """The same noise on other gradients: the difference of the two releases would be exact. Whatever is deleted, but the log and the key."""
    privacy = {} if budget else {"budget": None}
    folder = killed(recipe(tmp_path, privacy=privacy), tmp_path, 3)
    (key,) = keys_in(folder)
    before = key.read_bytes()
    shutil.rmtree(folder / "checkpoints")
    for name in ("manifest.json", "stages.json", "statistics.json", "recipe.yaml"):
        (folder / name).unlink()
    if change == "data":
        other = recipe(tmp_path, privacy=privacy, **{"model": {"hidden": [4]}})
    else:
        other = recipe(tmp_path, change, privacy=privacy)
    with pytest.raises(RunError, match=r"was used for another training.*--fresh"):
        train(other, tmp_path)
    assert key.read_bytes() == before and not list(folder.rglob("checkpoints/step-*"))
    assert not budget or actions(ledgers) == ["open", "reserve"]
    train(other, tmp_path, fresh=True)  # the way out
    assert not keys_in(tmp_path)


def test_a_key_from_which_nothing_came_does_not_bind_a_changed_recipe(tmp_path: Path, ledgers: Path) -> None:
    """Killed before the first step, the recipe is changed: a new key, and what was reserved for the old one is given back."""
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 0)
    (key,) = keys_in(folder)
    before = read_json(key)["key"]
    seen = []

    def look(kind: str, **facts: Any) -> None:
        if kind == "step":
            seen.append(read_json(key)["key"])

    train(recipe(tmp_path, "optim.lr=0.5"), tmp_path, on_event=look)
    assert set(seen) and before not in seen
    assert actions(ledgers) == ["open", "reserve", "settle", "reserve", "settle"]
    assert [r.sampling for r in entries(ledgers)[2].releases] == ["full"]  # of the statistics nobody knows


def test_steps_that_were_in_checkpoints_are_not_computed_again_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads, layouts or versions round in another way, and the same noise would show it. From the newest checkpoint on, they may."""
    from tauon.stages.extensions import privacy as private_training

    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    shutil.rmtree(folder / "checkpoints/step-000002")
    with monkeypatch.context() as patch:
        patch.setattr(private_training, "code_fingerprint", lambda: "another version")
        with pytest.raises(RunError, match=r"the checkpoints of steps 1 to 2 are missing"):
            train(made, tmp_path)
    train(made, tmp_path)
    folder = killed(recipe(tmp_path, "name=other"), tmp_path, 3)
    monkeypatch.setattr(private_training, "code_fingerprint", lambda: "another version")
    train(recipe(tmp_path, "name=other"), tmp_path)
    assert not keys_in(folder)


def test_a_checkpoint_that_was_never_whole_was_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine dies while a checkpoint is written, and others go on in another layout."""
    from tauon.stages.extensions import privacy as private_training

    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    shutil.rmtree(folder / "checkpoints/step-000002")
    log = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(line for line in log if '"saved"' not in line))
    monkeypatch.setattr(private_training, "code_fingerprint", lambda: "another layout")
    train(made, tmp_path)
    assert not keys_in(folder)


def test_a_key_that_was_deleted_with_the_checkpoints_is_settled_for_what_it_made(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    (folder / "privacy.key").unlink()
    with pytest.raises(RunError, match=r"privacy\.key is missing"):
        train(made, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    told: list[str] = []
    train(made, tmp_path, on_event=lambda kind, **facts: told.append(str(facts.get("message"))))
    assert any("was settled for 3 steps: entry 3" in t for t in told)
    assert [[r.count for r in e.releases] for e in entries(ledgers) if e.action == "settle"] == [[1, 3], [1, 4]]


def test_a_copy_of_a_run_does_not_draw_from_its_key(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    with pytest.raises(RunError, match=r"copy is a copy of .*table, with its key"):
        train(recipe(tmp_path, "name=copy"), tmp_path)
    train(made, tmp_path)  # the original goes on
    with pytest.raises(RunError, match=r"is a copy of"):
        train(recipe(tmp_path, "name=copy"), tmp_path)
    train(recipe(tmp_path, "name=copy"), tmp_path, fresh=True)
    assert actions(ledgers) == ["open", "reserve", "settle", "reserve", "settle"]
    assert not keys_in(tmp_path)


def test_a_run_that_was_moved_goes_on(tmp_path: Path, ledgers: Path) -> None:
    folder = killed(recipe(tmp_path), tmp_path, 3)
    shutil.move(folder, tmp_path / "runs/moved")
    train(recipe(tmp_path, "name=moved"), tmp_path)
    assert actions(ledgers) == ["open", "reserve", "settle"]


# ------------------------------------------------------------------------------------------------ settled, set aside, finished


def test_a_copy_does_not_settle_what_the_original_goes_on_to_use(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    for name, without in (("copy", False), ("bare", True)):
        shutil.copytree(folder, tmp_path / name)
        if without:
            keys_in(tmp_path / name)[0].unlink()
        with pytest.raises(RunError, match=r"is a copy of .*table, which made the reservation"):
            settle_run(tmp_path / name)
    assert actions(ledgers) == ["open", "reserve"]
    train(made, tmp_path)
    assert actions(ledgers) == ["open", "reserve", "settle"]


def test_a_moved_run_is_settled_with_its_key_only(tmp_path: Path, ledgers: Path) -> None:
    folder = killed(recipe(tmp_path), tmp_path, 3)
    shutil.copytree(folder, tmp_path / "bare")
    keys_in(tmp_path / "bare")[0].unlink()
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(RunError, match=r"was moved or copied from .* without the key"):
        settle_run(tmp_path / "bare")
    found = settle_run(tmp_path / "moved")
    assert found is not None and found[2] in (2, 3)
    assert actions(ledgers) == ["open", "reserve", "settle"] and not keys_in(tmp_path)


def test_the_key_goes_when_a_killed_run_is_settled_and_it_cannot_go_on(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    kept = keys_in(folder)[0].read_bytes()
    found = settle_run(folder)
    assert found is not None and not keys_in(folder)
    assert (settle_run(folder) or ())[1:] == found[1:]  # again, it is nothing
    with pytest.raises(RunError, match=r"privacy\.key is missing: the run was settled"):
        train(made, tmp_path)
    (folder / "privacy.key").touch(0o600)  # restored from a backup, it is of no use either
    (folder / "privacy.key").write_bytes(kept)
    with pytest.raises(RunError, match=r"cannot be resumed: entry 3 .* settled it before it finished"):
        train(made, tmp_path)
    assert (settle_run(folder) or ())[1:] == found[1:] and not keys_in(folder)
    train(made, tmp_path, fresh=True)
    assert actions(ledgers) == ["open", "reserve", "settle", "reserve", "settle"] and not keys_in(tmp_path)


def test_fresh_settles_what_is_set_aside_and_throws_its_key_away(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    killed(made, tmp_path, 3)
    train(made, tmp_path, fresh=True)
    assert (tmp_path / "runs/table.1/checkpoints/step-000002").is_dir() and not keys_in(tmp_path)
    assert actions(ledgers) == ["open", "reserve", "settle", "reserve", "settle"]
    assert entries(ledgers)[2].releases[1].count in (2, 3)
    folder = killed(recipe(tmp_path, "name=lost"), tmp_path, 1)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "events.jsonl").unlink()
    with pytest.raises(RunError, match=r"the number of steps is not known.*--fresh"):
        settle_run(folder)
    train(recipe(tmp_path, "name=lost"), tmp_path, fresh=True)
    assert entries(ledgers)[6].releases == entries(ledgers)[5].releases  # of which nothing is known: charged in full


def test_a_kill_between_the_reservation_and_the_manifest_has_every_way_out(
    tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)

    def reserved_and_killed() -> None:
        whole = Ledger.reserve

        def reserve(self: Ledger, *args: Any, **more: Any) -> Any:
            whole(self, *args, **more)
            os._exit(17)

        monkeypatch.setattr(Ledger, "reserve", reserve)
        train(made, tmp_path)

    ways: dict[str, tuple[Callable[[], Any], list[str]]] = {
        "run": (lambda: train(made, tmp_path), ["settle"]),
        "settle": (lambda: settle_run(tmp_path / "runs/table"), ["settle"]),
        "fresh": (lambda: train(made, tmp_path, fresh=True), ["settle", "reserve", "settle"]),
        "another name": (lambda: train(recipe(tmp_path, "name=other"), tmp_path), ["reserve", "settle"]),
        "deleted": (lambda: (shutil.rmtree(tmp_path / "runs/table"), train(made, tmp_path)), ["reserve", "settle"]),
    }
    for name, (way, then) in ways.items():
        monkeypatch.setenv("TAUON_LEDGER", str(ledgers / name))
        assert in_child(reserved_and_killed) == 17
        way()
        assert actions(ledgers / name) == ["open", "reserve", *then], name
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize("change", ["track=[csv]", "evaluate.resamples=150"])
def test_a_finished_run_needs_no_key(change: str, tmp_path: Path, ledgers: Path) -> None:
    folder = train(recipe(tmp_path), tmp_path).folder
    before, account = weights(folder), read_json(folder / "privacy.json") | {"cost": {"loss": 1.0}}  # as `tauon privacy cost` leaves it
    write_json(folder / "privacy.json", account)
    run(recipe(tmp_path, change), root=tmp_path / "runs")
    assert all(torch.equal(before[k], v) for k, v in weights(folder).items()) and not keys_in(folder)
    assert read_json(folder / "privacy.json") == account
    assert actions(ledgers) == ["open", "reserve", "settle"]


def test_a_run_that_stopped_early_is_finished(tmp_path: Path, ledgers: Path) -> None:
    """Fewer steps than were reserved, and no checkpoint of the last: it needs no key, and pays for what it made."""
    early = {"early_stopping.patience": 1, "validate_every": 1, "steps": 40, "checkpoint_every": 20}
    made = recipe(tmp_path, *[f"train.{k}={v}" for k, v in early.items()], "optim.lr=1000")
    folder = train(made, tmp_path).folder
    steps = read_json(folder / "privacy.json")["steps"]
    assert steps < 40 and not keys_in(folder)
    train(recipe(tmp_path, *[f"train.{k}={v}" for k, v in early.items()], "optim.lr=1000", "track=[csv]"), tmp_path)
    assert actions(ledgers) == ["open", "reserve", "settle"] and entries(ledgers)[2].releases[1].count == steps


def test_a_finished_run_that_was_settled_by_hand_ends_right(tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that follows what it sees is settled by hand for the worst that could have come."""
    from tauon.stages.extensions import privacy as private_training

    noise = {"kind": "validation-loss", "every": 1, "patience": 1, "query_noise": 50.0}
    made = recipe(tmp_path, privacy={"noise": noise, "accountant": "rdp"})
    with monkeypatch.context() as patch:
        patch.setattr(private_training, "settle", lambda *args: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            train(made, tmp_path)
    folder = tmp_path / "runs/table"
    assert settle_run(folder) is not None
    train(made, tmp_path)
    assert Run.read(folder).stage("train") is not None
    assert actions(ledgers) == ["open", "reserve", "settle"] and not keys_in(folder)


# ------------------------------------------------------------------------------------------------ where ledgers are


def test_all_roots_have_one_ledger(tmp_path: Path, ledgers: Path) -> None:
    """Another --root is no fresh budget; the same name in two roots is two runs."""
    small = {"budget": {"epsilon": 0.9, "delta": 1e-3}}
    made = recipe(tmp_path, privacy=small)
    run(made, root=tmp_path / "a", stages=("train",))
    with pytest.raises(PrivacyError, match="budget"):
        run(made, root=tmp_path / "b", stages=("train",))
    assert actions(ledgers) == ["open", "reserve", "settle"]
    assert not (tmp_path / "a/ledger").exists()


def test_two_roots_may_train_runs_of_one_name_at_once(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    for root in ("a", "b"):
        with pytest.raises(Stop):
            run(made, root=tmp_path / root, stages=("train",), on_event=stop_at(3))
    for root in ("b", "a"):
        run(made, root=tmp_path / root, stages=("train",))
    assert actions(ledgers) == ["open", "reserve", "reserve", "settle", "settle"]


def test_a_ledger_beside_the_runs_goes_on_and_is_told(tmp_path: Path, ledgers: Path) -> None:
    from tauon.privacy.ledger import data_identity

    made = recipe(tmp_path)
    data = data_identity(made.data.source)
    old = Ledger(tmp_path / "runs/ledger", data)
    old.open((3.9, 1e-3), examples=108)
    told: list[str] = []
    train(made, tmp_path, on_event=lambda kind, **facts: told.append(str(facts.get("message"))))
    assert [e.action for e in old.entries()] == ["open", "reserve", "settle"] and not ledgers.exists()
    assert any(f"beside the runs, in {old.folder}, and is charged there" in t for t in told)
    Ledger(ledgers, data).open((3.9, 1e-3), examples=108)
    assert "neither counts the other" in ledger_for(data, tmp_path / "runs")[1]
    assert ledger_for(data, tmp_path / "elsewhere")[0].folder == ledgers


def test_a_run_whose_ledger_is_not_there_does_not_go_on(tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to another machine, or with another TAUON_LEDGER: an account that knows nothing of it would be a fresh budget."""
    made = recipe(tmp_path)
    killed(made, tmp_path, 3)
    shutil.move(ledgers, ledgers.with_name("moved"))
    monkeypatch.setenv("TAUON_LEDGER", str(tmp_path / "other"))
    with pytest.raises(RunError, match=r"has reserved budget in .* has no such entry"):
        train(made, tmp_path)
    assert not (tmp_path / "other").exists()
    monkeypatch.setenv("TAUON_LEDGER", str(ledgers.with_name("moved")))
    train(made, tmp_path)
    assert actions(ledgers.with_name("moved")) == ["open", "reserve", "settle"]
    shutil.rmtree(ledgers.with_name("moved"))


def test_data_that_changed_under_a_reservation_is_refused(tmp_path: Path, ledgers: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("x,label\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(120)))
    made = recipe(tmp_path, data={"source": {"kind": "csv", "path": str(table), "label": "label"}})
    folder = killed(made, tmp_path, 0)
    table.write_text("x,label\n" + "".join(f"{i % 5},{i % 2}\n" for i in range(120)))
    with pytest.raises(RunError, match=r"statistics\.json|the data of run .* changed.*--fresh"):
        train(made, tmp_path)
    (folder / "statistics.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match=r"the data of run table changed: it reserved budget for data set .*--fresh"):
        train(made, tmp_path)
    train(made, tmp_path, fresh=True)
    assert not [e for x in find_ledgers(ledgers, "") for e in x.standing().open]


def test_a_run_that_is_refused_makes_nothing(tmp_path: Path, ledgers: Path) -> None:
    dear = recipe(tmp_path, privacy={"noise_multiplier": 0.5, "budget": {"epsilon": 0.5, "delta": 1e-3}})
    with pytest.raises(PrivacyError, match="budget"):
        train(dear, tmp_path)
    assert not ledgers.exists() and not keys_in(tmp_path)


def test_a_refused_spending_leaves_a_ledger_that_works(tmp_path: Path, ledgers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tauon = Tauon(capsys)
    made = recipe(tmp_path)
    path = tmp_path / "recipes/recipe.yaml"
    assert tauon("privacy", "spend", path, "--ledger", ledgers, "--epsilon", "0.1").code == 2
    assert tauon("privacy", "spend", path, "--ledger", ledgers, "--epsilon", "9", "--budget", "1", "1e-4", "--examples", "150").code == 9
    assert not ledgers.exists()
    train(recipe(tmp_path, privacy={"budget": None, "ledger": str(ledgers)}), tmp_path)
    ledger, _ = ledger_for("ab" * 32, tmp_path, said=ledgers)
    ledgers.mkdir()
    ledger.path.touch()  # as earlier versions left it
    with pytest.raises(DataError, match="no ledger yet"):
        ledger.standing()
    assert not ledger.exists() and ledger.open((1.0, 1e-4), examples=150).number == 1
    del made


# ------------------------------------------------------------------------------------------------ from earlier versions


def as_an_earlier_version_left_it(folder: Path, root: Path, ledgers: Path) -> Ledger:
    """The key is 32 bytes, the ledger lies beside the runs, and neither says what for."""
    key = folder / "privacy.key"
    if key.exists():
        key.write_bytes(bytes.fromhex(read_json(key)["key"]))
    (now,) = find_ledgers(ledgers, "")
    then = Ledger(root / "ledger", now.data)
    with then._writing(create=True) as there:
        for e in now.entries():
            then._append(there, e.action, **{k: v for k, v in e.values.items() if k not in ("key", "training", "place")})
    shutil.rmtree(ledgers)
    with Run.open(folder) as held:
        where = held.manifest()["privacy"]
        held.update_manifest(privacy={k: v for k, v in where.items() if k != "key"} | {"ledger": str(then.folder)})
    return then


def test_a_killed_run_of_an_earlier_version_goes_on_or_is_settled(tmp_path: Path, ledgers: Path) -> None:
    made = recipe(tmp_path)
    folder = killed(made, tmp_path, 3)
    secret = read_json(folder / "privacy.key")["key"]
    ledger = as_an_earlier_version_left_it(folder, tmp_path / "runs", ledgers)
    shutil.copytree(tmp_path / "runs", tmp_path / "again")
    seen = []

    def look(kind: str, **facts: Any) -> None:
        if kind == "step":
            seen.append(read_json(folder / "privacy.key")["key"])

    train(made, tmp_path, on_event=look)
    assert (
        set(seen) == {secret} and [e.action for e in ledger.entries()] == ["open", "reserve", "settle"] and not keys_in(tmp_path / "runs")
    )
    assert not ledgers.exists()
    with pytest.raises(RunError, match="is a copy of"):
        settle_run(tmp_path / "again/table")  # its manifest names the ledger and the reservation of the original


def test_a_key_of_an_earlier_version_is_for_one_training_too(tmp_path: Path, ledgers: Path) -> None:
    folder = killed(recipe(tmp_path), tmp_path, 3)
    as_an_earlier_version_left_it(folder, tmp_path / "runs", ledgers)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(RunError, match="recomputed differently"):
        train(recipe(tmp_path), tmp_path)  # nobody knows how they were computed
    for name in ("manifest.json", "stages.json", "statistics.json"):
        (folder / name).unlink()
    with pytest.raises(RunError, match="was used for another training"):
        train(recipe(tmp_path, "optim.lr=0.5"), tmp_path)


def test_a_finished_run_of_an_earlier_version_pays_again_where_it_trains_again(tmp_path: Path, ledgers: Path) -> None:
    folder = train(recipe(tmp_path), tmp_path).folder
    ledger = as_an_earlier_version_left_it(folder, tmp_path / "runs", ledgers)
    train(recipe(tmp_path, "track=[csv]"), tmp_path)
    assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle"]
    shutil.rmtree(folder / "checkpoints")
    train(recipe(tmp_path), tmp_path)
    assert [e.action for e in ledger.entries()] == ["open", "reserve", "settle", "reserve", "settle"]


def test_reference_models_of_an_audit_are_charged_nothing(tmp_path: Path, ledgers: Path) -> None:
    from tauon.privacy.audit import AuditConfig
    from tauon.stages.audit import audit_run

    folder = run(recipe(tmp_path), root=tmp_path / "runs").folder
    audit_run(folder, AuditConfig(shadows=2), on_event=lambda kind, **facts: None)
    assert (folder / "audit/shadow-001/checkpoints/step-000004").is_dir()
    assert actions(ledgers) == ["open", "reserve", "settle"] and not keys_in(folder)
