"""A key is for one training: copies, moved runs, changed recipes, what is settled or set aside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from ledger_runs import Stop, actions, entries, in_child, keys_in, killed, recipe, remembered, train, weights

from tauon.artifacts import RunFolder, load_checkpoint, read_json, write_json
from tauon.cli.launch import launch_elsewhere
from tauon.errors import PrivacyError, RunError
from tauon.pipeline import run
from tauon.privacy import fitting
from tauon.privacy import run as of_run
from tauon.privacy.charge import settle_run
from tauon.privacy.ledger import Ledger, find_ledgers
from tauon.recipe import load_recipe

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked children compute, too; and the same guarantees are not worked out again and again."""
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "epsilon", remembered(fitting.epsilon))
    monkeypatch.setattr(of_run, "guarantee", remembered(of_run.guarantee))


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


def test_fresh_with_processes_started_elsewhere_settles_as_well(tmp_path: Path, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed(recipe(tmp_path), tmp_path, 3)
    monkeypatch.setattr("tauon.launch.launch", lambda *_, **__: "")
    show: Any = SimpleNamespace(on_event=lambda *_, **__: None)
    assert launch_elsewhere(load_recipe(folder, on="local:2"), "train", folder, show, options=(), fresh=True, dry_run=False)
    assert (
        (folder.with_name("table.1") / "checkpoints").is_dir()
        and actions(ledgers) == ["open", "reserve", "settle"]
        and not keys_in(tmp_path)
    )


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
    assert RunFolder.read(folder).stage("train") is not None
    assert actions(ledgers) == ["open", "reserve", "settle"] and not keys_in(folder)
