"""`tauon privacy`: a calculator that agrees with the library, and a view of ledgers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("dp_accounting")

from tauon.artifacts import RunFolder
from tauon.privacy.accounting import Release, epsilon
from tauon.privacy.ledger import Ledger, data_identity
from tauon.recipe import load_recipe
from tauon.tracking import EventLog
from tauon.train import BatchSizeScheduler
from toy import Tauon, table_recipe

DATA = "ab" * 32


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


@pytest.mark.parametrize("verb", ["", "ledger", "remaining", "spend", "settle", "cost", "epsilon"])
def test_help_teaches(tauon: Tauon, verb: str) -> None:
    ended = tauon("privacy", *([verb] if verb else []), "--help")
    assert ended.code == 0 and "Usage: tauon privacy" in ended.out
    assert verb or ("1 is strong" in ended.out and "tauon privacy epsilon --noise" in ended.out)


def test_the_calculator_is_the_accountant(tauon: Tauon) -> None:
    ended = tauon("privacy", "epsilon", "--noise", "1.1", "--rate", "0.01", "--steps", "1000", "--delta", "1e-5", "--delta", "1e-6")
    assert ended.code == 0, ended
    for delta in (1e-5, 1e-6):
        assert f"epsilon {epsilon(Release(1.1, 'poisson', 0.01, 1000), delta):.4f} at delta {delta:g}" in ended.out
    ended = tauon("privacy", "epsilon", "--noise", "1.3", "--batch", "256", "--examples", "60000", "--epochs", "15", "--json")
    values = json.loads(ended.out)
    assert values["steps"] == 3516 and values["epsilons"] == [[pytest.approx(0.1 / 60000), pytest.approx(0.96, abs=0.02)]]


def test_it_finds_the_noise_of_a_schedule_for_a_target_and_draws_the_curve(tauon: Tauon, tmp_path: Path) -> None:
    args = ["--target", "2", "--rate", "0.02", "--steps", "100", "--schedule", "{kind: linear, final: 0.5}", "--plot", "plot.html"]
    ended = tauon("privacy", "epsilon", *args)
    assert ended.code == 0, ended
    noise = float(ended.out.split()[2])
    steps = [Release(noise * (1 - 0.5 * i / 99), "poisson", 0.02) for i in range(100)]
    assert epsilon(steps, 1e-5) == pytest.approx(2, rel=5e-3)
    page = (tmp_path / "plot.html").read_text()
    assert "Was this person in the data?" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_it_counts_the_steps_that_training_makes(tauon: Tauon) -> None:
    """Epochs become whole steps, never fewer: by the very function of `train.epochs`."""
    shown = tauon("privacy", "epsilon", "--noise", "1", "--batch", "80", "--examples", "100", "--epochs", "1", "--delta", "1e-3", "--json")
    assert json.loads(shown.out)["steps"] == 2 == BatchSizeScheduler(80).steps_for(1.0 * 100)
    for batch, examples, epochs in ((7, 100, 1), (10, 100, 0.31), (1, 3, 0.01), (33, 1000, 2.5), (1000, 1000, 3), (64, 60_000, 0.0001)):
        args = ["--noise", "9", "--batch", str(batch), "--examples", str(examples), "--epochs", str(epochs), "--json"]
        values = json.loads(tauon("privacy", "epsilon", *args).out)
        assert values["steps"] == BatchSizeScheduler(batch).steps_for(epochs * examples), args
        assert values["steps"] * batch >= epochs * examples - 1e-6
    values = json.loads(tauon("privacy", "epsilon", "--noise", "1", "--rate", "0.8", "--epochs", "1", "--json").out)
    assert values["steps"] == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--rate", "0.1", "--steps", "5"], "either --noise or --target"),
        (["--noise", "1", "--steps", "5"], "either --rate, or --batch"),
        (["--noise", "1", "--batch", "5", "--steps", "5"], "--batch needs --examples"),
        (["--noise", "1", "--rate", "0.1"], "either --steps or --epochs"),
        (["--noise", "0", "--rate", "0.1", "--steps", "5"], "not in the range x>0"),
        (["--noise", "1", "--rate", "0.1", "--steps", "5", "--sampling", "fixed-size"], "accountant=rdp"),
        (["--noise", "1", "--batch", "50", "--examples", "10", "--steps", "5"], "larger than the data"),
        (["--noise", "1", "--batch", "5", "--examples", "1000", "--steps", "5", "--delta", "0.001"], "not below 1/N"),
        (["--noise", "1", "--rate", "0.1", "--steps", "5", "--schedule", "pink"], "no noise is called 'pink'"),
    ],
)
def test_what_cannot_be_computed_is_refused(tauon: Tauon, args: list[str], says: str) -> None:
    ended = tauon("privacy", "epsilon", *args)
    assert ended.code == 2 and says in ended.err.replace("\n", " "), ended


def test_spending_by_hand_and_what_remains(tauon: Tauon) -> None:
    ended = tauon("privacy", "spend", DATA, "--epsilon", "0.5")
    assert ended.code == 2 and "first use" in ended.err
    ended = tauon(
        "privacy", "spend", DATA, "--epsilon", "0.5", "--delta", "1e-7", "--note", "ages", "--budget", "3", "1e-5", "--examples", "9000"
    )
    assert ended.code == 0 and "entry 2: epsilon 0.5" in ended.out, ended
    assert tauon("privacy", "spend", "abab", "--noise", "2", "--rate", "0.01", "--steps", "100").code == 0
    values = json.loads(tauon("privacy", "remaining", "abab", "--json").out)
    both = epsilon([Release(0.0, "known", known=(0.5, 1e-7)), Release(2.0, "poisson", 0.01, 100)], 1e-5)
    assert values["spent"] == pytest.approx(both) and values["left"] == pytest.approx(3 - both)
    ended = tauon("privacy", "ledger", "abab")
    assert ended.code == 0 and "ages" in ended.out and "budget epsilon 3 at delta 1e-05" in ended.out
    assert [json.loads(x)["action"] for x in tauon("privacy", "ledger", "abab", "--json").out.splitlines()] == ["open", "spend", "spend"]
    ended = tauon("privacy", "spend", "abab", "--epsilon", "2.9")
    assert ended.code == 9 and "together" in ended.err and "> 3" in ended.err and "still fits" in ended.err
    for wrong in (["--epsilon", "1", "--noise", "1"], []):
        assert "give either --epsilon" in tauon("privacy", "spend", "abab", *wrong).err


def test_verbs_and_runs_agree_on_the_ledger(tauon: Tauon, tmp_path: Path, ledgers: Path) -> None:
    """Without --ledger: the account beside the runs, where there is one; else that of the user."""
    budget = ["--budget", "3", "1e-5", "--examples", "9000"]
    assert tauon("privacy", "spend", DATA, "--epsilon", "0.5", *budget).code == 0
    assert Ledger(ledgers, DATA).exists() and not (tmp_path / "runs").exists()
    other = "cd" * 32
    assert tauon("privacy", "spend", other, "--epsilon", "0.5", "--ledger", "runs/ledger", *budget).code == 0
    for data, folder in ((DATA, ledgers), (other, Path("runs/ledger"))):
        assert tauon("privacy", "spend", data[:8], "--epsilon", "0.5").code == 0
        assert [e.action for e in Ledger(folder, data).entries()] == ["open", "spend", "spend"]
    for verb in ("ledger", "remaining", "spend"):
        said = " ".join(tauon("privacy", verb, "--help").out.split())
        assert "TAUON_LEDGER, or tauon/ledger in XDG_DATA_HOME (~/.local/share), shared by all your runs" in said, said


def test_a_data_set_may_be_named_by_recipe_run_or_digits(tauon: Tauon, tmp_path: Path) -> None:
    recipe = table_recipe(tmp_path / "r")
    data = data_identity(load_recipe(recipe).data.source)
    assert "has no ledger" in tauon("privacy", "ledger", recipe).out
    ended = tauon("privacy", "remaining", recipe)
    assert ended.code == 3 and "no ledger yet" in ended.err
    ledger = Ledger(tmp_path / "runs" / "ledger", data)
    ledger.open((3.0, 1e-4), examples=150)
    made = ledger.reserve("mine", [Release(4.0, "poisson", 0.1, 50)])
    with RunFolder.open(tmp_path / "runs" / "mine") as run:
        run.update_manifest(privacy={"ledger": str(ledger.folder), "data": data, "reservation": made.number})
        with EventLog(run.events_path) as log:
            log.log("step", step=20, loss=1.0)
    for name in (str(recipe), str(tmp_path / "runs" / "mine"), data[:6]):
        values = json.loads(tauon("privacy", "remaining", name, "--json").out)
        assert values["data"] == data and values["open"] == [2]
    ended = tauon("privacy", "settle", tmp_path / "runs" / "mine")
    assert ended.code == 0 and "mine: 20 steps" in ended.out, ended
    values = json.loads(tauon("privacy", "remaining", data[:6], "--json").out)
    assert values["spent"] == pytest.approx(epsilon(Release(4.0, "poisson", 0.1, 20), 1e-4)) and math.isclose(
        values["spent"], values["reserved"]
    )
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs" / "mine", copy)
    ended = tauon("privacy", "settle", copy)
    assert ended.code == 5 and "is a copy of" in ended.err.replace("\n", " "), ended
    for wrong, says in (("nothing-there", "not a recipe, not a private run"), ("abcdef", "not a recipe, not a private run")):
        ended = tauon("privacy", "ledger", wrong)
        assert ended.code == 2 and says in ended.err
    with RunFolder.open(tmp_path / "runs" / "plain") as run:
        run.update_manifest(seed=0)
    assert "without privacy" in tauon("privacy", "ledger", tmp_path / "runs" / "plain").err
