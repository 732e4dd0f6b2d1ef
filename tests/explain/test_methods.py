"""Attribution methods: closed forms, Captum, axioms, and the contract that every registered method keeps."""

from __future__ import annotations

from typing import Any

import captum.attr as captum
import pytest
import torch
from torch import nn

from explain.test_cases import KINDS, made
from tauon.errors import DataError
from tauon.explain import METHODS, Cases, Work, cases_of
from tauon.explain.methods import auto_methods, blurred, integrated_gradients, occlusion, smoothgrad, windows_of_grid
from tauon.explain.methods.integrated import QUADRATURES
from tauon.explain.methods.smooth import gradient_shap


def image_net(seed: int = 0, *, functional: bool = False) -> nn.Module:
    """A small network of ReLUs in place, as modules or as functions."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.fc = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Linear(6, 3)
            self.relu = nn.Identity() if functional else nn.ReLU(inplace=True)

        def activated(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.relu(x) if functional else self.relu(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.activated(self.norm(self.conv1(x)))
            return self.fc(self.activated(self.conv2(x)).mean((2, 3)))

    return Net().eval()


def image_cases(n: int = 5, **kwargs: Any) -> Cases:
    model = image_net(**kwargs)
    x = torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    baselines = torch.full((1, 2, 8, 8), 0.1)
    features = torch.arange(64).view(1, 8, 8)
    targets = torch.arange(n) % 3
    return Cases(model, x, lambda x, rows: model(x), targets, baselines, features, (8, 8), "image", link="softmax")


def linear_cases(n: int = 3, features: int = 5) -> tuple[Cases, torch.Tensor]:
    """f = w x, where the last feature has no weight."""
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(features, generator=g)
    weight[-1] = 0
    model = nn.Linear(features, 1)
    with torch.no_grad():
        model.weight.copy_(weight)
    x, base = torch.randn(n, features, generator=g), torch.randn(1, features, generator=g)
    cases = Cases(model, x, lambda x, rows: model(x), torch.zeros(n, dtype=torch.int64), base, torch.arange(features), (features,), "table")
    return cases, weight


SMALL: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 5}, "gradient_shap": {"samples": 5}, "kernel_shap": {"evaluations": 140},
}  # fmt: skip
"""Options that make a method cheap."""


def runs(name: str) -> list[str]:
    """Kinds of `test_cases` that a method can explain."""
    method = METHODS[name]
    kinds = []
    for kind in KINDS:
        model, task, spec, batch = made(kind)
        cases = cases_of(model, task, spec, batch)
        has_attention = kind in ("vit", "bert", "gpt", "conformer")
        if not method.why_not(cases) and (method.needs != "attention" or has_attention):
            kinds.append(kind)
    return kinds


PAIRS = [(name, kind) for name in METHODS for kind in runs(name)]


# ---------------------------------------------------------------------------------------------- the contract


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "wanted": [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "own": [sorted(vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_method_leaves_the_model_untouched_and_ignores_the_batch_size(name: str, kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    model.train()
    next(model.parameters()).requires_grad_(False)
    for p in list(model.parameters())[1:3]:
        p.grad = torch.ones_like(p)
    before = state_of(model)
    options = SMALL.get(name, {}) | ({"steps": 8} if name == "integrated_gradients" else {})
    one = METHODS[name].run(cases, Work(at_once=1), **options)
    many = METHODS[name].run(cases, Work(at_once=64), **options)
    assert same(before, state_of(model))
    assert one.values.shape == (4, cases.n_features) and one.scores.shape == (4,)
    assert one.values.isfinite().all() and one.values.abs().max() > 0
    torch.testing.assert_close(one.values, many.values, rtol=1e-3, atol=1e-4)
    model.eval()
    torch.testing.assert_close(one.scores, cases.score(cases.inputs, torch.arange(4)).detach(), rtol=1e-4, atol=1e-5)
    if cases.valid is not None:
        assert not one.values[~cases.valid].any()


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].needs != "attention"])
def test_a_twin_with_functional_activations_has_the_same_map(name: str) -> None:
    options = SMALL.get(name, {}) | ({"layer": "conv2"} if METHODS[name].needs == "layer" else {})
    a = METHODS[name].run(image_cases(), Work(), **options)
    b = METHODS[name].run(image_cases(functional=True), Work(), **options)
    torch.testing.assert_close(a.values, b.values)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].needs in ("gradients", "outputs")])
def test_a_linear_model_has_the_closed_form_and_a_feature_without_weight_gets_nothing(name: str) -> None:
    cases, weight = linear_cases()
    forms = {
        "saliency": weight.abs().expand(3, -1),
        "smoothgrad": weight.abs().expand(3, -1),
        "gradient_times_input": weight * cases.inputs,
    }
    wanted = forms.get(name, weight * (cases.inputs - cases.baselines))
    values = METHODS[name].run(cases, Work(), **SMALL.get(name, {})).values
    torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    assert (values[:, -1].abs() < 1e-6).all()


# ---------------------------------------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_fixed_steps_equal_captum(quadrature: str) -> None:
    cases = image_cases()
    ours = integrated_gradients(cases, Work(at_once=7), steps=20, quadrature=quadrature)
    theirs = captum.IntegratedGradients(cases.model).attribute(
        cases.inputs, cases.baselines, target=cases.targets, n_steps=20, method=quadrature
    )
    assert ours.raw is not None
    torch.testing.assert_close(ours.raw, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.values, theirs.sum(1).flatten(1), rtol=1e-4, atol=1e-6)
    difference = ours.scores - cases.score(cases.baseline(torch.arange(5)), torch.arange(5)).detach()
    torch.testing.assert_close(
        ours.facts["completeness_error"], (ours.values.sum(1) - difference).abs() / difference.abs(), rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("at_once", [1, 10, 64])
def test_steps_rise_until_the_values_sum_to_the_difference(at_once: int) -> None:
    cases = image_cases(n=5)
    found = integrated_gradients(cases, Work(at_once=at_once))
    rows = torch.arange(5)
    with torch.no_grad():
        difference = cases.score(cases.inputs, rows) - cases.score(cases.baseline(rows), rows)
    error = (found.values.sum(1) - difference).abs() / difference.abs()
    assert (error <= 0.011).all()
    torch.testing.assert_close(error, found.facts["completeness_error"], rtol=0.05, atol=1e-4)
    assert found.failed is not None and not found.failed.any()
    exact = integrated_gradients(cases, Work(), steps=1000).values
    assert ((found.values - exact).norm(dim=1) < 0.1 * exact.norm(dim=1)).all()


def test_parts_that_are_summed_early_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = image_cases(n=3)
    many = integrated_gradients(cases, Work(), tolerance=1e-5)
    monkeypatch.setattr("tauon.explain.methods.integrated.OPEN", 4)
    few = integrated_gradients(cases, Work(), tolerance=1e-3)
    torch.testing.assert_close(few.values, many.values, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("most", [2, 20, 60])
def test_an_example_that_needs_too_many_steps_has_failed(most: int) -> None:
    cases = image_cases()
    found = integrated_gradients(cases, Work(), tolerance=1e-9, most_steps=most)
    assert found.failed is not None and found.failed.all()
    assert found.facts["steps"].max() <= most


def test_an_input_that_is_its_baseline_gets_nothing() -> None:
    cases = image_cases()
    cases.inputs[0] = cases.baselines[0]
    found = integrated_gradients(cases, Work())
    assert not found.values[0].any()
    assert found.facts["completeness_error"][0] == 0


def test_a_baseline_is_zero_or_blurred_or_refused() -> None:
    cases = image_cases()
    zero = integrated_gradients(cases, Work(), baseline="zero", steps=8)
    theirs = captum.IntegratedGradients(cases.model).attribute(cases.inputs, 0, target=cases.targets, n_steps=8)
    torch.testing.assert_close(zero.values, theirs.sum(1).flatten(1), rtol=1e-4, atol=1e-6)
    soft = integrated_gradients(cases, Work(), baseline="blurred", steps=8)
    assert not torch.allclose(soft.values, zero.values, atol=1e-3)
    with pytest.raises(DataError, match="Choose from: own, zero, blurred"):
        integrated_gradients(cases, Work(), baseline="noise")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="images or spectrograms"):
        integrated_gradients(linear_cases()[0], Work(), baseline="blurred")
    x = torch.randn(1, 2, 16, 16)
    assert blurred(x, 4.0).std() < 0.3 * x.std()


# ---------------------------------------------------------------------------------------------- the others


def test_saliency_equals_captum() -> None:
    cases = image_cases()
    theirs = captum.Saliency(cases.model).attribute(cases.inputs.clone().requires_grad_(), target=cases.targets)
    torch.testing.assert_close(METHODS["saliency"].run(cases, Work()).raw, theirs)


@pytest.mark.parametrize(("window", "stride"), [((3, 3), (2, 2)), ((4, 2), (4, 2)), ((3, 5), (3, 1))])
def test_sliding_windows_equal_captum(window: tuple[int, int], stride: tuple[int, int]) -> None:
    cases = image_cases()
    theirs = captum.Occlusion(cases.model).attribute(
        cases.inputs, (2, *window), (2, *stride), baselines=cases.baselines, target=cases.targets
    )
    ours = occlusion(cases, Work(at_once=11), window=window, stride=stride)
    torch.testing.assert_close(ours.values.view(-1, 8, 8), theirs[:, 0], rtol=1e-4, atol=1e-6)


def test_occlusion_of_features_equals_captums_ablation() -> None:
    cases = image_cases()
    theirs = captum.FeatureAblation(cases.model).attribute(
        cases.inputs, cases.baselines, target=cases.targets, feature_mask=cases.features.unsqueeze(0)
    )
    torch.testing.assert_close(occlusion(cases, Work()).values.view(-1, 8, 8), theirs[:, 0], rtol=1e-4, atol=1e-6)


def test_windows_cover_every_feature_or_are_refused() -> None:
    assert windows_of_grid((5, 7), (3, 2), (2, 2)).any(0).all()
    with pytest.raises(DataError, match="never be hidden"):
        windows_of_grid((8, 8), (2, 2), (3, 3))
    with pytest.raises(DataError, match="for each axis"):
        windows_of_grid((8, 8), (9, 2))


def test_smoothgrad_averages_the_gradient_over_noise() -> None:
    """Of sum x^3 the gradient is 3 x^2, and its mean over noise of variance s^2 is 3 (x^2 + s^2)."""
    x = torch.tensor([[1.0, -1.0, 0.5]])
    model = nn.Identity()
    cases = Cases(model, x, lambda x, rows: (x**3).sum(1, keepdim=True), torch.zeros(1, dtype=torch.int64), x * 0, torch.arange(3), (3,))
    found = smoothgrad(cases, Work(), samples=4000, noise=0.25)
    torch.testing.assert_close(found.values, 3 * (x**2 + 0.5**2), rtol=0.1, atol=0.05)


def test_gradient_shap_agrees_with_captum_over_many_samples() -> None:
    cases = image_cases(n=2)
    pool = torch.randn(10, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    cases = Cases(**{**vars(cases), "background": pool})
    ours = gradient_shap(cases, Work(at_once=200), samples=2000)
    torch.manual_seed(0)
    theirs = captum.GradientShap(cases.model).attribute(cases.inputs, pool, n_samples=2000, stdevs=0.0, target=cases.targets)
    wanted = theirs.sum(1).flatten(1)
    assert ((ours.values - wanted).norm(dim=1) < 0.15 * wanted.norm(dim=1)).all()
    assert (ours.facts["completeness_error"] < 0.2).all()


def test_an_explanation_does_not_depend_on_the_examples_beside_it() -> None:
    cases = image_cases(n=4)
    alone = Cases(**{**vars(cases), "inputs": cases.inputs[2:3], "targets": cases.targets[2:3]})
    for name in ("smoothgrad", "gradient_shap", "integrated_gradients", "occlusion"):
        many = METHODS[name].run(cases, Work()).values[2]
        torch.testing.assert_close(METHODS[name].run(alone, Work()).values[0], many, rtol=1e-3, atol=1e-5)


def test_methods_of_gradients_refuse_codes() -> None:
    model, task, spec, batch = made("codes")
    cases = cases_of(model, task, spec, batch)
    assert "these are codes" in METHODS["integrated_gradients"].why_not(cases)


AUTO = {
    "resnet": ["grad_cam", "integrated_gradients"], "vit": ["grad_cam", "integrated_gradients"], "mlp": ["integrated_gradients"],
    "codes": ["kernel_shap"], "bert": ["integrated_gradients"], "bag": ["kernel_shap"], "gpt": ["integrated_gradients"],
    "speech": ["grad_cam", "integrated_gradients"], "conformer": ["grad_cam", "integrated_gradients"], "dlinear": ["integrated_gradients"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_has_methods_by_default_with_reasons(kind: str) -> None:
    model, task, spec, batch = made(kind)
    cases = cases_of(model, task, spec, batch)
    found = auto_methods(cases)
    assert list(found) == AUTO[kind] and all(found.values())
    assert not any(METHODS[name].why_not(cases) for name in found)
