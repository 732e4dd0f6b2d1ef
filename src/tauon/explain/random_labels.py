"""The test with a model of random labels (Adebayo et al. 2018, arXiv:1810.03292, "data randomisation").

A twin of the model is trained in the same way on the same examples with their labels shuffled. It can only memorise: nothing that it learned
connects an input with its class. A method that gives both models the same map shows the input (edges, bright parts), not what was learned.

Shown: whether the map depends on what the labels taught; and whether what the map marks is evidence of the true class, on examples that neither
model was trained on. Not shown: that the model's map is right. A map of the twin can be faithful to the twin: hiding what it marks changes the
twin's answer, which is wrong as often as a guess. So the test of deletion here follows the probability of the TRUE class, not of the answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tauon.errors import DataError
from tauon.explain.base import Attribution, Cases, Work, untouched
from tauon.explain.checks import faithfulness, hide_at_random, rank_correlation

__all__ = ["LABEL_FREE", "Evidence", "RandomLabelCheck", "random_label_check"]

LABEL_FREE = 0.8
"""Mean rank correlation with the maps of a model of random labels above which a method has failed."""


@dataclass(frozen=True)
class Evidence:
    """What hiding the marked parts does to the probability of the true class, on held-out examples."""

    accuracy: float
    """Share of the examples whose true class the model answers."""
    gain: float
    """Area under the probability of the true class while random parts are hidden, less that while marked parts are hidden. Above 0 the map
    marks evidence of the true class."""
    low: float
    high: float
    """95% interval of the gain, by bootstrap over examples."""

    @property
    def found(self) -> bool:
        """Whether the map marks evidence of the true class: the whole interval is above 0."""
        return self.low > 0


@dataclass(frozen=True)
class RandomLabelCheck:
    """Maps of a model beside those of its twin of random labels."""

    method: str
    correlation: float
    """Mean rank correlation of the maps (of the sizes, for signed maps) of the same examples. Near 0 is good."""
    low: float
    high: float
    """95% interval, by bootstrap over examples."""
    model: Evidence
    twin: Evidence

    @property
    def problems(self) -> list[str]:
        """What the check found wrong, for the reader."""
        found = []
        if self.correlation > LABEL_FREE:
            found.append(f"a model of random labels has nearly the same map (rank correlation {self.correlation:.2f})")
        if self.twin.found:
            found.append(
                f"the map of a model of random labels marks evidence of the true class (gain {self.twin.gain:.3f}): the twin has learned from "
                "these examples, or was not trained on random labels"
            )
        if not self.model.found:
            found.append(f"what the model's map marks is not evidence of the true class (gain {self.model.gain:.3f})")
        return found

    @property
    def failed(self) -> bool:
        """Whether anything was found wrong."""
        return bool(self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return asdict(self) | {"failed": self.failed, "problems": self.problems}


def random_label_check(
    cases: Cases, attribution: Attribution, twin_cases: Cases, twin_attribution: Attribution, labels: Tensor, work: Work, *, steps: int = 12
) -> RandomLabelCheck:
    """Compare the maps of a model and of a twin that was trained on shuffled labels.

    Args:
        cases: held-out examples of the model, with its own answers as targets.
        attribution: the model's maps.
        twin_cases: the same examples of the twin, with the twin's answers as targets.
        twin_attribution: the twin's maps, by the same method.
        labels: true class of each example, N (int64).
        work: how to compute.
        steps: points of a curve of deletion.

    Raises:
        DataError: fewer than two examples, other examples for the twin, outputs that are no classes, or another method.
    """
    if len(cases) < 2 or not torch.equal(cases.inputs, twin_cases.inputs) or labels.shape != cases.targets.shape:
        raise DataError(f"{len(cases)} examples, {len(twin_cases)} of the twin, {len(labels)} labels: give the same two or more to both")
    if cases.link == "identity":
        raise DataError("the test with random labels needs classes, and these outputs are values")
    if attribution.method != twin_attribution.method:
        raise DataError(f"the maps are of {attribution.method}, the twin's of {twin_attribution.method}: compare the same method")
    ours, theirs = (a.values.abs() for a in (attribution, twin_attribution))
    correlations = rank_correlation(ours, theirs, skip_zeros=True)
    low, high = _interval(correlations, work.seed)
    evidence = [_evidence(c, a, labels, work, steps) for c, a in ((cases, attribution), (twin_cases, twin_attribution))]
    return RandomLabelCheck(attribution.method, float(correlations.mean()), low, high, *evidence)


def _evidence(cases: Cases, attribution: Attribution, labels: Tensor, work: Work, steps: int) -> Evidence:
    of_truth = replace(cases, targets=labels.to(cases.targets))
    found = faithfulness(of_truth, attribution, work, hide_at_random(of_truth, work, steps=steps))
    gain = found.random_deletion - found.deletion
    with untouched(cases.model), torch.no_grad():
        right = []
        for part in replace(work, progress=None).chunks(len(cases)):
            rows = torch.arange(part.start, part.stop, device=cases.inputs.device)
            right.append(cases.answers(cases.inputs[part], rows).argmax(1) == of_truth.targets[part])
    return Evidence(float(torch.cat(right).float().mean()), float(gain.mean()), *_interval(gain, work.seed))


def _interval(values: Tensor, seed: int, draws: int = 1000) -> tuple[float, float]:
    """Return the 95% interval of the mean, by bootstrap."""
    values = values.double().cpu()
    chosen = torch.randint(0, len(values), (draws, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[chosen].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
