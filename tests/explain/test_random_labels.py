"""A model of random labels: its maps differ, and what they mark is no evidence; what does not depend on labels is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tauon.errors import DataError
from tauon.explain import METHODS, Cases, Work
from tauon.explain.base import Attribution
from tauon.explain.features import describe_features
from tauon.explain.inputs import regions_of_grid
from tauon.explain.random_labels import random_label_check
from tauon.explain.trees import SurrogateSettings, fit_surrogate

CLASSES = 4


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """8 x 8 noise with a bright spot in one of four quarters, its class."""
    g = torch.Generator().manual_seed(seed)
    x = 0.4 * torch.randn(n, 1, 8, 8, generator=g)
    y = torch.randint(0, CLASSES, (n,), generator=g)
    for i, c in enumerate(y.tolist()):
        x[i, 0, 4 * (c // 2) + 1 : 4 * (c // 2) + 3, 4 * (c % 2) + 1 : 4 * (c % 2) + 3] += 1.5
    return x, y


def trained(x: Tensor, y: Tensor, outputs: int, epochs: int = 200) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 64), nn.ReLU(), nn.Linear(64, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def cases_of_model(model: nn.Module, x: Tensor) -> Cases:
    with torch.no_grad():
        answers = model(x).argmax(1)
    features, regions = torch.arange(64).view(1, 8, 8), regions_of_grid((8, 8), (4, 4))
    return Cases(
        model, x, lambda x, rows: model(x), answers, torch.zeros(1, 1, 8, 8), features, (8, 8), "image", regions=regions, link="softmax"
    )


@pytest.fixture(scope="module")
def twins() -> tuple[Cases, Cases, Tensor]:
    """(cases of a model, cases of a twin that memorised shuffled labels, true labels), of held-out pictures."""
    x, y = pictures(300, seed=1)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(2))]
    models = trained(x, y, CLASSES), trained(x, shuffled, CLASSES)
    with torch.no_grad():
        assert [float((m(x).argmax(1) == t).float().mean()) > 0.95 for m, t in zip(models, (y, shuffled), strict=True)] == [True, True]
    held, labels = pictures(80, seed=3)
    return cases_of_model(models[0], held), cases_of_model(models[1], held), labels


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_times_input", "occlusion", "kernel_shap"])
def test_maps_of_a_model_of_random_labels_differ_and_mark_no_evidence(twins: Any, name: str) -> None:
    cases, twin, labels = twins
    options = {"evaluations": 200} if name == "kernel_shap" else {}
    check = random_label_check(
        cases, METHODS[name].run(cases, Work(), **options), twin, METHODS[name].run(twin, Work(), **options), labels, Work()
    )
    assert check.model.accuracy > 0.95 and check.model.found and check.model.gain > 0.05
    assert check.twin.accuracy < 0.45 and not check.twin.found and abs(check.twin.gain) < 0.05
    assert check.correlation < 0.8 and check.low <= check.correlation <= check.high
    assert not check.failed and check.to_json()["problems"] == []


def test_a_map_of_the_input_alone_is_caught(twins: Any) -> None:
    cases, twin, labels = twins
    bright = [Attribution("brightness", c.inputs.abs().flatten(1), torch.zeros(len(c))) for c in (cases, twin)]
    check = random_label_check(cases, bright[0], twin, bright[1], labels, Work())
    assert check.correlation > 0.999 and "nearly the same map" in check.problems[0]


def test_a_twin_that_learned_real_labels_is_caught(twins: Any) -> None:
    cases, _, labels = twins
    x, y = pictures(300, seed=7)
    other = cases_of_model(trained(x, y, CLASSES), cases.inputs)
    run = METHODS["integrated_gradients"].run
    check = random_label_check(cases, run(cases, Work()), other, run(other, Work()), labels, Work())
    assert check.failed and any("was not trained on random labels" in p for p in check.problems)


def test_a_map_can_be_faithful_to_a_model_that_is_always_wrong(twins: Any) -> None:
    """What is not shown: the deletion test of the twin's own answers passes."""
    from tauon.explain.checks import faithfulness

    _, twin, _ = twins
    found = faithfulness(twin, METHODS["integrated_gradients"].run(twin, Work()), Work())
    assert found.deletion_ratio < 0.9


def test_a_surrogate_tree_of_a_model_of_random_labels_fails() -> None:
    """Trees imitate a rule and not what was memorised: kappa against the model falls, and against the truth it is a guess."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 5))
    truth = ((rows[:, 0] > 0) & (rows[:, 1] > -0.5)).astype(np.int64)
    held, kappas = slice(300, 500), []
    for labels in (truth, rng.permutation(truth)):
        model = trained(torch.tensor(rows[:300], dtype=torch.float32), torch.tensor(labels[:300]), 2, epochs=400)

        def predict(X: np.ndarray, model: nn.Module = model) -> np.ndarray:
            with torch.no_grad():
                return model(torch.tensor(X, dtype=torch.float32)).softmax(1).double().numpy()

        features = describe_features(rows[:300], list("abcde"))
        settings = SurrogateSettings(depth=5, samples=2000)
        fidelity = fit_surrogate(predict, rows[:300], features, rows[held], truth_M=truth[held], settings=settings).fidelity
        kappas.append(fidelity.kappa or 0.0)
        majority = max(truth[held].mean(), 1 - truth[held].mean())
        assert fidelity.true_accuracy is not None
        assert (fidelity.true_accuracy > majority + 0.1) == (labels is truth)
    assert kappas[0] > 0.8 and kappas[1] < 0.6


def test_what_cannot_be_compared_is_refused(twins: Any) -> None:
    cases, twin, labels = twins
    run = METHODS["saliency"].run
    a, b = run(cases, Work()), run(twin, Work())
    with pytest.raises(DataError, match="the same two or more"):
        random_label_check(cases, a, replace(twin, inputs=twin.inputs + 1), b, labels, Work())
    with pytest.raises(DataError, match="needs classes"):
        random_label_check(replace(cases, link="identity"), a, twin, b, labels, Work())
    with pytest.raises(DataError, match="compare the same method"):
        random_label_check(cases, a, twin, replace(b, method="other"), labels, Work())
