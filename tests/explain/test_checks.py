"""The checks of explanations: the right map passes, a random one and a wrong one fail."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from tauon.explain import METHODS, Cases, Work
from tauon.explain.base import Attribution
from tauon.explain.checks import faithfulness, hide_at_random, per_region, randomised_twin, rank_correlation, stability, weight_dependence
from tauon.explain.inputs import regions_of_grid
from tauon.explain.methods import blurred


def linear_cases(seed: int = 0, n: int = 8, features: int = 16) -> Cases:
    torch.manual_seed(seed)
    model = nn.Linear(features, 2).eval()
    x = torch.randn(n, features)
    targets = model(x).argmax(1)
    return Cases(model, x, lambda x, rows: model(x), targets, torch.zeros(1, features), torch.arange(features), (features,), link="softmax")


def contributions(cases: Cases) -> Attribution:
    """What each feature adds to the explained class over the other: exact for a linear model of two classes."""
    weight = cases.model.weight[cases.targets] - cases.model.weight[1 - cases.targets]  # type: ignore[operator, index]
    return Attribution("exact", (weight * cases.inputs).detach(), torch.zeros(len(cases)))


def test_the_exact_map_beats_random_orders_and_its_opposite_fails() -> None:
    cases = linear_cases()
    right = contributions(cases)
    good = faithfulness(cases, right, Work())
    assert good.deletion_ratio < 0.85 and good.insertion_ratio > 1.1 and not good.failed
    bad = faithfulness(cases, Attribution("opposite", -right.values, right.scores), Work())
    assert bad.failed


def test_the_most_important_first_is_the_smallest_area_of_all_orders_of_a_linear_model() -> None:
    cases = linear_cases(features=4, n=3)
    best = faithfulness(cases, contributions(cases), Work()).deletion
    for seed in range(24):
        other = Attribution("random", torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)), torch.zeros(3))
        assert (faithfulness(cases, other, Work()).deletion >= best - 0.05).all()


def test_regression_is_measured_by_the_distance_to_the_whole_answer() -> None:
    cases = linear_cases()
    value = Cases(cases.model, cases.inputs, cases.outputs, torch.zeros(8, dtype=torch.int64), cases.baselines, cases.features, cases.grid)
    exact = Attribution("exact", (cases.model.weight[0] * cases.inputs).detach(), torch.zeros(8))  # type: ignore[index, operator]
    found = faithfulness(value, exact, Work())
    assert not found.failed and float(found.deletion.max()) <= 1


def test_regions_are_means_of_their_features() -> None:
    cases = linear_cases(features=8)
    grouped = Cases(
        cases.model,
        cases.inputs,
        cases.outputs,
        cases.targets,
        cases.baselines,
        cases.features,
        (2, 4),
        regions=regions_of_grid((2, 4), (1, 2)),
    )
    assert torch.allclose(per_region(grouped, torch.arange(8.0).expand(8, 8))[0], torch.tensor([2.5, 4.5]))


@given(st.lists(st.integers(0, 6), min_size=3, max_size=12), st.integers(0, 1000))
def test_rank_correlation_is_spearmans(values: list[int], seed: int) -> None:
    a = torch.tensor([values], dtype=torch.float32)
    b = torch.rand(a.shape, generator=torch.Generator().manual_seed(seed))
    expected = spearmanr(a[0], b[0]).statistic if len(set(values)) > 1 else 0.0
    assert abs(float(rank_correlation(a, b)) - expected) < 1e-5


def test_shuffled_weights_have_the_same_sizes_and_leave_the_model_alone() -> None:
    model = linear_cases().model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = randomised_twin(model)
    for (name, p), q in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(p, before[name])
        assert torch.equal(p.flatten().abs().sort().values, q.flatten().abs().sort().values)
    assert not torch.equal(model.weight, twin.weight)  # type: ignore[arg-type]


def test_a_map_of_the_input_alone_does_not_depend_on_the_weights_and_a_gradient_does() -> None:
    cases = linear_cases(features=64)

    def edges(model: nn.Module) -> Attribution:
        return Attribution("input", cases.inputs.abs(), torch.zeros(8))

    def gradient(model: nn.Module) -> Attribution:
        other = Cases(model, cases.inputs, lambda x, rows: model(x), cases.targets, cases.baselines, cases.features, cases.grid)
        return METHODS["saliency"].run(other, Work())

    assert (weight_dependence(edges(cases.model), edges, cases.model) > 0.999).all()
    assert weight_dependence(gradient(cases.model), gradient, cases.model).abs().mean() < 0.5


def test_a_smooth_map_is_stable() -> None:
    cases = linear_cases(features=64)
    run = METHODS["gradient_times_input"].run
    assert (stability(cases, run(cases, Work()), lambda c: run(c, Work()), noise=0.01) > 0.98).all()


def test_padding_is_never_hidden() -> None:
    cases = linear_cases(features=8)
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:, 5:] = False
    zeros = Cases(
        cases.model,
        torch.where(valid, cases.inputs, 0),
        cases.outputs,
        cases.targets,
        cases.baselines,
        cases.features,
        cases.grid,
        link="softmax",
        valid=valid,
    )
    best = contributions(zeros)
    loud = Attribution("padding first", torch.where(valid, best.values, 9.0), best.scores)
    assert torch.equal(faithfulness(zeros, best, Work()).deletion, faithfulness(zeros, loud, Work()).deletion)
    assert faithfulness(zeros, best, Work()).regions == 5


def image_cases() -> Cases:
    """Bright pixels of the left half argue for the answer."""
    torch.manual_seed(0)
    model = nn.Linear(64, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1].view(8, 8)[:, :4] = 0.2
    x = torch.rand(6, 1, 8, 8)
    features, ones = torch.arange(64).view(1, 8, 8), torch.ones(6, dtype=torch.int64)
    regions = regions_of_grid((8, 8), (4, 4))
    return Cases(
        model, x, lambda x, rows: model(x.flatten(1)), ones, torch.zeros(1, 1, 8, 8), features, (8, 8), "image", regions=regions, link="softmax"
    )  # fmt: skip


def test_a_map_of_regions_is_tested_over_pixels_too() -> None:
    cases = image_cases()
    pixels = replace(cases, regions=None)
    by_region = METHODS["occlusion"].run(cases, Work())
    found = faithfulness(pixels, by_region, Work(), hide_at_random(pixels, Work(), steps=32))
    exact = faithfulness(pixels, METHODS["gradient_times_input"].run(cases, Work()), Work(), hide_at_random(pixels, Work(), steps=32))
    assert found.regions == 64 and found.insertion_ratio > 1.02 and found.deletion_ratio < 0.98
    assert exact.insertion_ratio >= found.insertion_ratio - 0.01


def test_a_fill_is_used_and_named() -> None:
    cases = image_cases()
    soft = hide_at_random(cases, Work(), fill="blurred")
    assert soft.fill_name == "blurred" and soft.fill is not None and soft.fill.shape == cases.inputs.shape
    with torch.no_grad():
        torch.testing.assert_close(soft.ends[1], cases.outputs(blurred(cases.inputs, 1.0), torch.arange(6)).softmax(1)[:, 1])
    assert hide_at_random(cases, Work()).fill_name == "baseline"
    white = hide_at_random(cases, Work(), fill=torch.ones(1, 1, 8, 8), fill_name="white")
    assert white.fill_name == "white" and (white.ends[1] > white.ends[0]).all()
    found = faithfulness(cases, METHODS["occlusion"].run(cases, Work()), Work(), white)
    assert found.to_json()["fill"] == "white" and found.deletion_ratio > 1  # hiding bright pixels by white ones changes the answer least
