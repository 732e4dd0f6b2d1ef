"""The privacy of sites in a federated run: noise from a target, a ledger that is charged once, whatever ends the run, and the records of it."""

from __future__ import annotations

import os
import re
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, read_json
from tauon.config import parse
from tauon.errors import Interrupted, PrivacyError, RecipeError, TauonError
from tauon.federated.private import UpdatePrivacy, calibrate_noise, site_guarantee
from tauon.pipeline import run
from tauon.privacy.charge import settle_run
from tauon.privacy.ledger import Ledger
from tauon.recipe import Recipe

pytestmark = pytest.mark.long

pytest.importorskip("sklearn")
BUDGET = {"epsilon": 8.0, "delta": 1e-2}


def recipe(name: str, tmp_path: Path, *, rounds: int = 4, more: dict[str, Any] | None = None, **privacy: Any) -> Recipe:
    settings = {"clip_norm": 0.5, "delta": 1e-2, "ledger": str(tmp_path / "ledger")} | privacy
    federate = {"rounds": rounds, "weighting": {"max_examples": 30}, "simulate": {"sites": 5, "compare": False}, "privacy": settings}
    tree = {
        "name": name, "seed": 3,
        "data": {"source": {"kind": "sklearn", "name": "iris"}, "split": {"validation": "20%", "test": "30%"}},
        "task": "classification", "model": {"kind": "mlp", "hidden": [8]}, "optim": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch": 8}, "federate": federate | (more or {}),
    }  # fmt: skip
    return parse(Recipe, tree)


def done(
    tmp_path: Path, name: str, *, stages: tuple[str, ...] = ("prepare", "train", "federate", "report"), on_event: Any = None, **more: Any
) -> Path:
    return run(
        recipe(name, tmp_path, **more), root=tmp_path / "runs", stages=stages, **({} if on_event is None else {"on_event": on_event})
    ).folder


def ledger(tmp_path: Path) -> Ledger:
    (path,) = (tmp_path / "ledger").glob("*.jsonl")
    return Ledger(tmp_path / "ledger", path.stem)


def kill_after(step: int) -> Any:
    def stop(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


@pytest.fixture
def sigterm() -> Any:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_noise_is_the_least_for_the_target_and_the_report_says_what_was_spent(tmp_path: Path) -> None:
    folder = done(tmp_path, "target", target_epsilon=6.0, budget=BUDGET)
    found = read_json(folder / "federate.json")["privacy"]
    wanted = calibrate_noise(UpdatePrivacy("central", 0.5, 1.0, sites=5), 4, target_epsilon=6.0, delta=1e-2)
    expected = site_guarantee(wanted, 4, 1e-2)
    record = read_json(folder / "privacy.json")
    assert 5.9 < found["guarantee"]["epsilon"] <= 6 and found["guarantee"]["epsilon"] == pytest.approx(expected.epsilon)
    assert record["noise_multiplier"] == wanted.noise_multiplier and record["guarantee"]["unit"] == "site" and record["steps"] == 4
    assert RunFolder(folder).manifest()["privacy"]["epsilon"] == found["guarantee"]["epsilon"]
    standing = ledger(tmp_path).standing()
    assert standing.spent == standing.reserved == pytest.approx(expected.epsilon) and not standing.open
    page = (folder / "report.html").read_text()
    assert "calibrated to epsilon 6" in page and "epsilon 6 of 8 at delta 0.01" in page and "Results of 4 rounds" in page


@pytest.mark.parametrize(
    ("privacy", "more"),
    [
        ({"mode": "central", "sampling": "poisson"}, {"fraction": 0.6}),
        ({"mode": "central", "sampling": "fixed-size"}, {"fraction": 0.6}),
        ({"mode": "local"}, {}),
        ({"mode": "distributed", "contributors": 4}, {"secure_aggregation": {}}),
    ],
)
def test_every_mode_stays_within_the_target_and_is_charged(tmp_path: Path, privacy: dict[str, Any], more: dict[str, Any]) -> None:
    folder = done(tmp_path, "mode", target_epsilon=7.0, budget=BUDGET, more=more, **privacy)
    epsilon = read_json(folder / "privacy.json")["guarantee"]["epsilon"]
    assert 6.8 < epsilon <= 7.0 + 1e-6
    assert ledger(tmp_path).standing().spent == pytest.approx(epsilon, rel=1e-3)


def test_noise_and_target_together_and_neither_are_refused(tmp_path: Path) -> None:
    for given in ({"target_epsilon": 1.0, "noise_multiplier": 1.0}, {}):
        with pytest.raises(RecipeError, match="exactly one of target_epsilon and noise_multiplier"):
            recipe("bad", tmp_path, **given)


def test_a_federation_whose_budget_is_gone_is_refused_before_the_first_round(tmp_path: Path) -> None:
    done(tmp_path, "first", target_epsilon=6.0, budget=BUDGET)
    with pytest.raises(PrivacyError, match=r"second cannot start.*epsilon 8 at delta 0.01; spent: 5.9"):
        done(tmp_path, "second", target_epsilon=6.0)
    assert not list((tmp_path / "runs/second/checkpoints").glob("*")) and not ledger(tmp_path).standing().open
    done(tmp_path, "third", noise_multiplier=40.0)  # what is left


def test_without_a_budget_nothing_is_charged_and_the_run_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = done(tmp_path, "none", noise_multiplier=2.0, on_event=lambda kind, /, **f: notes.append(str(f.get("message"))))
    assert any("this federation has no ledger" in n for n in notes) and not (tmp_path / "ledger").exists()
    assert "There is no budget over several runs" in (folder / "report.html").read_text()


def test_a_run_that_is_stopped_is_settled_and_charged_for_each_round_once(tmp_path: Path, sigterm: None) -> None:
    with pytest.raises(Interrupted):
        done(tmp_path, "stopped", target_epsilon=6.0, budget=BUDGET, on_event=kill_after(2))
    account = ledger(tmp_path)
    assert not account.standing().open and [r.count for e in account.entries() if e.action == "settle" for r in e.releases] == [2]
    folder = done(tmp_path, "stopped", target_epsilon=6.0, budget=BUDGET)
    standing = ledger(tmp_path).standing()
    assert read_json(folder / "privacy.json")["steps"] == 4 and not standing.open
    assert standing.spent == pytest.approx(read_json(folder / "privacy.json")["guarantee"]["epsilon"])
    done(tmp_path, "stopped", target_epsilon=6.0, budget=BUDGET)  # done: nothing is charged
    assert ledger(tmp_path).standing().spent == standing.spent


def dying_run(tmp_path: Path, name: str, rounds: int, planned: int) -> None:
    """Run in a process that dies when so many rounds were released, before the last of them is saved."""
    from tauon.stages.extensions.federation_ledger import RoundsAccount

    torch.set_num_threads(1)
    released = RoundsAccount.released

    def dying(self: RoundsAccount, count: int) -> None:
        released(self, count)
        if count == rounds:
            os._exit(9)

    RoundsAccount.released = dying  # type: ignore[method-assign]
    done(tmp_path, name, target_epsilon=6.0, budget=BUDGET, rounds=planned)


def killed_at(tmp_path: Path, name: str, rounds: int, planned: int = 4) -> None:
    process = get_context("spawn").Process(target=dying_run, args=(tmp_path, name, rounds, planned))
    process.start()
    process.join(120)
    assert process.exitcode == 9


def test_a_round_that_a_kill_took_is_paid_and_not_done_again(tmp_path: Path) -> None:
    killed_at(tmp_path, "killed", 3)
    assert len(ledger(tmp_path).standing().open) == 1
    notes: list[str] = []
    folder = done(tmp_path, "killed", target_epsilon=6.0, budget=BUDGET, on_event=lambda kind, /, **f: notes.append(str(f.get("message"))))
    (lost,) = [int(found[1]) for n in notes if (found := re.match(r"(\d) rounds were lost", n))]  # the last checkpoint may not be complete
    assert lost >= 1 and RunFolder(folder).stage("train")["steps"] == 4 - lost  # type: ignore[index]
    record, standing = read_json(folder / "privacy.json"), ledger(tmp_path).standing()
    assert record["steps"] == 4 and record["guarantee"]["epsilon"] <= 6 and not standing.open
    assert standing.spent == pytest.approx(record["guarantee"]["epsilon"])
    assert len([e for e in ledger(tmp_path).entries() if e.action == "reserve"]) == 1


def test_a_run_that_is_killed_twice_resumes_and_pays_for_each_round_once(tmp_path: Path) -> None:
    for rounds in (2, 5):
        killed_at(tmp_path, "killed", rounds, planned=7)
    folder = done(tmp_path, "killed", target_epsilon=6.0, budget=BUDGET, rounds=7)
    record, standing = read_json(folder / "privacy.json"), ledger(tmp_path).standing()
    assert record["steps"] == 7 and record["guarantee"]["epsilon"] <= 6 and not standing.open
    assert standing.spent == pytest.approx(record["guarantee"]["epsilon"])
    assert RunFolder(folder).stage("train")["steps"] <= 5  # type: ignore[index]


def test_a_killed_run_that_is_given_up_is_charged_for_its_rounds(tmp_path: Path) -> None:
    killed_at(tmp_path, "killed", 3)
    settled = settle_run(tmp_path / "runs/killed")
    assert settled is not None and settled[2] == 3 and [r.count for r in settled[1].releases] == [3]
    with pytest.raises(TauonError, match="cannot start"):
        done(tmp_path, "other", target_epsilon=7.0)


@pytest.mark.parametrize(
    ("privacy", "more"),
    [
        ({}, {}),
        ({}, {"secure_aggregation": {}}),
        ({"mode": "local"}, {}),
        ({"mode": "distributed", "contributors": 4}, {"secure_aggregation": {}}),
    ],
)
def test_a_clipping_norm_that_follows_the_updates_is_recorded(tmp_path: Path, privacy: dict[str, Any], more: dict[str, Any]) -> None:
    folder = done(tmp_path, "moving", noise_multiplier=0.3, adaptive={"rate": 0.5}, more=more, **privacy)
    record = read_json(folder / "privacy.json")
    assert record["clipping"]["adaptive"] and record["clipping"]["norm"] != 0.5 and record["steps"] == 4
