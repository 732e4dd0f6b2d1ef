"""Accuracy of the recipe `breast-cancer` against scikit-learn's tuned logistic regression, on the same five folds in one run.

Ours is the recipe as shipped, through `tauon.pipeline.run`. The peer gets the same rows, fold by fold, from the same room
(`prepare` with the recipe's split), standardises them and tunes C inside each training part alone (LogisticRegressionCV's own
ten values, 5-fold). What is compared is the mean over folds, as the recipe's `folds.json` holds it.

    python -m benchmarks.breast_cancer [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np


def peer_accuracy(recipe, fold: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """(accuracy on the fold, the C that cross-validation within the training part chose)."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tauon.data import prepare

    split = recipe.data.split.model_copy(update={"fold": fold})
    splits = prepare(recipe.data.model_copy(update={"split": split, "normalize": "none"}), seed=recipe.seed, input_kind="arrays")
    assert splits.test is not None
    train, test = (part.batch(np.arange(len(part))) for part in (splits.train, splits.test))
    model = make_pipeline(
        StandardScaler(), LogisticRegressionCV(cv=5, max_iter=5000, scoring="accuracy", l1_ratios=(0.0,), use_legacy_attributes=False)
    )
    model.fit(train.inputs.numpy(), train.targets.numpy())
    return float(model.score(test.inputs.numpy(), test.targets.numpy())), float(model[-1].C_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nothing is left out: it is quick as it is")
    parser.parse_args()

    import sklearn

    from tauon.pipeline import run
    from tauon.recipe import load_recipe

    recipe = load_recipe("breast-cancer")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = run(recipe, root=folder)
        seconds = time.perf_counter() - began
        ours = [f["metrics"]["accuracy"] for f in json.loads((Path(done.folder) / "folds.json").read_text())["folds"]]
    peers = [peer_accuracy(recipe, fold) for fold in range(len(ours))]
    for fold, (a, (b, c)) in enumerate(zip(ours, peers, strict=True)):
        print(
            f"fold {fold}: ours {a:.4f}, scikit-learn {sklearn.__version__} {b:.4f} (C = {c:.4g} by cross-validation in the training part)"
        )
    a, b = float(np.mean(ours)), float(np.mean([p for p, _ in peers]))
    print(f"the recipe with all its stages and reports took {seconds:.1f} s")
    result = {"claim": "breast_cancer", "ours": round(a, 6), "peer": round(b, 6), "ratio": round(a / b, 6), "floor": 1.0}
    print(json.dumps(result | {"unit": "5-fold accuracy"}))


if __name__ == "__main__":
    main()
