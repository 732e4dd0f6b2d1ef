"""KernelSHAP: exact where all sets fit, always summing to the difference, and as far off as it says."""

from __future__ import annotations

import captum.attr as captum
import pytest
import torch
from torch import nn

from explain.test_cases import made
from tauon.errors import DataError
from tauon.explain import Cases, Work, cases_of
from tauon.explain.methods import kernel_shap
from tauon.explain.methods.shapley import shapley_design
from tauon.types import Batch


def table(features: int, n: int = 2) -> Cases:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        model[0].weight.mul_(2)
    x = torch.randn(n, features)
    return Cases(
        model,
        x,
        lambda x, rows: model(x),
        torch.ones(n, dtype=torch.int64),
        torch.zeros(1, features),
        torch.arange(features),
        (features,),
        "table",
    )


@pytest.mark.parametrize("features", [2, 3, 5])
def test_few_regions_have_exact_shapley_values(features: int) -> None:
    cases = table(features)
    theirs = captum.ShapleyValues(cases.model).attribute(cases.inputs, 0.0, target=1)
    found = kernel_shap(cases, Work(at_once=7), evaluations=10)
    torch.testing.assert_close(found.values, theirs.float(), rtol=1e-4, atol=1e-5)
    assert found.errors is not None and not found.errors.any()


def test_one_region_gets_the_whole_difference() -> None:
    cases = Cases(**{**vars(table(4)), "regions": torch.zeros(4, dtype=torch.int64)})
    found = kernel_shap(cases, Work())
    torch.testing.assert_close(found.values.sum(1), found.facts["difference"])
    assert torch.equal(found.values[:, 0], found.values[:, 3])


def test_values_sum_to_the_difference_and_are_as_far_off_as_the_standard_error_says() -> None:
    cases = table(13)
    exact = kernel_shap(cases, Work(at_once=4096), evaluations=2**13)
    runs = [kernel_shap(cases, Work(at_once=4096, seed=s), evaluations=128) for s in range(40)]
    for run in runs[:3]:
        torch.testing.assert_close(run.values.sum(1), run.facts["difference"], rtol=1e-4, atol=1e-5)
    off = torch.stack([r.values - exact.values for r in runs])
    said = torch.stack([r.errors for r in runs if r.errors is not None])
    assert len(said) == 40 and not exact.errors.any()  # type: ignore[union-attr]
    ratio = off.square().mean().sqrt() / said.square().mean().sqrt()
    assert 0.6 < ratio < 1.4, ratio
    assert (off.mean(0).abs() < 4 * off.std(0) / 40**0.5 + 1e-4).all()  # no bias


def test_more_evaluations_are_nearer() -> None:
    cases = table(13)
    exact = kernel_shap(cases, Work(at_once=4096), evaluations=2**13).values
    errors = [(kernel_shap(cases, Work(at_once=4096), evaluations=k).values - exact).norm() for k in (32, 512)]
    assert errors[1] < 0.5 * errors[0]


def test_a_design_takes_whole_sizes_and_pairs() -> None:
    design = shapley_design(20, 512)
    sizes = design.sets.sum(1)
    assert (sizes == 1).sum() == (sizes == 19).sum() == 20 and len(design.sets) == 512
    drawn = design.sets[-design.drawn :]
    assert torch.equal(drawn[0::2], ~drawn[1::2])
    with pytest.raises(DataError, match="at least 40"):
        shapley_design(20, 30)


def test_absent_columns_are_drawn_from_the_background() -> None:
    cases = table(3)
    pool = torch.randn(4, 3)
    cases = Cases(**{**vars(cases), "background": pool})
    found = kernel_shap(cases, Work(), fill_rows=4)
    wanted = torch.stack([captum.ShapleyValues(cases.model).attribute(cases.inputs, row.unsqueeze(0), target=1) for row in pool]).mean(0)
    torch.testing.assert_close(found.values, wanted.float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="needs cases with a background"):
        kernel_shap(table(3), Work(), absent="background")


def test_padding_is_no_region() -> None:
    """Texts of different lengths in one batch have the values that each has alone."""
    model, task, spec, batch = made("bag")
    segments = torch.zeros_like(batch.inputs, dtype=torch.int32)
    segments[0, 3:] = -1
    padded = Batch(batch.inputs, batch.targets, batch.weights, segments=segments)
    both = kernel_shap(cases_of(model, task, spec, padded), Work())
    alone = kernel_shap(cases_of(model, task, spec, Batch(batch.inputs[:1, :3], batch.targets[:1], batch.weights[:1])), Work())
    torch.testing.assert_close(both.values[0, :3], alone.values[0], rtol=1e-4, atol=1e-5)
    assert not both.values[0, 3:].any() and both.values[1, 3:].any()
