"""The default for series, recipe `energy-forecast`, on ETTh1 96 -> 96 (split and scaling of arXiv:2012.07436): test MSE, mean over seeds.

The peer is scikit-learn's Ridge on the same windows: the last value is subtracted, one map for all series, its penalty chosen on the validation
windows. Published: DLinear 0.386 (arXiv:2205.13504), PatchTST 0.394 at this context, CycleNet 0.378 (arXiv:2409.18479). Ratio: 0.375 / ours; floor 1.

    python -m benchmarks.series_default [--quick] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tauon.artifacts import read_json
from tauon.data import prepare
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe

CEILING = 0.375


def windows(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """(contexts, targets) of every window and series by itself: NT, NH."""
    batch = part.batch(np.arange(len(part)))
    K = batch.targets.shape[2]
    x, y = batch.inputs.numpy()[:, :, :K], batch.targets.numpy()
    return x.transpose(0, 2, 1).reshape(-1, x.shape[1]), y.transpose(0, 2, 1).reshape(-1, y.shape[1])


def ridge(recipe: Recipe) -> float:
    """Test MSE of ridge regression."""
    from sklearn.linear_model import Ridge

    splits = prepare(recipe.data, seed=recipe.seed, input_kind="series")
    train, validation, test = (windows(p) for p in (splits.train, splits.validation, splits.test))

    def error(model: Any, part: tuple[np.ndarray, np.ndarray]) -> float:
        x, y = part
        return float(np.square(model.predict(x - x[:, -1:]) + x[:, -1:] - y).mean())

    x, y = train
    fitted = [Ridge(alpha=alpha).fit(x - x[:, -1:], y - x[:, -1:]) for alpha in (1.0, 1e2, 1e4)]
    return error(min(fitted, key=lambda m: error(m, validation)), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    recipe, found = load_recipe("energy-forecast", []), []
    for seed in range(recipe.seed, recipe.seed + (1 if args.quick else args.seeds)):
        with tempfile.TemporaryDirectory() as folder:
            done = run(load_recipe("energy-forecast", [f"seed={seed}"]), root=Path(folder), stages=("prepare", "train", "evaluate"))
            metrics = read_json(done.folder / "evaluation.json")["metrics"]
        found.append(metrics["mse"]["value"])
        print(f"seed {seed}: MSE {found[-1]:.4f}, MAE {metrics['mae']['value']:.4f}", flush=True)
    ours, peer = float(np.mean(found)), ridge(recipe)
    result = {"claim": "series_default", "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(CEILING / ours, 4), "floor": 1.0}
    print(json.dumps(result | {"unit": "test MSE, ETTh1 96 -> 96; ratio is 0.375 / ours"}))


if __name__ == "__main__":
    main()
