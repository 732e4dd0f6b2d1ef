"""Concept activation vectors: a planted pattern is found, random sets are not, scores equal Captum's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import captum.concept as captum
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from explain.test_cases import made
from explain.test_methods import same, state_of
from tauon.errors import DataError
from tauon.explain import Cases, Work, cases_of
from tauon.explain.concepts import (
    ConceptSettings,
    concept_vector,
    concepts_from_columns,
    concepts_from_labels,
    layer_activations,
    output_gradients,
    tcav,
)
from tauon.explain.concepts.score import LEAST, _rounded
from tauon.explain.features import describe_features

SMALL = ConceptSettings(runs=8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with stripes in half of the pictures, and independently a bright corner in half. (pictures, stripes, corner)"""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=g)
    stripes, corner = torch.rand(n, generator=g) < 0.5, torch.rand(n, generator=g) < 0.5
    x[stripes] += torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 8)
    x[corner, :, :3, :3] += 1.5
    return x, stripes, corner


@pytest.fixture(scope="module")
def of_stripes() -> tuple[nn.Module, Cases]:
    """A network trained to see stripes and nothing else; its cases: 60 pictures, the logit of "striped"."""
    torch.manual_seed(0)
    model, (x, stripes, _) = Net(), pictures(400, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), stripes.long()).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    model.eval()
    x = pictures(60, seed=2)[0]
    ones = torch.ones(60, dtype=torch.int64)
    features = torch.arange(64).view(1, 8, 8)
    return model, Cases(model, x, lambda x, rows: model(x), ones, torch.zeros(1, 1, 8, 8), features, (8, 8), "image", link="softmax")


@pytest.mark.parametrize("direction", ["logistic", "mean-difference"])
@pytest.mark.parametrize("own_examples", [False, True])
def test_a_planted_pattern_has_a_score_of_one_and_random_sets_have_none(of_stripes: Any, direction: Any, own_examples: bool) -> None:
    model, cases = of_stripes
    pool, stripes, _ = pictures(200, seed=3)
    rng = np.random.default_rng(0)
    concepts: dict[str, Any] = {"stripes": pictures(200, seed=4)[0][pictures(200, seed=4)[1]] if own_examples else stripes.numpy()}
    concepts |= {f"random {i}": rng.permutation(200) < 80 for i in range(4)}
    before = state_of(model)
    first, *others = tcav(cases, "relu", concepts, pool, Work(), settings=replace(SMALL, direction=direction))
    assert same(before, state_of(model))
    assert (
        first.name == "stripes"
        and first.significant
        and first.score > 0.95
        and first.low > 0.9
        and first.accuracy > (0.7 if own_examples else 0.95)
    )  # half of the pool is striped
    assert not any(c.significant for c in others)
    assert not others[-1].separates and "nothing is said" in others[-1].text()
    assert "rises with 'stripes'" in first.text() and first.to_json()["text"] == first.text()


def test_what_the_other_class_shows_lowers_the_output(of_stripes: Any) -> None:
    _, cases = of_stripes
    pool, stripes, _ = pictures(200, seed=3)
    (found,) = tcav(cases, "relu", {"plain": ~stripes}, pool, Work(), settings=SMALL)
    assert found.significant and found.score < 0.05 and "falls" in found.text()


def test_a_pattern_that_the_layer_shows_and_the_output_ignores_has_no_strong_direction(of_stripes: Any) -> None:
    _, cases = of_stripes
    pool, stripes, corner = pictures(200, seed=3)
    found = {c.name: c for c in tcav(cases, "relu", {"stripes": stripes, "corner": corner}, pool, Work(), settings=SMALL)}
    assert found["corner"].separates and abs(found["corner"].effect) < 0.25 * found["stripes"].effect


def test_concepts_of_like_size_share_their_random_sets() -> None:
    sizes = {n: _rounded(n) for n in range(LEAST, 400)}
    assert len(set(sizes.values())) < 20 and all(0.8 * n <= size <= n for n, size in sizes.items())


def test_an_effect_of_uncertain_sign_is_not_significant() -> None:
    """A pool in two clusters, and an output whose gradient is across them for half of the examples in each way."""
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 40)
    pool = torch.tensor(np.stack([6 * clusters + rng.normal(size=80), rng.normal(size=80)], 1), dtype=torch.float32)
    sign = torch.tensor([1.0, -1.0]).repeat(40)
    model = nn.Sequential(nn.Identity())
    zeros = torch.zeros(80, dtype=torch.int64)
    outputs = lambda x, rows: model(x)[:, :1] * sign[rows].unsqueeze(1)  # noqa: E731
    cases = Cases(model, pool, outputs, zeros, torch.zeros(1, 2), torch.arange(2), (2,), "table")
    (found,) = tcav(cases, "0", {"cluster": clusters == 1}, pool, Work(), settings=SMALL)
    assert found.separates and abs(found.score - 0.5) < 0.1 and not found.significant and "not certain" in found.text()


def test_p_values_of_random_sets_are_uniform_or_larger() -> None:
    """Random labels of random activations: the share of p <= 0.1 is about 0.1 at most."""
    rng = np.random.default_rng(0)
    pool = torch.tensor(rng.normal(size=(60, 6)), dtype=torch.float32)
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 1))
    zeros = torch.zeros(20, dtype=torch.int64)
    cases = Cases(model, pool[:20], lambda x, rows: model(x), zeros, torch.zeros(1, 6), torch.arange(6), (6,), "table")
    concepts = {str(i): rng.permutation(60) < 30 for i in range(60)}
    settings = ConceptSettings(runs=2, random=49, direction="mean-difference", level=0.999)  # all are tested
    ps = np.array([c.p for c in tcav(cases, "0", concepts, pool, Work(), settings=settings)])
    assert (ps <= 0.1).mean() <= 0.2 and ps.mean() > 0.3


def test_scores_equal_captums_for_the_same_vector(of_stripes: Any, tmp_path: Path) -> None:
    model, cases = of_stripes
    pool, stripes, _ = pictures(80, seed=5)
    a = layer_activations(cases_with(cases, pool), "relu", Work(at_once=7), pooled=False)
    cav = concept_vector(a[stripes.numpy()], a[~stripes.numpy()])
    vector = torch.from_numpy(cav.vector).float()

    class Ours(captum._utils.classifier.Classifier):
        def __init__(self) -> None:
            pass

        def train_and_eval(self, dataloader: Any, **_: Any) -> None:
            for inputs, _labels in dataloader:  # what Captum reads at the layer are our activations
                assert all((torch.from_numpy(a).float() - row).abs().sum(1).min() < 1e-3 for row in inputs)

        def weights(self) -> Tensor:
            return torch.stack([vector, -vector])

        def classes(self) -> list[int]:
            return [0, 1]

    sets = [captum.Concept(i, str(i), [x[j : j + 8] for j in range(0, len(x), 8)]) for i, x in enumerate((pool[stripes], pool[~stripes]))]
    peer = captum.TCAV(model, ["relu"], classifier=Ours(), save_path=str(tmp_path))
    theirs = peer.interpret(cases.inputs, [sets], target=1)["0-1"]["relu"]
    gradients = output_gradients(cases, "relu", Work(at_once=7), pooled=False)
    assert float(theirs["sign_count"][0]) == pytest.approx((gradients @ cav.vector > 0).mean(), abs=1e-6)
    assert float(theirs["magnitude"][0]) == pytest.approx((gradients @ cav.vector).mean(), rel=1e-4)


def cases_with(cases: Cases, x: Tensor) -> Cases:
    return replace(cases, inputs=x, targets=torch.ones(len(x), dtype=torch.int64))


def test_pooled_gradients_are_those_of_a_number_added_everywhere(of_stripes: Any) -> None:
    model, cases = of_stripes
    pooled, flat = (output_gradients(cases, "conv", Work(), pooled=p) for p in (True, False))
    np.testing.assert_allclose(pooled, flat.reshape(60, 8, 64).sum(2), rtol=1e-5, atol=1e-6)
    pooled, flat = (layer_activations(cases, "conv", Work(), pooled=p) for p in (True, False))
    np.testing.assert_allclose(pooled, flat.reshape(60, 8, 64).mean(2), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(flat, model.conv(cases.inputs).flatten(1), rtol=1e-5, atol=1e-6)


def test_the_vector_of_a_layer_before_a_linear_one_has_its_weights_as_derivative() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    x = torch.randn(40, 4)
    ones = torch.ones(40, dtype=torch.int64)
    cases = Cases(model, x, lambda x, rows: model(x), ones, torch.zeros(1, 4), torch.arange(4), (4,), "table")
    np.testing.assert_allclose(output_gradients(cases, "0", Work()), model[1].weight[1].detach().expand(40, 4), rtol=1e-6)


def test_the_mean_difference_is_the_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)) + 3, rng.normal(size=(4000, 5))
    cav = concept_vector(a, b, direction="mean-difference", held_out=0.1)
    wanted = a.mean(0) - b.mean(0)
    assert cav.vector @ wanted / np.linalg.norm(wanted) > 0.995 and cav.accuracy > 0.95


def test_a_unit_that_is_always_the_same_has_no_part_in_the_vector() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 3))
    a[:, 1] = 5.0
    cav = concept_vector(a[:20] + np.array([2, 0, 0]), a[20:])
    assert cav.vector[1] == 0 and cav.accuracy > 0.7


@pytest.mark.parametrize(("kind", "layer"), [("bert", "blocks.0"), ("speech", ""), ("mlp", ""), ("resnet", "layer3.2")])
def test_every_kind_of_data_has_concepts(kind: str, layer: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    if not layer:
        layer = next(n for n, m in model.named_modules() if isinstance(m, nn.Linear))
    one, four = (layer_activations(cases, layer, Work(at_once=n)) for n in (1, 4))
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)
    assert output_gradients(cases, layer, Work()).shape == one.shape


def test_concepts_of_a_table_have_readable_names() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(20, 60, 90), rng.integers(0, 2, 90), rng.integers(0, 3, 90), np.ones(90)], 1).astype(float)
    features = describe_features(rows, ["age", "paid", "job", "constant"], categories={"job": ["missing", "cook", "clerk"]})
    found = concepts_from_columns(rows, features, least=10)
    assert [n for n in found if n.startswith("age is above")] and "paid is yes" in found and "job is cook" in found
    assert not any(n.startswith("constant") for n in found)
    assert all(10 <= mask.sum() <= 80 for mask in found.values())
    assert list(concepts_from_labels(rows[:, 2].astype(int), ["x", "y"], least=10)) == ["x", "y", "class 2"]


def test_what_cannot_be_tested_is_refused(of_stripes: Any) -> None:
    _, cases = of_stripes
    pool, stripes, _ = pictures(60, seed=3)
    with pytest.raises(DataError, match="did you mean 'relu'"):
        tcav(cases, "rel", {"stripes": stripes}, pool, Work())
    with pytest.raises(DataError, match=r"expected bool for each of 60"):
        tcav(cases, "relu", {"stripes": stripes[:10]}, pool, Work())
    with pytest.raises(DataError, match="at least 8"):
        tcav(cases, "relu", {"stripes": pool[:3]}, pool, Work())
    with pytest.raises(DataError, match=r"shape \(10, 1, 4, 4\)"):
        tcav(cases, "relu", {"stripes": torch.zeros(10, 1, 4, 4)}, pool, Work())
    model, task, spec, batch = made("bert")
    texts = cases_of(model, task, spec, batch)
    with pytest.raises(DataError, match="Give cases"):
        tcav(texts, "blocks.0", {"x": texts.inputs}, texts.inputs, Work())
    with pytest.raises(DataError, match="the same for all examples"):
        concept_vector(np.ones((9, 2)), np.ones((9, 2)))
