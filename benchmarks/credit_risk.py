"""ROC-AUC of the recipe `credit-risk` against scikit-learn's logistic regression and gradient boosting, on the same ten folds in one run.

Ours is the recipe as shipped, through `tauon.pipeline.run`. The peers get the same rows, fold by fold, from the same room (`prepare` with the
recipe's split): numbers standardised, categories one-hot, fitted on the training rows. LogisticRegression as it comes (C = 1) and with C tuned
inside each training part (LogisticRegressionCV, scored by ROC-AUC); both GradientBoostingClassifiers as they come. What is compared
is the mean over folds, with the best of the four.

    python -m benchmarks.credit_risk [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np


def peer_areas(recipe, fold: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """ROC-AUC of each peer on the fold."""
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.metrics import roc_auc_score

    from tauon.data import ColumnsConfig, prepare

    split = recipe.data.split.model_copy(update={"fold": fold})
    table = ColumnsConfig(categories="onehot")
    data = recipe.data.model_copy(update={"split": split, "normalize": "standard", "table": table})
    splits = prepare(data, seed=recipe.seed, input_kind="arrays")
    assert splits.test is not None
    train, test = (part.batch(np.arange(len(part))) for part in (splits.train, splits.test))
    x, y, held, truth = train.inputs.numpy(), train.targets.numpy(), test.inputs.numpy(), test.targets.numpy()
    logistic = LogisticRegressionCV(cv=5, max_iter=5000, scoring="roc_auc", l1_ratios=(0.0,), use_legacy_attributes=False)
    peers = {
        "logistic regression": LogisticRegression(max_iter=5000),
        "logistic regression, tuned": logistic,
        "gradient boosting": GradientBoostingClassifier(random_state=recipe.seed),
        "gradient boosting by histograms": HistGradientBoostingClassifier(random_state=recipe.seed),
    }
    return {name: float(roc_auc_score(truth, peer.fit(x, y).predict_proba(held)[:, 1])) for name, peer in peers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nothing is left out: it is quick as it is")
    parser.add_argument("--seed", type=int, default=None, help="the recipe's seed; the folds stay")
    args = parser.parse_args()

    import sklearn

    from tauon.pipeline import run
    from tauon.recipe import load_recipe

    recipe = load_recipe("credit-risk", [] if args.seed is None else [f"seed={args.seed}"])
    with tempfile.TemporaryDirectory() as folder:
        done = run(recipe, root=folder)
        ours = [f["metrics"]["roc_auc"] for f in json.loads((Path(done.folder) / "folds.json").read_text())["folds"]]
    peers = [peer_areas(recipe, fold) for fold in range(len(ours))]
    for fold, (a, b) in enumerate(zip(ours, peers, strict=True)):
        print(f"fold {fold}: ours {a:.4f}, " + ", ".join(f"{k} {v:.4f}" for k, v in b.items()))
    means = {name: sum(p[name] for p in peers) / len(peers) for name in peers[0]}
    mean, best = sum(ours) / len(ours), max(means.values())
    print(
        f"mean of {len(ours)} folds: ours {mean:.4f}, scikit-learn {sklearn.__version__}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in means.items())
    )
    line = {"claim": "credit_risk", "ours": mean, "peer": best, "ratio": mean / best, "floor": (best - 0.005) / best, "unit": "ROC-AUC"}
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
