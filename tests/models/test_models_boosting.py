"""Trees that scikit-learn grew and our module evaluates give the numbers of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tauon.errors import RecipeError
from tauon.models import GradientBoostingConfig, load_weights, materialize
from tauon.models.families.boosting import _arrays, column_order
from tauon.types import Batch, DataSpec

pytest.importorskip("sklearn")


def rows(n: int, categories: tuple[int, ...], classes: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(categories))).astype(np.float32)
    for j, codes in enumerate(categories):
        if codes:
            x[:, j] = rng.integers(0, codes, n)
    signal = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + sum(np.cos(7 * x[:, j]) for j, c in enumerate(categories) if c)
    noisy = signal + rng.normal(size=n) * 0.3
    if classes == 1:
        return Batch(torch.from_numpy(x), torch.from_numpy(noisy[:, None].astype(np.float32)), torch.ones(n))
    y = np.digitize(noisy, np.quantile(noisy, np.linspace(0, 1, classes + 1)[1:-1]))
    return Batch(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(rng.uniform(0.5, 2, n).astype(np.float32)))


def theirs(config: Any, train: Batch, test: Batch) -> NDArray[np.float64]:
    """scikit-learn's own fit and prediction of the same rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    order = column_order(config.categories, config.inputs)
    coded = sum(0 < c <= 255 for c in config.categories)
    kind: Any = HistGradientBoostingRegressor if config.outputs == 1 else HistGradientBoostingClassifier
    booster = kind(
        max_iter=config.rounds, max_leaf_nodes=config.leaves, random_state=3, early_stopping=False,
        categorical_features=[*range(coded)] or None,
    )  # fmt: skip
    booster.fit(*_arrays(train, order, coded), sample_weight=train.weights.numpy())
    x, _ = _arrays(test, order, coded)
    found: NDArray[np.float64] = booster.predict(x) if config.outputs == 1 else booster.predict_proba(x)
    return found


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("categories", [(0, 0, 0, 0), (0, 0, 0, 9, 0, 40), (0, 0, 0, 300, 4)], ids=["numbers", "mixed", "many codes"])
def test_predictions_equal_scikit_learns(categories: tuple[int, ...], classes: int) -> None:
    spec = DataSpec(input_shape=(len(categories),), outputs=classes, categories=categories if any(categories) else ())
    config = GradientBoostingConfig(rounds=25, leaves=12).resolve(spec)
    train, test = rows(700, categories, classes), rows(300, categories, classes, seed=1)
    fitted = config.fit(train, None, family="regression" if classes == 1 else "classification", seed=3)
    model = materialize(config, seed=0)
    load_weights(model, fitted.tensors)
    with torch.no_grad():
        out = model.eval()(test.inputs)
    ours = out[:, 0] if classes == 1 else out.double().softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs(config, train, test), atol=1e-6, rtol=1e-6)


def test_it_stops_early_when_validation_rows_say_so() -> None:
    config = GradientBoostingConfig(rounds=400).resolve(DataSpec(input_shape=(4,), outputs=2))
    flip = rows(300, (0, 0, 0, 0), 2)
    noise = Batch(flip.inputs, torch.randint(0, 2, (300,), generator=torch.Generator().manual_seed(0)), flip.weights)
    fitted = config.fit(noise, rows(100, (0, 0, 0, 0), 2, seed=5), family="classification", seed=0)
    assert 0 < len(fitted.losses) < 400


def test_a_task_that_it_cannot_learn_is_refused() -> None:
    config = GradientBoostingConfig().resolve(DataSpec(input_shape=(4,), outputs=3))
    with pytest.raises(RecipeError, match=r"model\.kind.*not ordinal with 3 outputs"):
        config.fit(rows(50, (0, 0, 0, 0), 3), None, family="ordinal", seed=0)
