"""Attributions of chosen examples by every method that suits the model, with their checks beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from tauon.errors import DataError, Problem, RecipeError, TauonError
from tauon.explain.base import METHODS, Attribution, Cases, Work, method_named
from tauon.explain.checks import Faithfulness, Hiding, faithfulness, hide_at_random, stability, weight_dependence
from tauon.explain.methods import auto_methods

__all__ = ["Maps", "MethodReport", "explain_cases"]

DEPENDS_ON_WEIGHTS = 0.8
"""Rank correlation with the map of a model with shuffled weights above which a map is shown as failed."""


@dataclass
class MethodReport:
    """One method, its maps of the chosen examples, and what the checks say about it."""

    name: str
    title: str
    why: str
    """Why it was chosen."""
    attribution: Attribution
    faithful: Faithfulness | None = None
    weights: float | None = None
    """Mean rank correlation with maps of a model with shuffled weights."""
    stable: float | None = None
    """Mean rank correlation with maps of the same examples with a little noise."""
    problems: list[str] = field(default_factory=list)
    """Why its maps are shown as failed."""
    drawn: bool = True
    """Whether its maps are drawn. A method that was chosen by default and failed is named only."""

    @property
    def failed(self) -> bool:
        """Whether a check of the method failed."""
        return bool(self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return what the checks say."""
        return {
            "name": self.name, "title": self.title, "why": self.why, "note": self.attribution.note, "signed": self.attribution.signed,
            "faithful": None if self.faithful is None else self.faithful.to_json(), "weights": self.weights, "stable": self.stable,
            "failed": self.failed, "problems": self.problems, "drawn": self.drawn,
        }  # fmt: skip


@dataclass
class Maps:
    """All methods' maps of the chosen examples."""

    cases: Cases
    methods: list[MethodReport]
    left_out: dict[str, str]
    """Method to the reason why it could not explain these examples."""

    @property
    def best(self) -> MethodReport | None:
        """The method that did best in the test of deletion, among those that no check failed."""
        fine = [m for m in self.methods if not m.failed]
        return min(fine, key=lambda m: math.inf if m.faithful is None else m.faithful.deletion_ratio, default=None)


def explain_cases(
    cases: Cases, rebuild: Callable[[nn.Module], Cases], names: Sequence[str], work: Work, *, layer: str = "", checks: bool = True,
    tested: Callable[[str], Work] | None = None,
) -> Maps:  # fmt: skip
    """Explain the cases by each method, and check each.

    Args:
        cases: the examples.
        rebuild: the same cases of another model, with the same targets.
        names: methods; empty: those that suit the model.
        work: how to compute.
        layer: for grad_cam.
        checks: whether to test the maps.
        tested: how to compute with a method, within a bound of memory; None: `work` for all.

    Raises:
        RecipeError: no method has this name.
        DataError: a method that was asked for cannot explain these examples.
    """
    wanted = dict.fromkeys(names, "as set") if names else default_methods(cases)
    if layer and not any(METHODS[name].needs == "layer" for name in wanted if name in METHODS):
        raise RecipeError(
            [Problem("explain.layer", f"has no effect: none of {', '.join(wanted)} looks at a layer. Remove it, or set explain.maps.")]
        )
    found, left_out = [], {}
    hiding: Hiding | None = None
    for name, why in wanted.items():
        method = method_named(name, "explain.maps")
        reason = method.why_not(cases)
        if reason and names:
            raise DataError(f"explain.maps: {reason}")
        if reason:
            left_out[name] = reason
            continue
        options: dict[str, Any] = {"layer": layer} if layer and method.needs == "layer" else {}
        mine = work if tested is None else tested(name)
        try:
            attribution = method.run(cases, mine, **options)
        except TauonError as err:
            if names:
                raise
            left_out[name] = str(err)
            continue
        report = MethodReport(name, method.title, why, attribution)
        if checks:
            quiet = replace(mine, progress=None)
            hiding = hiding or hide_at_random(cases, quiet)  # the same for all methods
            _check(report, cases, rebuild, quiet, options, hiding)
        found.append(report)
    if not names and any(not m.failed for m in found):  # by default nothing is drawn that failed on this model
        for report in found:
            report.drawn = not report.failed
    return Maps(cases, found, left_out)


def default_methods(cases: Cases) -> dict[str, str]:
    """Return the methods that suit the cases, each with the reason, and one that needs no gradient as a second opinion."""
    found = auto_methods(cases)
    if cases.kind != "table" and cases.differentiable:
        found["occlusion"] = "a second opinion that needs no gradient: what changes when a part is hidden"
    return found


def _check(
    report: MethodReport, cases: Cases, rebuild: Callable[[nn.Module], Cases], quiet: Work, options: Mapping[str, Any], hiding: Hiding
) -> None:
    run = method_named(report.name).run
    report.faithful = faithfulness(cases, report.attribution, quiet, hiding)
    some = slice(0, min(len(cases), 4))  # the other checks explain again: a few examples tell enough
    few, theirs = part_of(cases, some), _rows(report.attribution, some)

    def again(other: Cases) -> Attribution:
        return run(other, quiet, **options)

    report.weights = float(weight_dependence(theirs, lambda model: again(part_of(rebuild(model), some)), cases.model).mean())
    stable = float(stability(few, theirs, again).mean())
    report.stable = None if math.isnan(stable) else stable
    if report.faithful.failed:
        report.problems.append(
            f"hiding what it marks changes the answer no faster than hiding random parts (deletion {report.faithful.deletion_ratio:.2f} of "
            f"random, insertion {report.faithful.insertion_ratio:.2f})"
        )
    if report.weights > DEPENDS_ON_WEIGHTS:
        report.problems.append(f"a model with shuffled weights has nearly the same map (rank correlation {report.weights:.2f})")


def _rows(attribution: Attribution, part: slice) -> Attribution:
    return replace(attribution, values=attribution.values[part], scores=attribution.scores[part], raw=None, facts={}, failed=None)


def part_of(cases: Cases, part: slice) -> Cases:
    """Return some of the cases."""
    first = part.start or 0

    def outputs(x: Tensor, rows: Tensor) -> Tensor:
        return cases.outputs(x, rows + first)

    def cut(value: Tensor | None) -> Tensor | None:
        return value if value is None or len(value) != len(cases) else value[part]

    baselines = cases.baselines if len(cases.baselines) == 1 else cases.baselines[part]
    return replace(
        cases, inputs=cases.inputs[part], targets=cases.targets[part], outputs=outputs, baselines=baselines, valid=cut(cases.valid)
    )
