"""`tauon audit` on whole runs: what it finds in a model that learned by heart, what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tauon.errors import PrivacyError
from toy import Tauon, merged, nothing_half_written, text_recipe, write


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def digits_recipe(folder: Path, **sections: Any) -> Path:
    """A classifier that learns 300 handwritten digits by heart; the rest are held out, at random."""
    base: dict[str, Any] = {
        "name": "heart", "seed": 3, "data": {"source": {"kind": "sklearn", "name": "digits", "limit": 600}, "split": {"test": "50%", "validation": 0}},
        "task": "classification", "model": {"kind": "mlp", "hidden": [64]}, "optim": {"kind": "adam", "lr": 1e-2},
        "train": {"steps": 120, "batch": 100, "checkpoint_every": 120, "compile": False}, "evaluate": {"resamples": 100},
    }  # fmt: skip
    return write(folder / "recipe.yaml", merged(base, sections))


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "audit.json").read_text())
    return found


def test_a_model_that_learned_by_heart_is_found_out_and_reference_models_resume(tauon: Tauon, tmp_path: Path) -> None:
    assert tauon("run", digits_recipe(tmp_path, train={"steps": 60}), "--quiet").code == 0
    run = tmp_path / "runs" / "heart"
    ended = tauon("audit", run, "--shadows", "2", "--quiet")
    assert ended.code == 0, ended
    first = record_of(run)
    assert [a["name"] for a in first["attacks"]] == ["loss", "difference", "lira_offline", "lira"]
    assert all(a["members"] == a["others"] == 300 for a in first["attacks"])
    assert max(a["auc"] for a in first["attacks"]) > 0.52 and len(first["attacks"][0]["slices"]) == 10
    assert first["random_split"] and first["pairs"]["bound"]["coins"] > 250 and first["guarantee"] is None and not first["contradicts"]
    assert (run / "audit" / "shadow-001" / "checkpoints").is_dir() and (run / "audit" / "shadow-001" / "recipe.yaml").exists()
    page = (run / "report.html").read_text()
    for part in (
        "What was proven",
        "ROC of the attacks",
        "log scale",
        "By class",
        "has no privacy guarantee",
        "Likelihood" if False else "Carlini",
    ):
        assert part in page
    marks = {p: p.stat().st_mtime_ns for p in (run / "audit").rglob("*.safetensors")}
    again = tauon("audit", run, "--shadows", "2", "--json")
    assert again.code == 0 and marks == {p: p.stat().st_mtime_ns for p in (run / "audit").rglob("*.safetensors")}
    second = record_of(run)
    assert {k: v for k, v in first.items() if k != "time"} == {k: v for k, v in second.items() if k != "time"}
    said = [json.loads(line) for line in again.out.splitlines()]
    assert said[-1]["kind"] in ("audit", "report") and any(line["kind"] == "audit" and "summary" in line for line in said)
    nothing_half_written(run)


def test_a_claim_that_the_model_refutes_ends_with_exit_code_9_and_is_red_in_the_report(tauon: Tauon, tmp_path: Path) -> None:
    """A model that learned by heart, beside a guarantee of nearly perfect privacy that somebody wrote down."""
    train = {"steps": 400, "batch": 64, "checkpoint_every": 400}
    assert tauon("run", digits_recipe(tmp_path, train=train, data={"split": {"test": "60%", "validation": 0}}), "--quiet").code == 0
    run = tmp_path / "runs" / "heart"
    (run / "privacy.json").write_text(json.dumps({"guarantee": {"epsilon": 0.01, "delta": 1e-6, "neighbouring": "add or remove one"}}))
    ended = tauon("audit", run, "--quiet")
    found = record_of(run)
    assert found["attacks"][0]["auc"] > 0.55 and found["epsilon"] > 0.01 and found["contradicts"]
    assert ended.code == PrivacyError.exit_code == 9 and "refutes the guarantee" in ended.err
    page = (run / "report.html").read_text()
    assert 'class="status bad"' in page and "refuted (p" in page and "Guarantee and attacks" in page
    (run / "privacy.json").write_text(json.dumps({"guarantee": {"epsilon": 12.0, "delta": 1e-6, "neighbouring": "add or remove one"}}))
    assert tauon("audit", run, "--quiet").code == 0 and not record_of(run)["contradicts"]


def test_a_language_model_is_asked_for_its_least_likely_tokens(tauon: Tauon, tmp_path: Path) -> None:
    assert tauon("run", text_recipe(tmp_path), "--quiet").code == 0
    run = tmp_path / "runs" / "toy"
    assert tauon("audit", run, "--quiet", "--examples", "50").code == 0
    found = record_of(run)
    assert [a["name"] for a in found["attacks"]] == ["loss", "min_k", "zlib"] and found["pairs"] is None and not found["random_split"]
    assert found["attacks"][0]["members"] == 50 and found["held_out"] == "validation"
    assert "was not drawn at random" in (run / "report.html").read_text()


def test_what_cannot_be_audited_is_refused_with_the_way_out(tauon: Tauon, tmp_path: Path) -> None:
    recipe = digits_recipe(tmp_path, train={"steps": 2, "checkpoint_every": 2})
    assert tauon("audit", tmp_path).code == 5  # a recipe, and no run
    assert tauon("train", recipe, "--quiet").code == 0
    run = tmp_path / "runs" / "heart"
    odd = tauon("audit", run, "--shadows", "3")
    assert odd.code == 2 and "Give an even number" in odd.err
    assert (
        tauon(
            "train", digits_recipe(tmp_path, name="all", data={"split": {"test": 0, "validation": 0}}, train={"steps": 2}), "--quiet"
        ).code
        == 0
    )
    nothing = tauon("audit", tmp_path / "runs" / "all")
    assert nothing.code == 2 and "data.split" in nothing.err and "Hold some out" in nothing.err
    (run / "privacy.json").write_text('{"guarantee": {"epsilon": 1}}')
    assert tauon("audit", run).code == 5


def test_secrets_in_a_language_models_data_are_exposed_by_how_often_they_were_there(tauon: Tauon, tmp_path: Path) -> None:
    """A small model that reads secrets again and again has them by heart; those whose coin said no it does not know."""
    audit = {"canaries": 8, "kind": "secret", "repeats": [1, 20], "digits": 2, "template": "{name} {secret}", "seed": 2}
    model = {"kind": "gpt", "layers": 2, "width": 48, "heads": 4}
    train = {"steps": 120, "batch": 16, "checkpoint_every": 120, "validate_every": 120}
    recipe = text_recipe(
        tmp_path, data={"seq_len": 24}, model=model, train=train, optim={"kind": "adamw", "lr": 5e-3}, privacy={"audit": audit}
    )
    assert tauon("train", recipe, "--quiet").code == 0
    run = tmp_path / "runs" / "toy"
    ended = tauon("audit", run, "--examples", "30")
    assert ended.code == 0, ended
    found = record_of(run)["canaries"]
    often = [s["exposure"] for s in found["secrets"] if s["included"] and s["repeats"] == 20]
    never = [s["exposure"] for s in found["secrets"] if not s["included"]]
    assert min(often) > max(never) and min(often) > 5 and found["extracted"] >= 1
    assert not any(s["greedy"] for s in found["secrets"] if not s["included"])
    assert all(s["most"] == pytest.approx(6.64, abs=0.01) and s["how"] == "exact rank" for s in found["secrets"])
    coins = sum(s["repeats"] == 1 for s in found["secrets"])
    assert found["verdict"]["bound"]["coins"] == coins  # those that are there several times change several examples with one coin
    assert "exposure" in ended.out and "Exposure, bits" in (run / "report.html").read_text()
