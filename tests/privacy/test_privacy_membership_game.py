"""The promise, played: somebody who knows everything but whether one row's data were there looks at all that may be given away.

Runs of the real code, from recipe to checkpoints, with that row and with it zeroed out (its gradient is zero, N stays). Whatever is read from what may be
published, no threshold may find more than the guarantee's trade-off curve allows, up to what chance explains. The strongest reading, the likelihood
ratio of all noised gradients, comes close to the curve, so that the game notices half the noise (below); a count that was
left in a checkpoint would be noticed, too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import load_checkpoint, read_json
from tauon.pipeline import run
from tauon.privacy.accounting import Guarantee, trade_off
from tauon.privacy.audit import TradeOff, clopper_pearson, points_curve
from tauon.privacy.published import leaves
from tauon.recipe import Recipe, load_recipe
from toy import write

N, STEPS, BATCH, TARGET, LR, NORM = 40, 10, 20, 7, 0.5, 1.0
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""False-positive rates at which thresholds are set."""


class Zeroed:
    """A data set in which one row's data are nothing: it is there, and its weight is zero."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, index: np.ndarray, *, epoch: int = 0) -> Any:
        found = self.dataset.batch(index, epoch=epoch)
        weights = found.weights.clone()
        weights[torch.from_numpy(index == TARGET)] = 0
        return replace(found, weights=weights)


def recipe(folder: Path) -> Recipe:
    """A linear model; every row has a feature of its own, so that one column of the weights sees that row alone."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N)
    held = rng.integers(0, 2, 10)
    np.savez(
        folder / "own.npz", x_train=30 * np.eye(N, dtype=np.float32), y_train=y,
        x_val=rng.normal(size=(10, N)).astype(np.float32), y_val=held, x_test=np.ones((2, N), np.float32), y_test=np.array([0, 1]),
    )  # fmt: skip
    plain = {
        "name": "game",
        "data": {"source": {"kind": "npz", "path": str(folder / "own.npz")}, "normalize": "none", "split": {"test": 0}},
        "task": "classification", "model": "logistic",
        "optim": {"kind": "sgd", "lr": LR, "momentum": 0.0, "schedule": "constant"},
        "train": {
            "steps": STEPS, "batch": BATCH, "checkpoint_every": 1, "keep_last": 100, "validate_every": 5, "early_stopping": {"patience": 100},
            "precision": "fp32", "compile": False,
        },
        "privacy": {"noise_multiplier": 3.0, "delta": 1e-3, "clipping": {"kind": "flat", "norm": NORM}},
    }  # fmt: skip
    return load_recipe(write(folder / "game.yaml", plain))


def columns(folder: Path) -> Iterator[np.ndarray]:
    """(2) weights of the target's feature, step by step, from the start."""
    yield np.zeros(2)
    for step in range(1, STEPS + 1):
        tensors = load_checkpoint(folder / f"checkpoints/step-{step:06d}", verify=False).tensors("model")
        (weight,) = [t for t in tensors.values() if t.ndim == 2]
        yield weight[:, TARGET].double().numpy()


def likelihood(folder: Path, label: int, noise: float, rate: float) -> float:
    """Log-likelihood ratio of "was there" against "was not": each noised gradient, seen along the target's own."""
    total = 0.0
    for before, after in itertools.pairwise(columns(folder)):
        p = np.exp(30 * before - np.max(30 * before))
        p /= p.sum()
        direction = p - np.eye(2)[label]
        length = np.linalg.norm(direction)
        if 30 * length < NORM:  # not clipped: nearly nothing to see
            continue
        seen = float((before - after) @ direction / length) / LR * BATCH / NORM
        total += np.logaddexp(np.log1p(-rate), np.log(rate) + (seen - 0.5) / noise**2)
    return total


def readings(folder: Path, label: int, noise: float) -> dict[str, float]:
    """Everything that may be given away, as numbers: the likelihood ratio, every number of state.json and privacy.json, every file's size."""
    found = {"likelihood": likelihood(folder, label, noise, BATCH / N)}
    files = [*folder.glob("checkpoints/step-*/state.json"), folder / "privacy.json"]
    for file in files:
        for path, value in leaves(read_json(file)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{file.parent.name}/{file.name}: {path}"] = float(value)
    for file in folder.glob("checkpoints/step-*/*"):
        found[f"{file.parent.name}/{file.name}: bytes"] = float(file.stat().st_size)
    return found


def play(folder: Path, runs: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], TradeOff]:
    """(reading -> (2, runs) of the runs without and with the row, the guarantee's curve). Keys come from the number of the run, for repeatability."""
    from tauon.privacy import run as private_run

    made = recipe(folder)
    protect, number = private_run.protect, [0]
    label = int(np.load(folder / "own.npz")["y_train"][TARGET])
    monkeypatch.setattr("tauon.privacy.keys.os.urandom", lambda n: hashlib.shake_256(f"game/{number[0]}".encode()).digest(n))
    found: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    promise: dict[str, Any] = {}
    for there in (0, 1):
        hide = (lambda p: p) if there else (lambda p: replace(p, dataset=Zeroed(p.dataset)))
        monkeypatch.setattr(private_run, "protect", lambda *a, hide=hide: hide(protect(*a)))
        for _ in range(runs):
            number[0] += 1
            root = folder / f"runs/{number[0]}"
            done = run(made, root=root, stages=("prepare", "train")).folder
            promise = read_json(done / "privacy.json")
            for name, value in readings(done, label, promise["noise_multiplier"]).items():
                found[name][there].append(value)
    whole = Guarantee.from_json(promise["guarantee"])
    assert whole.neighbouring.startswith("zero out")
    alphas = np.unique(np.concatenate([[0.0], np.geomspace(1e-5, 0.5, 60), 1 - np.geomspace(1e-5, 0.5, 60), [1.0]]))
    curve = points_curve(alphas.tolist(), trade_off(whole.releases, alphas, accountant="pld"))
    return {k: np.array(v) for k, v in found.items() if len({len(side) for side in v}) == 1}, curve


def excess(scores: np.ndarray, curve: TradeOff, confidence: float = 0.99) -> float:
    """The most by which members are found beyond what the curve allows, at any of the thresholds, after what chance explains (Clopper-Pearson, both
    rates). Above 0: refuted.
    """
    without, with_row = np.sort(scores[0]), scores[1]
    n, most = len(without), -1.0
    for rate in RATES:
        threshold = without[n - 1 - int(rate * n)]
        false, true = int((without > threshold).sum()), int((with_row > threshold).sum())
        _, false_high = clopper_pearson(false, n, confidence)
        true_low, _ = clopper_pearson(true, n, confidence)
        most = max(most, true_low - (1 - curve(false_high)))
    return most


def judged(found: dict[str, np.ndarray], curve: TradeOff) -> dict[str, float]:
    """Excess by reading, larger or smaller meaning "was there"; readings that never differ are left out."""
    return {
        f"{name} ({sign:+d})": excess(sign * scores, curve)
        for name, scores in found.items()
        for sign in (1, -1)
        if len(np.unique(scores)) > 1
    }


def test_the_game_notices_what_it_should() -> None:
    """Of a Gaussian mechanism whose noise is half, and of an exact count; not of the right one."""
    from tauon.privacy.audit import gaussian_curve

    rng, n, mu = np.random.default_rng(1), 400, 0.5
    right = np.stack([rng.normal(size=n), rng.normal(size=n) + mu])
    assert excess(right, gaussian_curve(mu)) <= 0
    assert excess(np.stack([rng.normal(size=n), rng.normal(size=n) + 2 * mu]), gaussian_curve(mu)) > 0
    count = rng.binomial(3, 0.5, size=(2, n)) + np.array([[0], [2]])
    assert excess(count.astype(float), gaussian_curve(mu)) > 0


@pytest.mark.parametrize("runs", [pytest.param(4), pytest.param(400, marks=pytest.mark.slow)])
def test_nobody_finds_more_than_the_guarantee_allows(runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, curve = play(tmp_path, runs, monkeypatch)
    assert found["likelihood"].shape == (2, runs)
    excesses = judged(found, curve)
    (tmp_path / "excess.json").write_text(json.dumps(excesses, indent=1))
    print(json.dumps({"likelihood": excesses["likelihood (+1)"], "most": max(excesses.values()), "readings": len(excesses)}))
    assert max(excesses.values()) <= 0, sorted(excesses.items(), key=lambda item: -item[1])[:5]


@pytest.mark.slow
def test_half_the_noise_is_refuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the game above could have ended otherwise."""
    from tauon.privacy import private

    right = private.noise_like
    monkeypatch.setattr(private, "noise_like", lambda *a: right(*a) * 0.5)
    excesses = judged(*play(tmp_path, 150, monkeypatch))
    assert excesses["likelihood (+1)"] > 0
