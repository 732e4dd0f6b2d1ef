"""Every registered attribution method keeps the contract; the contract catches methods that do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tauon.errors import RecipeError
from tauon.explain import METHODS, Attribution, Cases, ExplainConfig, Method, Work, attribution_method, method_named
from tauon.explain.base import gradients_of, untouched
from tauon.explain.parts.maps import explain_cases
from tauon.testing import check_explainer, explainer_cases

PROMISES: dict[str, tuple[str, ...]] = {
    "integrated_gradients": ("completeness", "linear", "dummy"),
    "kernel_shap": ("completeness", "linear", "dummy"),
    "gradient_shap": ("linear", "dummy"),
    "occlusion": ("linear", "dummy"),
    "saliency": ("dummy",),
    "smoothgrad": ("dummy",),
    "gradient_times_input": ("dummy",),
    "attention_rollout": ("shares",),
}
SMALL: dict[str, dict[str, Any]] = {"smoothgrad": {"samples": 5}, "gradient_shap": {"samples": 5}, "kernel_shap": {"evaluations": 140}}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name: str) -> None:
    check_explainer(METHODS[name], axioms=PROMISES.get(name, ()), options=SMALL.get(name))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the contract catches


def right(cases: Cases, work: Work) -> Attribution:
    """Gradient x input as one would write it."""
    rows = torch.arange(len(cases))
    with untouched(cases.model):
        scores, gradient = gradients_of(cases, cases.inputs, rows)
    raw = gradient * cases.inputs
    values = cases.per_feature(raw)
    return Attribution("mine", values if cases.valid is None else values * cases.valid, scores, raw=raw)


def method(run: Callable[..., Attribution], name: str = "mine") -> Method:
    return Method(name, run, "Mine", "gradients", "none")


def changed(**what: Any) -> Callable[..., Attribution]:
    def run(cases: Cases, work: Work) -> Attribution:
        a = right(cases, work)
        return dataclasses.replace(a, **{name: change(a, cases) for name, change in what.items()})

    return run


def left_in_evaluation(cases: Cases, work: Work) -> Attribution:
    cases.model.eval()
    return right(cases, work)


def drawn_from_the_process(cases: Cases, work: Work) -> Attribution:
    a = right(cases, work)
    return dataclasses.replace(a, values=a.values * torch.rand(1))


def of_the_batch(cases: Cases, work: Work) -> Attribution:
    a = right(cases, work)
    return dataclasses.replace(a, values=a.values / (a.values.abs().max() if len(a.values) else 1))


def writes_its_input(cases: Cases, work: Work) -> Attribution:
    a = right(cases, work)
    cases.inputs.mul_(1.0001)
    return a


def leaves_a_gradient(cases: Cases, work: Work) -> Attribution:
    with torch.enable_grad():
        cases.model.train(False)
        if len(cases):
            cases.score(cases.inputs, torch.arange(len(cases))).sum().backward()
    return right(cases, work)


WRONG: dict[str, tuple[Callable[..., Attribution], str]] = {
    "modes": (left_in_evaluation, "not as it was found: modes"),
    "random": (drawn_from_the_process, "the same call gave another map|random state"),
    "batch": (of_the_batch, "alone has another map"),
    "inputs": (writes_its_input, "inputs were changed"),
    "gradients": (leaves_a_gradient, "gradients"),
    "shape": (changed(values=lambda a, c: a.values[:, 1:]), "values .* expected"),
    "scores": (changed(scores=lambda a, c: a.scores + 1), "scores .* expected"),
    "sign": (changed(signed=lambda a, c: False), "need signed=True"),
    "finite": (changed(values=lambda a, c: a.values / a.values.abs().amax(1, keepdim=True)), "not finite"),
    "padding": (changed(values=lambda a, c: a.values + 1), "padding is marked"),
}


def test_a_right_method_passes_and_its_axioms_are_checked() -> None:
    check_explainer(method(right), axioms=("dummy",))
    with pytest.raises(AssertionError, match="mine, image: values do not sum to"):
        check_explainer(method(right), axioms=("completeness",))
    with pytest.raises(AssertionError, match="mine, table: of f = w x"):
        check_explainer(method(right), axioms=("linear",))
    with pytest.raises(AssertionError, match="not to 1"):
        check_explainer(method(right), axioms=("shares",))
    with pytest.raises(AssertionError, match="unknown axioms"):
        check_explainer(method(right), axioms=("symmetry",))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", WRONG)
def test_a_method_that_breaks_the_contract_is_named(fault: str) -> None:
    run, message = WRONG[fault]
    with pytest.raises(AssertionError, match=message):
        check_explainer(method(run))


def test_a_method_of_other_data_needs_cases_of_its_own() -> None:
    series = dataclasses.replace(method(right), kinds=("series",))
    with pytest.raises(AssertionError, match="explains none of image, table, text"):
        check_explainer(series)
    check_explainer(series, cases={"series": dataclasses.replace(explainer_cases()["table"], kind="series")})


# ---------------------------------------------------------------------------------------------- methods from outside


@pytest.fixture
def mine() -> Iterator[Method]:
    attribution_method("mine", "Mine", needs="gradients", source="a notebook")(right)
    yield METHODS["mine"]
    del METHODS["mine"]


def test_a_method_from_outside_is_found_by_its_name_in_a_recipe(mine: Method) -> None:
    config = ExplainConfig(maps=("mine",))
    assert method_named(config.maps[0], "explain.maps") is mine
    cases = explainer_cases()["image"]
    maps = explain_cases(
        cases, lambda model: dataclasses.replace(cases, outputs=lambda x, rows: model(x), model=model), config.maps, Work()
    )
    assert [m.name for m in maps.methods] == ["mine"] and maps.methods[0].title == "Mine" and maps.methods[0].faithful is not None
    with pytest.raises(RecipeError, match="did you mean 'mine'"):
        method_named("mina", "explain.maps")
    with pytest.raises(ValueError, match="already exists"):
        attribution_method("mine", "Other", needs="outputs", source="x")(changed())
