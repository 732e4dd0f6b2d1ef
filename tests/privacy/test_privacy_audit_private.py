"""The audit of real private runs: the right one passes, each planted bug is caught, and the record says by what.

The data is made for it: every example has a feature of its own, so that nothing but its own gradient tells of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import load_checkpoint
from toy import Tauon, merged, write

pytestmark = pytest.mark.long

COINS = 780


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(tmp_path)
    return Tauon(capsys)


def recipe(folder: Path, **sections: Any) -> Path:
    """2,000 examples, a feature and a random class each; 1,600 to train a linear model on, at epsilon 1."""
    rng = np.random.default_rng(0)
    if not (folder / "own.npz").exists():
        np.savez(folder / "own.npz", x=10 * np.eye(2000, dtype=np.float32), y=rng.integers(0, 2, 2000))
    base: dict[str, Any] = {
        "name": "own", "seed": 3,
        "data": {"source": {"kind": "npz", "path": str(folder / "own.npz")}, "split": {"test": "20%", "validation": 0}, "normalize": "none"},
        "task": "classification", "model": "logistic", "optim": {"kind": "sgd", "lr": 4.0, "schedule": "constant"},
        "train": {"steps": 20, "batch": 400, "checkpoint_every": 20, "compile": False, "precision": "fp32"},
        "privacy": {"target_epsilon": 1.0, "delta": 1e-5, "generator": "seeded", "audit": {"canaries": COINS, "seed": 1}},
        "evaluate": {"resamples": 100},
    }  # fmt: skip
    return write(folder / "recipe.yaml", merged(base, sections))


def audited(tauon: Tauon, folder: Path, **sections: Any) -> tuple[int, dict[str, Any]]:
    """(exit code of the audit, its record) of a private run."""
    ended = tauon("train", recipe(folder, **sections), "--quiet")
    assert ended.code == 0, ended
    run = folder / "runs" / sections.get("name", "own")
    code = tauon("audit", run, "--quiet").code
    found: dict[str, Any] = json.loads((run / "audit.json").read_text())
    return code, found


def plant_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the private step wrong, in one of four ways."""
    from tauon.privacy import private
    from tauon.privacy.clipped import ClippedSum
    from tauon.privacy.noise import NoisePlan

    noise_like, add, draw, sum_over = private.noise_like, ClippedSum.add, NoisePlan.draw, private.sum_over
    if bug in ("no-noise", "half-sensitivity"):
        scale = 0.0 if bug == "no-noise" else 0.5
        monkeypatch.setattr(private, "noise_like", lambda *a, **k: noise_like(*a, **k) * scale)
    elif bug == "reused-noise":
        monkeypatch.setattr(NoisePlan, "draw", lambda self, source, step, *a, **k: draw(self, source, 0, *a, **k))
    elif bug == "clipped-mean":
        monkeypatch.setattr(ClippedSum, "add", lambda self, factors: add(self, torch.ones_like(factors)))

        def clip_the_mean(mesh: Any, grads: Any) -> None:
            sum_over(mesh, grads)
            norm = torch.stack([g.norm() for g in grads]).norm() / 400
            for g in grads:
                g *= min(1.0, 1.0 / float(norm))

        monkeypatch.setattr(private, "sum_over", clip_the_mean)
    else:
        assert not bug


@pytest.mark.parametrize("bug", ["", "no-noise", "clipped-mean"])
def test_the_final_model_alone_gives_bugs_of_noise_and_clipping_away(
    bug: str, tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mislabelled canaries, black box: all that is asked is the loss of the final model."""
    plant_bug(bug, monkeypatch)
    code, found = audited(tauon, tmp_path)
    verdict = found["canaries"]["verdict"]
    assert found["guarantee"]["epsilon"] == pytest.approx(1.0, abs=0.01)
    assert (code, found["contradicts"], verdict["contradicts"]) == ((9, True, True) if bug else (0, False, False))
    assert (verdict["bound"]["epsilon"] > 1) == bool(bug)


@pytest.mark.parametrize("bug", ["", "no-noise", "half-sensitivity", "reused-noise"])
def test_whoever_sees_every_update_sees_less_noise_than_was_promised(
    bug: str, tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient canaries, white box. For coins to notice half the noise takes the whole curve, and every example in every step; the noise itself shows it
    at once (below).
    """
    plant_bug(bug, monkeypatch)
    sections: dict[str, Any] = {"privacy": {"audit": {"canaries": 3000, "kind": "gradient", "seed": 1}}}
    if bug in ("", "half-sensitivity"):
        private = {"target_epsilon": 2.0, "audit": {"canaries": 20000, "kind": "gradient", "seed": 1}}
        few = {"source": {"kind": "npz", "path": str(tmp_path / "own.npz"), "limit": 400}}  # whose gradients leave the canaries room
        sections = {"privacy": private, "train": {"batch": 320}, "model": {"kind": "mlp", "hidden": [64]}, "data": few}
    code, found = audited(tauon, tmp_path, **sections)
    verdict = found["canaries"]["verdict"]
    assert (code, verdict["contradicts"]) == ((9, True) if bug else (0, False)), verdict
    if bug != "reused-noise":  # of which there is too little to judge by its size
        assert found["canaries"]["noise"]["contradicts"] == bool(bug)
    assert bug != "reused-noise" or verdict["statistic"] == "change"
    page = (tmp_path / "runs" / "own" / "report.html").read_text()
    assert (">refuted (p" in page) == bool(bug) and "gradients, seen in every update" in page


def test_coins_are_in_no_checkpoint_and_a_run_that_goes_on_keeps_them(tauon: Tauon, tmp_path: Path) -> None:
    """The operating system's coins: the same after a resume, for the owner's eyes alone."""
    audit = {"canaries": 100, "seed": None, "kind": "gradient"}
    whole = recipe(tmp_path, privacy={"audit": audit}, train={"steps": 8, "checkpoint_every": 4})
    assert tauon("train", whole, "--quiet").code == 0
    run = tmp_path / "runs" / "own"
    path = run / "audit" / "canaries.json"
    assert path.stat().st_mode & 0o077 == 0
    record = json.loads(path.read_text())
    first = {p.name: p for p in (run / "checkpoints").iterdir()}
    state = "".join((p / "state.json").read_text() for p in first.values())
    assert record["key"] not in state and "included" not in state
    before = load_checkpoint(run / "checkpoints" / "step-000008").tensors("canaries")
    import shutil

    shutil.rmtree(run / "checkpoints" / "step-000008")
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps({k: v for k, v in stages.items() if k != "train"}))
    assert tauon("train", whole, "--quiet").code == 0
    after = load_checkpoint(run / "checkpoints" / "step-000008").tensors("canaries")
    assert json.loads(path.read_text()) == record
    assert all(torch.equal(after[name], before[name]) for name in before)
    path.unlink()
    lost = tauon("audit", run, "--quiet")
    assert lost.code == 5 and "data changed" in lost.err


def test_canaries_alone_are_no_privacy(tauon: Tauon, tmp_path: Path) -> None:
    """Without epsilon or noise the run is as any other, and its canaries are found out."""
    code, found = audited(tauon, tmp_path, privacy={"target_epsilon": None, "delta": None, "generator": None})
    assert code == 0 and found["guarantee"] is None and found["canaries"]["verdict"]["bound"]["epsilon"] > 2
    assert not (tmp_path / "runs" / "own" / "privacy.json").exists()
    gradient = tauon("train", recipe(tmp_path, name="other", privacy={"target_epsilon": None, "audit": {"kind": "gradient"}}), "--quiet")
    assert gradient.code == 2 and "needs a private run with sampling=poisson" in gradient.err


def test_a_reference_model_of_a_private_run_plants_nothing_and_is_charged_to_no_ledger(tmp_path: Path) -> None:
    """It is as private as the run, for half the examples; it stays with whoever audits."""
    from tauon.recipe import load_recipe
    from tauon.stages.audit import shadow_recipe

    whole = load_recipe(recipe(tmp_path, privacy={"budget": {"epsilon": 8, "delta": 1e-4}, "ledger": str(tmp_path / "ledger")}))
    one = shadow_recipe(whole, 3, 5)
    assert one.privacy is not None and whole.privacy is not None
    assert (one.privacy.audit, one.privacy.budget, one.privacy.ledger) == (None, None, None)
    assert one.privacy.target_epsilon == whole.privacy.target_epsilon and one.data.half is not None
    assert (one.data.half.number, one.data.half.seed, one.name) == (3, 5, "shadow-003")


@pytest.mark.parametrize("bug", ["", "half-sensitivity"])
def test_half_the_noise_is_noticed_where_coins_cannot(bug: str, tauon: Tauon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epsilon 2, 40 steps, 2,000 canaries."""
    plant_bug(bug, monkeypatch)
    private = {"target_epsilon": 2.0, "audit": {"canaries": 2000, "kind": "gradient", "seed": 1}}
    code, found = audited(tauon, tmp_path, privacy=private, train={"steps": 40})
    verdict, noise = found["canaries"]["verdict"], found["canaries"]["noise"]
    assert not verdict["contradicts"]  # this is what coins cannot notice
    assert (code, found["contradicts"], noise["contradicts"]) == ((9, True, True) if bug else (0, False, False)), noise
    assert noise["draws"] == 40 * int(2000 - found["canaries"]["included"])
    page = (tmp_path / "runs" / "own" / "report.html").read_text()
    if bug:
        assert noise["at_most"] < 0.6 and "the noise in the updates is at most 0.5" in found["summary"] and "refuted (p" in page
    else:
        assert 0.99 < noise["ratio"] < noise["at_most"] < 1.05 and "times the stated" in page
