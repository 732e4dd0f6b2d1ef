"""A text-classification recipe beside TF-IDF with logistic regression, on the same rows in the same run.

python -m benchmarks.text_classes [news-topics|sentiment] [--seed N]

The peer is scikit-learn as it comes: `TfidfVectorizer()` and `LogisticRegression(max_iter=1000)`; beside it one that was tuned a little: words and
pairs of words, sublinear counts, C from 1, 10, 30 by validation accuracy. Ratio: points of accuracy above the first; floor: 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tauon.artifacts import read_json
from tauon.data import LabelledTextDataset, prepare
from tauon.pipeline import run
from tauon.recipe import Recipe, load_recipe


def peers(recipe: Recipe) -> tuple[float, float]:
    """Test accuracy of (scikit-learn as it comes, tuned on validation), on the recipe's split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = prepare(recipe.data, seed=recipe.seed, input_kind="labelled-text")
    parts: list[Any] = [splits.train, splits.validation, splits.test]
    assert all(isinstance(p, LabelledTextDataset) for p in parts)
    train, validation, test = parts

    def fitted(c: float, **how: Any) -> tuple[float, float]:
        vectorizer = TfidfVectorizer(**how)
        model = LogisticRegression(max_iter=1000, C=c).fit(vectorizer.fit_transform(train.texts), train.targets)
        return tuple(float(model.score(vectorizer.transform(p.texts), p.targets)) for p in (validation, test))  # type: ignore[return-value]

    tuned = max(fitted(c, ngram_range=(1, 2), sublinear_tf=True) for c in (1.0, 10.0, 30.0))
    return fitted(1.0)[1], tuned[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="sentiment", choices=["news-topics", "sentiment"])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--quick", action="store_true", help="as ever: one training run is all there is")
    args, more = parser.parse_known_args()
    recipe = load_recipe(args.recipe, [*more, *([] if args.seed is None else [f"seed={args.seed}"])])
    plain, tuned = peers(recipe)
    with tempfile.TemporaryDirectory() as folder:
        done = run(recipe, root=Path(folder), stages=("prepare", "train", "evaluate"))
        ours = read_json(done.folder / "evaluation.json")["metrics"]["accuracy"]["value"]
    print(f"{args.recipe}, seed {recipe.seed}: {ours:.4f}; TF-IDF + logistic regression {plain:.4f}, tuned {tuned:.4f}")
    result = {
        "claim": "text_classes",
        "ours": round(ours, 4),
        "peer": round(plain, 4),
        "ratio": round(100 * (ours - plain), 2),
        "floor": 1.0,
    }
    print(json.dumps(result | {"unit": "test accuracy; ratio in points"}))


if __name__ == "__main__":
    main()
