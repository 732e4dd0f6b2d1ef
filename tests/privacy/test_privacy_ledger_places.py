"""Where the ledger of a run is, and runs of earlier versions that have none, or another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from ledger_runs import Stop, actions, keys_in, killed, recipe, remembered, stop_at, train

from tauon.artifacts import RunFolder, read_json
from tauon.errors import DataError, PrivacyError, RunError
from tauon.pipeline import run
from tauon.privacy import fitting
from tauon.privacy import run as of_run
from tauon.privacy.charge import settle_run
from tauon.privacy.ledger import Ledger, find_ledgers, ledger_for
from toy import Tauon


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked children compute, too; and the same guarantees are not worked out again and again."""
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "epsilon", remembered(fitting.epsilon))
    monkeypatch.setattr(of_run, "guarantee", remembered(of_run.guarantee))


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
    ledgers.mkdir(parents=True)
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
    with RunFolder.open(folder) as held:
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
