"""What privacy cost: a twin without it beside the run, both measured; `tauon privacy cost`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toy import Tauon, contents, table_recipe

pytest.importorskip("dp_accounting")
pytest.importorskip("sklearn")

from tauon.artifacts import read_json
from tauon.config import dump
from tauon.errors import PrivacyError, RunError
from tauon.pipeline import run
from tauon.privacy.ledger import find_ledgers
from tauon.recipe import differences, load_recipe
from tauon.stages.privacy_cost import cost_of, twin_of

PRIVACY = {"target_epsilon": 4.0, "delta": 1e-3, "generator": "seeded"}


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def quiet(kind: str, **facts: object) -> None:
    pass


def test_the_twin_is_the_recipe_without_privacy_and_nothing_else(tmp_path: Path) -> None:
    recipe = load_recipe(table_recipe(tmp_path, privacy=PRIVACY))
    differs = {d.split(":")[0].split(".")[0] for d in differences(dump(recipe), dump(twin_of(recipe)))}
    assert differs == {"name", "privacy"}


def test_cost_trains_the_twin_and_says_what_privacy_cost(tauon: Tauon, tmp_path: Path) -> None:
    path = table_recipe(tmp_path, privacy=PRIVACY)
    folder = run(load_recipe(path), root=tmp_path / "runs").folder
    plain = run(load_recipe(path, ["privacy=null", "name=plain"]), root=tmp_path / "runs").folder
    before = read_json(folder / "privacy.json")
    ended = tauon("privacy", "cost", "table")
    assert ended.code == 0, ended
    assert "Do not share it" in ended.err
    cost = read_json(folder / "privacy_cost.json")
    assert read_json(folder / "privacy.json") == before  # which an auditor may be given: it holds no exact figure
    figures = {where: {k: m["value"] for k, m in read_json(where / "evaluation.json")["metrics"].items()} for where in (folder, plain)}
    assert cost.keys() == figures[folder].keys()
    for name, pair in cost.items():  # the twin is the run that the recipe without privacy makes elsewhere
        assert (pair["private"], pair["plain"]) == (figures[folder][name], figures[plain][name])
        assert pair["difference"] is None or pair["difference"] == pair["private"] - pair["plain"]
    assert cost["log_loss"]["private"] > cost["log_loss"]["plain"]
    assert f"{cost['log_loss']['difference']:+.4f}" in ended.out
    assert "the same without privacy" in (folder / "report.html").read_text()
    assert not (folder / "without-privacy" / "privacy.json").exists()

    weights = contents(folder / "without-privacy" / "checkpoints")
    again = tauon("privacy", "cost", folder, "--json")
    assert again.code == 0, again
    told = [json.loads(line) for line in again.out.splitlines()]
    assert {k: v for k, v in next(t for t in told if t.get("kind", t.get("event")) == "cost").items() if k in cost} == cost
    assert contents(folder / "without-privacy" / "checkpoints") == weights  # not trained again


def test_folds_have_a_promise_each_and_the_mean_cost(tmp_path: Path) -> None:
    recipe = load_recipe(
        table_recipe(tmp_path, privacy=PRIVACY, data={"split": {"folds": 2, "validation": 0}}, train={"validate_every": None})
    )
    folder = run(recipe, root=tmp_path / "runs").folder
    each = [read_json(folder / f"fold-{i}" / "privacy.json") for i in range(2)]
    whole = read_json(folder / "privacy.json")
    assert whole["guarantee"]["epsilon"] == max(e["guarantee"]["epsilon"] for e in each)
    assert any("2 folds separately" in line for line in whole["guarantee"]["not_covered"])
    cost = cost_of(folder, on_event=quiet)
    assert cost["log_loss"]["private"] == pytest.approx(read_json(folder / "folds.json")["mean"]["log_loss"])
    assert cost["log_loss"]["plain"] == pytest.approx(read_json(folder / "without-privacy/folds.json")["mean"]["log_loss"])
    run(recipe, root=tmp_path / "runs")
    assert read_json(folder / "privacy_cost.json") == cost  # looking again does not lose it
    assert "the same without privacy" in (folder / "report.html").read_text()


def test_only_a_finished_private_run_has_a_cost(tmp_path: Path) -> None:
    path = table_recipe(tmp_path, privacy=PRIVACY)
    plain = run(load_recipe(path, ["privacy=null", "name=plain"]), root=tmp_path / "runs").folder
    with pytest.raises(RunError, match="without privacy, so privacy cost nothing"):
        cost_of(plain, on_event=quiet)
    prepared = run(load_recipe(path), root=tmp_path / "runs", stages=("prepare",)).folder
    with pytest.raises(RunError, match=r"is not done\. Finish it first: tauon train"):
        cost_of(prepared, on_event=quiet)


def test_all_folds_are_charged_to_the_ledger_of_all_runs(tmp_path: Path, ledgers: Path) -> None:
    """A fold's folder lies in the run's, and its account does not: else every cross-validation would have a budget of its own."""
    folds = {"data": {"split": {"folds": 2, "validation": 0}}, "train": {"validate_every": None}}
    path = table_recipe(tmp_path, privacy=PRIVACY | {"budget": {"epsilon": 20, "delta": 1e-3}}, **folds)
    run(load_recipe(path), root=tmp_path / "runs", stages=("train",))
    assert not (tmp_path / "runs/table/ledger").exists() and not (tmp_path / "runs/ledger").exists()
    (ledger,) = find_ledgers(ledgers, "")
    assert [e.values["run"] for e in ledger.entries() if e.action == "reserve"] == ["table/fold-0", "table/fold-1"]
    assert not ledger.standing().open and ledger.standing().spent > 4.1
    tight = load_recipe(path, ["name=other", "seed=1", "privacy.target_epsilon=19"])
    with pytest.raises(PrivacyError, match="budget"):
        run(tight, root=tmp_path / "runs", stages=("train",))
