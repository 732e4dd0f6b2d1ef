"""`federate:` in a run: sites that are simulated, an exact resume, the comparison with each site alone, the report, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import tauon
from tauon.artifacts import latest_checkpoint, read_json
from tauon.config import parse
from tauon.errors import Interrupted, RecipeError, RunError, TauonError
from tauon.federated import Message
from tauon.federated.network import JoinAt, network
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.tracking import read_events
from toy import Tauon, text_recipe

pytest.importorskip("sklearn")


def tree(name: str, **sections: Any) -> dict[str, Any]:
    base = {
        "name": name, "seed": 3,
        "data": {"source": {"kind": "sklearn", "name": "iris"}, "split": {"validation": "20%", "test": "30%"}},
        "task": "classification", "model": {"kind": "mlp", "hidden": [8]}, "optim": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 2, "batch": 8}, "federate": {"rounds": 4, "simulate": {"sites": 3}},
    }  # fmt: skip
    return base | sections


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(folder / "checkpoints")
    assert found is not None
    return found.tensors("model")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(parse(Recipe, tree("three")), root=tmp_path_factory.mktemp("federate")).folder


def test_a_federated_run_is_a_run_with_rounds_sites_and_a_comparison(done: Path) -> None:
    found = read_json(done / "federate.json")
    assert [r["round"] for r in found["rounds"]] == [1, 2, 3, 4] and all(r["good"] == 3 for r in found["rounds"])
    assert {n: s["examples"] > 0 and "accuracy" in s["metrics"] for n, s in found["sites"].items()} == {
        f"client-{i}": True for i in range(3)
    }
    comparison = found["comparison"]
    assert set(comparison["alone"]) == {f"client-{i}" for i in range(3)} and sum(comparison["examples"].values()) == 75
    evaluation = read_json(done / "evaluation.json")
    assert comparison["federated"]["metrics"]["accuracy"]["value"] == evaluation["metrics"]["accuracy"]["value"]
    page = (done / "report.html").read_text()
    assert "Federated training" in page and "client-2 alone" in page and "all data in one place" in page
    opened = tauon.open_run(done)
    assert 0 <= opened.metrics["accuracy"].value <= 1


def test_the_pooled_model_of_the_comparison_is_the_run_without_federate(tmp_path: Path, done: Path) -> None:
    sections = {k: v for k, v in tree("plain").items() if k != "federate"} | {"train": {"epochs": 8, "batch": 8}}
    plain = run(parse(Recipe, sections), root=tmp_path, stages=("prepare", "train", "evaluate")).folder
    pooled = read_json(done / "federate.json")["comparison"]["pooled"]["metrics"]
    assert pooled["log_loss"]["value"] == pytest.approx(read_json(plain / "evaluation.json")["metrics"]["log_loss"]["value"], abs=1e-6)


def test_a_model_whose_batch_norm_stayed_at_the_sites_is_not_compared(tmp_path: Path) -> None:
    notes: list[str] = []
    sections = {
        "data": {"source": {"kind": "sklearn", "name": "digits"}, "split": {"validation": "5%", "test": "5%"}},
        "model": {"kind": "resnet20", "width": 8}, "train": {"steps": 1, "batch": 8},
        "federate": {"rounds": 1, "strategy": "fedbn", "simulate": {"sites": 2}},
    }  # fmt: skip
    folder = run(
        parse(Recipe, tree("fedbn", **sections)), root=tmp_path, stages=("prepare", "train", "federate", "report"),
        on_event=lambda kind, /, **f: notes.append(str(f.get("message"))),
    ).folder  # fmt: skip
    found = read_json(folder / "federate.json")
    assert "comparison" not in found and set(found["sites"]) == {"client-0", "client-1"} and (folder / "report.html").is_file()
    assert any("with fedbn batch norm stays at the sites" in n for n in notes)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedbn", "fedadam"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, strategy: str) -> None:
    sections = {
        "federate": {"rounds": 5, "strategy": strategy, "simulate": {"sites": 3, "compare": False}},
        "optim": {"kind": "sgd", "lr": 0.1, "momentum": 0},
    }

    def stop(kind: str, /, **facts: Any) -> None:
        if kind == "step" and facts["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = run(parse(Recipe, tree("whole", **sections)), root=tmp_path, stages=("prepare", "train")).folder
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(Interrupted):
            run(parse(Recipe, tree("stopped", **sections)), root=tmp_path, stages=("prepare", "train"), on_event=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    stopped = run(parse(Recipe, tree("stopped", **sections)), root=tmp_path, stages=("prepare", "train")).folder
    assert "resume" in {e["kind"] for e in read_events(stopped / "events.jsonl")}
    one, other = weights(whole), weights(stopped)
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_language_model_is_trained_at_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = text_recipe(tmp_path, train={"steps": 2, "batch": 4})
    ended = Tauon(capsys)(
        "federate", recipe, "--simulate", "2", "--rounds", "2", "--root", tmp_path / "runs", "federate.optimizer=kept", "--json"
    )
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "runs/toy-federated/federate.json").read_text())
    assert len(found["rounds"]) == 2 and set(found["comparison"]["alone"]) == {"client-0", "client-1"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"time": "1m", "batch": 8}}, r"train\.time.*same local work"),
        ({"train": {"epochs": 1, "batch": 8, "keep_early": 3}}, r"train\.keep_early"),
        ({"qat": {}}, "qat.*does not work with federate"),
        ({"parallel": {"kind": "diloco"}}, "parallel.*coordinator is one process"),
        ({"privacy": {"noise_multiplier": 1.0, "delta": 1e-5}}, "privacy.*real site"),
        ({"federate": {"rounds": 2}}, "trains at real sites"),
        ({"federate": {"rounds": 2, "strategy": "fedbuff", "simulate": {}}}, r"federate\.strategy.*as they arrive"),
        ({"federate": {"rounds": 2, "strategy": "krum", "simulate": {"sites": 2}}}, "krum"),
        ({"federate": {"rounds": 2, "simulate": {"sites": 30, "compare": True}}}, r"federate\.simulate\.compare.*30 more models"),
        ({"federate": {"rounds": 2, "simulate": {"sites": 999}}}, "75 examples cannot be dealt to 999"),
        ({"federate": {"rounds": 0, "simulate": {}}}, r"federate\.rounds"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        run(parse(Recipe, tree("bad", **sections)), root=tmp_path, stages=("prepare", "train"))
    assert isinstance(caught.value, RecipeError) or "dealt" in message


def test_a_split_by_class_needs_classes(tmp_path: Path) -> None:
    sections = {
        "data": {"source": {"kind": "sklearn", "name": "diabetes"}}, "task": "regression",
        "federate": {"rounds": 1, "simulate": {"split": "dirichlet"}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="this task has none"):
        run(parse(Recipe, tree("bad", **sections)), root=tmp_path, stages=("prepare", "train"))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rmsprop", "adamw", "lion", "muon", "soap", "adafactor"])
def test_one_site_in_one_round_is_training_at_one_place(tmp_path: Path, kind: str) -> None:
    sections = {
        "optim": {"kind": kind, "lr": 0.01, "schedule": {"kind": "constant", "warmup": 0}},  # a round has one rate
        "train": {"steps": 5, "batch": 75},  # all examples in a batch: the order does not matter
    }
    plain = {k: v for k, v in tree("plain", **sections).items() if k != "federate"}
    one = run(parse(Recipe, plain), root=tmp_path, stages=("prepare", "train")).folder
    federate = {"federate": {"rounds": 1, "simulate": {"sites": 1}}}
    other = run(parse(Recipe, tree("federated", **sections, **federate)), root=tmp_path, stages=("prepare", "train")).folder
    losses = [[e["loss"] for e in read_events(f / "events.jsonl") if e["kind"] == "validate"][-1] for f in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # gradients near zero are rounding, which Adam makes large


CAP = {"max_examples": 30}


def federated_weights(tmp_path: Path, name: str, **federate: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    sections = {"federate": {"rounds": 3, "weighting": CAP, "simulate": {"sites": 5, "compare": False}} | federate}
    folder = run(parse(Recipe, tree(name, **sections)), root=tmp_path, stages=("prepare", "train", "federate", "report")).folder
    return folder, weights(folder)


def test_secure_aggregation_gives_the_same_model_within_its_steps(tmp_path: Path) -> None:
    _, clear = federated_weights(tmp_path, "clear")
    folder, secure = federated_weights(tmp_path, "secure", secure_aggregation={})
    assert all(torch.allclose(clear[n], secure[n], atol=1e-5) for n in clear)
    rounds = read_json(folder / "federate.json")["rounds"]
    assert [r["good"] for r in rounds] == [5, 5, 5] and all(known == {} for r in rounds for known in r["sites"].values())  # no site's loss


@pytest.mark.parametrize(
    ("privacy", "more"),
    [
        ({"mode": "central"}, {}),
        ({"mode": "central", "sampling": "poisson"}, {"fraction": 0.6}),
        ({"mode": "local"}, {}),
        ({"mode": "central"}, {"secure_aggregation": {}}),
        ({"mode": "distributed", "contributors": 4}, {"secure_aggregation": {}}),
    ],
)
def test_updates_are_private_and_the_run_says_what_that_spent(tmp_path: Path, privacy: dict[str, Any], more: dict[str, Any]) -> None:
    settings = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-2} | privacy
    folder, noised = federated_weights(tmp_path, "private", privacy=settings, **more)
    _, plain = federated_weights(tmp_path, "plain")
    assert not all(torch.allclose(noised[n], plain[n], atol=1e-2) for n in plain)
    found = read_json(folder / "federate.json")
    assert 0 < found["privacy"]["guarantee"]["epsilon"] < 100 and found["privacy"]["guarantee"]["delta"] == 1e-2
    assert not found["sites"]  # exact figures of single sites would be none of it
    assert "A person whose rows are at several sites" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("federate", "message"),
    [
        ({"privacy": {"mode": "distributed", "clip_norm": 1, "noise_multiplier": 1, "delta": 0.01, "contributors": 4}}, "secure sum"),
        ({"secure_aggregation": {}, "weighting": {}}, "max_examples"),
        ({"secure_aggregation": {}, "strategy": "krum"}, r"\.group to at least 3"),
        ({"secure_aggregation": {}, "simulate": {"sites": 2}}, "at least 3"),
        ({"privacy": {"clip_norm": 1, "noise_multiplier": 1, "delta": 0.01}, "strategy": "scaffold"}, "control variates"),
    ],
)
def test_protection_that_would_not_protect_is_refused(tmp_path: Path, federate: dict[str, Any], message: str) -> None:
    with pytest.raises(TauonError, match=message):
        federated_weights(tmp_path, "bad", **federate)


class Coordinator:
    """What a site sees in place of a network: rounds, then how it ends."""

    def __init__(self, rounds: int, end: str) -> None:
        self.rounds, self.end, self.final = rounds, end, dict[str, torch.Tensor]()

    def __call__(self, address: str, site: Any, **more: Any) -> None:
        local = site.site.local
        session = site.answer(Message("join", fields={"identity": {}})).fields["session"]
        sent = {n: t.clone() for n, t in local.travels.items()}
        for number in range(1, self.rounds + 1):
            site.answer(Message("train", number, "n", {"session": session, "epochs": 1}, sent))
        if self.end == "kill":
            raise Interrupted("killed")
        if self.end == "final":
            self.final = {n: torch.full_like(t, 0.25) for n, t in sent.items()}
            site.answer(Message("final", self.rounds, "m", {"session": session}, self.final))


def test_a_site_that_was_killed_after_its_last_round_ends_with_the_final_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr")
    recipe = parse(Recipe, tree("site", federate={"rounds": 2}))

    def joined(coordinator: Coordinator) -> Path:
        monkeypatch.setattr("tauon.federated.flower.join", coordinator)
        with network(JoinAt("127.0.0.1:1", "a", tmp_path)):
            return run(recipe, root=tmp_path, stages=("prepare", "train")).folder

    with pytest.raises(Interrupted):
        joined(Coordinator(2, "kill"))
    with pytest.raises(RunError, match="ended before this site had the final weights"):
        joined(Coordinator(0, "end"))
    last = Coordinator(0, "final")
    found = weights(joined(last))
    assert last.final and all(torch.equal(found[n], t) for n, t in last.final.items())
    joined(again := Coordinator(0, "final"))
    assert not again.final  # it is done


def test_a_site_that_protects_patients_accounts_for_the_steps_that_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr")
    rows = [f"{i % 7},{(i * 5) % 11},p{i // 10},{'yes' if i % 3 else 'no'}" for i in range(400)]
    (tmp_path / "own.csv").write_text("a,b,patient,y\n" + "\n".join(rows) + "\n")
    sections = {
        "data": {
            "source": {"kind": "csv", "path": str(tmp_path / "own.csv"), "label": "y"}, "table": {"group": "patient"}, "normalize": "none",
            "split": {"validation": "10%", "test": "10%"},
        },
        "model": {"kind": "mlp", "hidden": [4]}, "train": {"epochs": 1, "batch": 8}, "federate": {"rounds": 2},
        "privacy": {"unit": "group", "rows_per_unit": 2, "noise_multiplier": 2.0, "delta": 1e-3, "generator": "seeded"},
    }  # fmt: skip
    monkeypatch.setenv("TAUON_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr("tauon.federated.flower.join", Coordinator(2, "final"))
    with network(JoinAt("127.0.0.1:1", "a", tmp_path)):
        folder = run(parse(Recipe, tree("patients", **sections)), root=tmp_path, stages=("prepare", "train")).folder
    record = read_json(folder / "privacy.json")
    assert 25 < record["units"] < 40 and record["steps"] == 2 * -(-record["units"] // 8)


def test_keys_that_are_missing_are_named_with_where_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = text_recipe(tmp_path, federate={"rounds": 1, "sites": 3})
    ended = Tauon(capsys)("federate", "serve", recipe, "--keys", tmp_path / "none")
    assert ended.code == 2 and "server.crt is missing" in ended.err and "tauon federate keys coordinator" in ended.err
    ended = Tauon(capsys)("federate", "join", "127.0.0.1:1", recipe, "--name", "a", "--keys", tmp_path / "none")
    assert ended.code == 2 and "a.key is missing" in ended.err and "tauon federate keys site a" in ended.err


CENTRAL = {"clip_norm": 1, "noise_multiplier": 1, "delta": 0.01}


@pytest.mark.parametrize(
    ("federate", "key"),
    [
        ({"group": 3}, "federate.group"),
        ({"group": 3, "strategy": "fedadam"}, "federate.group"),
        ({"secure_aggregation": {"bound": 4}, "privacy": CENTRAL, "weighting": CAP}, "federate.secure_aggregation.bound"),
        ({"privacy": CENTRAL | {"contributors": 4}}, "federate.privacy.contributors"),
        ({"privacy": CENTRAL | {"mode": "local", "colluders": 1}}, "federate.privacy.colluders"),
        ({"privacy": CENTRAL, "weighting": {"max_gain": 3}}, "federate.weighting.max_gain"),
        ({"strategy": "median", "weighting": CAP}, "federate.weighting.max_examples"),
        ({"strategy": "qfedavg", "weighting": {"by": "equal"}}, "federate.weighting.by"),
        ({"strategy": "krum", "weighting": {"max_gain": 3}}, "federate.weighting.max_gain"),
    ],
)
def test_a_setting_without_effect_is_refused_before_anything_runs(federate: dict[str, Any], key: str) -> None:
    for place in ({"simulate": {"sites": 5}}, {"sites": 5}):  # a real deployment reads no more than a simulation
        with pytest.raises(RecipeError) as refused:
            parse(Recipe, tree("x", federate={"rounds": 1} | federate | place))
        assert [p.path for p in refused.value.problems] == [key] and "Remove it" in str(refused.value)


def test_the_recipe_of_real_sites_is_simulated_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federate = {"rounds": 1, "sites": 4, "timeout": "5m", "weighting": CAP, "secure_aggregation": {"first_use": False, "timeout": 30}}
    recipe = tmp_path / "real.yaml"
    recipe.write_text(json.dumps(tree("real", federate=federate)))
    ended = Tauon(capsys)("federate", recipe, "--root", tmp_path, "federate.simulate.compare=false")
    assert ended.code == 0, ended
    assert read_json(tmp_path / "real" / "federate.json")["rounds"][0]["good"] == 4
    assert "name=longer federate.rounds=2" in ended.out  # rounds are its length, not the passes of one


def test_commands_of_real_sites_name_what_is_wrong_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flwr", reason="federated training needs: pip install 'tauon[federated]'")
    tauon, keys = Tauon(capsys), tmp_path / "keys"
    plain = text_recipe(tmp_path)
    for words in (("serve",), ("join", "localhost:9443")):
        more = () if words == ("serve",) else ("--name", "a")
        ended = tauon("federate", *words, plain, *more, "--keys", keys)
        assert ended.code == 2 and "has no section federate" in ended.err
    recipe = text_recipe(tmp_path, federate={"rounds": 1, "sites": 3})
    assert "without https://" in tauon("federate", "join", "https://localhost:9443", recipe, "--name", "a", "--keys", keys).err
    assert "from 1 to 65535" in tauon("federate", "serve", recipe, "--address", "0.0.0.0:94430", "--keys", keys).err
    assert tauon("federate", "keys", "coordinator", "localhost", "--keys", keys).code == 0
    ended = tauon("federate", "serve", recipe, "--keys", keys, "--root", tmp_path / "runs")
    assert ended.code == 8 and "names no site" in ended.err and not (tmp_path / "runs").exists()
    ended = tauon("federate", "keys", "show", "--keys", keys)
    assert ended.code == 0 and "ca.crt" in ended.out and "for localhost; ends" in ended.out
