"""Concept activation vectors, and the test with them (TCAV; Kim et al. 2018, arXiv:1711.11279): does the output rise with a concept?

A concept is a set of examples ("striped", "age above the median"). A linear classifier separates the activations of the concept's examples from
those of others at one layer; the direction in which it points to the concept is the concept's vector (CAV). The TCAV score is the share of the
explained examples whose output rises along it. Four things make the score mean something, and all are in `ConceptScore`:

- The classifier must separate examples that it was not fitted on, better than classifiers of random sets do. Otherwise the vector is no concept,
  and the score is not tested.
- A random direction has a score, too, often 0 or 1 where the layer is near the output. So what is tested is the effect: how much the output changes
  when the activations move along the vector as far as held-out examples with the concept are from those without. It is compared with the effects of
  random sets of the same size, drawn in the same way: a permutation test. (The paper's t test over repeated draws calls any fixed set significant if
  it is repeated often enough.)
- The direction itself must be certain: the interval of the effect, over vectors fitted against other examples and over the explained examples, must not
  contain 0. Any property that a layer shows has a direction, and few directions are exactly at right angles to the gradient.
- Many concepts are looked at: p-values are corrected by Benjamini and Hochberg's procedure.

A significant concept says that the output rises in a direction that also separates the concept. Whatever goes along with the concept in the
examples shares the direction: the test cannot tell a concept from its companion.

Shapes as in `base.py`; A numbers of a layer's activations, K examples of a concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tauon.errors import DataError, MissingExtra
from tauon.explain.base import Cases, Work
from tauon.explain.concepts.layer import layer_activations, output_gradients
from tauon.explain.slices import benjamini_hochberg

__all__ = [
    "Cav",
    "ConceptScore",
    "ConceptSettings",
    "concept_vector",
    "tcav",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST = 8
"""Fewest examples of a concept, and of others, that a vector is fitted on."""
BOOTSTRAP = 20
"""Resamples of the explained examples for each vector, for intervals."""


@dataclass(frozen=True)
class ConceptSettings:
    """How concepts are fitted and tested."""

    pooled: bool = True
    """Use the mean of the activations over the positions of a layer: where in the input a concept is makes no difference. False: every position
    has numbers of its own, as in the paper."""
    direction: Literal["logistic", "mean-difference"] = "logistic"
    """The normal of a logistic regression, or the difference of the means, which noise in the activations turns less (arXiv:2202.03482)."""
    runs: int = 20
    """Vectors of each concept, each against other random examples: the interval is over them."""
    random: int | None = None
    """Vectors of random sets that a concept is tested against; the smallest p-value is 1 / (random + 1). None: enough that a single one of the
    concepts can be significant."""
    held_out: float = 0.25
    """Share of examples that a vector's accuracy is measured on."""
    most: int = 200
    """Most examples of a concept in one vector, and as many others."""
    level: float = 0.05
    """Largest corrected p-value of a significant concept; and share of random sets that may separate better than one that is tested."""
    seed: int = 0


@dataclass(frozen=True)
class Cav:
    """A concept's vector."""

    vector: Floats
    """A, of length 1, pointing to the concept."""
    accuracy: float
    """On examples that it was not fitted on, with and without the concept counted alike: 0.5 is chance."""
    shift: float
    """How much farther along the vector the examples with the concept are, means of those that it was not fitted on."""


@dataclass(frozen=True)
class ConceptScore:
    """What a layer says about one concept, and how far that may be believed."""

    name: str
    layer: str
    score: float
    """TCAV: share of the explained examples whose output rises along the concept, mean over `runs` vectors."""
    low: float
    high: float
    """95% interval of the score: over vectors, and over the explained examples by bootstrap."""
    effect: float
    """Change of the output, to first order, when activations move along the vector from those without the concept to those with it; mean over the
    explained examples and over vectors. In units of the output (logits, of classes)."""
    effect_low: float
    effect_high: float
    """95% interval of the effect, as of the score."""
    accuracy: float
    """Mean held-out accuracy of the concept's vectors. 0.5 is chance."""
    random_accuracy: float
    """Accuracy that only a share `level` of random sets exceeds: a vector that is no better does not separate its concept."""
    p: float
    """Of the effect, two-sided, against vectors of random sets. 1 where the vector does not separate."""
    corrected_p: float
    """Over all concepts of the call (Benjamini-Hochberg)."""
    separates: bool
    significant: bool
    """It separates, the corrected p-value is at most `level`, and the interval of the effect does not contain 0."""
    examples: int
    """With the concept, in each vector."""

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return asdict(self) | {"text": self.text()}

    def text(self) -> str:
        """Return a sentence for the reader."""
        if not self.separates:
            return (
                f"Layer {self.layer} does not separate {self.name!r} from other examples (held-out accuracy {self.accuracy:.0%}; random sets reach "
                f"{self.random_accuracy:.0%}), so nothing is said about it."
            )
        if not self.significant and self.effect_low <= 0 <= self.effect_high:
            return (
                f"Whether {self.name!r} raises or lowers the output is not certain ({self.effect:+.2g}, {self.effect_low:+.2g} to "
                f"{self.effect_high:+.2g})."
            )
        if not self.significant:
            return (
                f"{self.name!r} moves the output no more than random sets of examples do ({self.effect:+.2g}, p = {self.corrected_p:.2g})."
            )
        rises = self.effect > 0
        share, low, high = (self.score, self.low, self.high) if rises else (1 - self.score, 1 - self.high, 1 - self.low)
        return (
            f"The output {'rises' if rises else 'falls'} with {self.name!r} for {share:.0%} of the examples ({low:.0%} to {high:.0%}): by "
            f"{self.effect:+.2g} on average ({self.effect_low:+.2g} to {self.effect_high:+.2g}), more than with random sets of examples "
            f"(p = {self.corrected_p:.2g})."
        )


# ---------------------------------------------------------------------------------------------- vectors


def concept_vector(
    with_KA: Floats, without_KA: Floats, *, direction: Literal["logistic", "mean-difference"] = "logistic", held_out: float = 0.25, seed: int = 0
) -> Cav:  # fmt: skip
    """Fit the vector that points from activations without a concept to those with it.

    Args:
        with_KA: activations of examples with the concept.
        without_KA: of others.
        direction: as of `ConceptSettings`.
        held_out: share of each that the accuracy is measured on; the vector is fitted on the others.
        seed: of the choice of held-out examples.

    Raises:
        DataError: fewer than 8 of either, or activations that are the same for all examples.

    >>> rng = np.random.default_rng(0)
    >>> others = rng.normal(size=(40, 3))
    >>> cav = concept_vector(others[:20] + [5, 0, 0], others[20:])
    >>> cav.accuracy, bool(cav.vector[0] > 0.9)
    (1.0, True)
    """
    if min(len(with_KA), len(without_KA)) < LEAST:
        raise DataError(f"{len(with_KA)} examples with a concept and {len(without_KA)} without: a vector needs at least {LEAST} of each")
    rng = np.random.Generator(np.random.Philox(key=seed))
    sides, kept = (with_KA, without_KA), []
    tests = []
    for side in sides:
        order = rng.permutation(len(side))
        n = max(2, round(held_out * len(side)))
        tests.append(side[order[:n]])
        kept.append(side[order[n:]])
    X = np.concatenate(kept)
    spread = X.std(0)
    if not (spread > 0).any():
        raise DataError("the layer's activations are the same for all examples: no concept can be read from them")
    center = X.mean(0)
    scale = float(np.sqrt((spread**2).mean()))  # one for all: a scale for each number would turn the vector to those that hardly change
    if direction == "logistic":
        normal, offset = _logistic((X - center) / scale, np.repeat([1, 0], [len(k) for k in kept]))
        vector = normal / scale
        offset -= float(vector @ center)
    else:
        means = [k.mean(0) for k in kept]
        vector = means[0] - means[1]
        offset = -float(vector @ (means[0] + means[1])) / 2
    along = [side @ vector + offset for side in tests]
    accuracy = float(((along[0] > 0).mean() + (along[1] <= 0).mean()) / 2)
    length = max(float(np.linalg.norm(vector)), 1e-300)
    return Cav(vector / length, accuracy, float(along[0].mean() - along[1].mean()) / length)


def _logistic(X: Floats, y: NDArray[np.int64]) -> tuple[Floats, float]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as err:
        raise MissingExtra("a concept vector", "explain") from err
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3).fit(X, y)
    return model.coef_[0], float(model.intercept_[0])


# ---------------------------------------------------------------------------------------------- the test


def tcav(
    cases: Cases, layer: str, concepts: Mapping[str, Mask | Tensor | Cases], pool: Tensor | Cases, work: Work, *,
    settings: ConceptSettings | None = None,
) -> list[ConceptScore]:  # fmt: skip
    """Test whether the explained outputs of the cases rise or fall with each concept (TCAV), those with the largest effect first.

    Args:
        cases: the explained examples and outputs: usually examples of one class, and its logit.
        layer: name of a module that the model calls once ("layer3.2").
        concepts: by name: which examples of the pool have it (N, bool; of `concepts_from_columns`), or examples of its own: inputs K *E, or, of
            texts and recordings, cases.
        pool: many examples without a choice, such as training examples: negative examples and random sets are drawn from them.
        work: how to compute.
        settings: numbers of vectors, and levels.

    Raises:
        DataError: too few examples, a mask of another length, or a layer that does not exist.
    """
    s = settings or ConceptSettings()
    random = math.ceil(2 * len(concepts) / s.level) - 1 if s.random is None else s.random
    gradients = output_gradients(cases, layer, replace(work, progress=None), pooled=s.pooled)
    pool_NA = layer_activations(_as_cases(cases, pool, "the pool"), layer, work, pooled=s.pooled)
    if not gradients.any():
        raise DataError(f"the explained outputs do not change with layer {layer!r}: name a layer that they depend on")
    found, nulls = list[ConceptScore](), dict[int, tuple[Floats, Floats]]()
    for name, concept in concepts.items():
        sides = _sides(cases, name, concept, pool_NA, layer, work, s)
        n = _rounded(min(len(sides[0]), len(sides[1]), s.most))
        if min(n, len(pool_NA) - n) < LEAST:
            raise DataError(f"concept {name!r}: {n} examples beside {len(pool_NA)} of the pool; at least {LEAST} of each are needed")
        if n not in nulls:
            nulls[n] = _of_random_sets(pool_NA, n, random, gradients, s)
        found.append(_scored((name, layer), sides, n, gradients, nulls[n], s))
    corrected = benjamini_hochberg([c.p for c in found])
    tested = [
        replace(c, corrected_p=q, significant=c.separates and q <= s.level and not c.effect_low <= 0 <= c.effect_high)
        for c, q in zip(found, corrected, strict=True)
    ]
    return sorted(tested, key=lambda c: (not c.significant, not c.separates, -abs(c.effect)))


def _rounded(n: int) -> int:
    """Return one of few sizes that is at most n, by at most a quarter smaller: concepts of one size share their random sets."""
    size = LEAST
    while (larger := size * 5 // 4) <= n:
        size = larger
    return min(n, size)


def _as_cases(like: Cases, examples: Tensor | Cases, what: str) -> Cases:
    """Return cases of inputs alone: same model and output."""
    if isinstance(examples, Cases):
        return examples
    if like.kind in ("text", "audio"):
        raise DataError(
            f"{what}: of {like.kind}, inputs alone do not say which tokens or how many frames there are. Give cases (`cases_of`)."
        )
    if examples.shape[1:] != like.inputs.shape[1:]:
        raise DataError(f"{what}: inputs of shape {tuple(examples.shape)}, expected (rows, {', '.join(map(str, like.inputs.shape[1:]))})")
    targets = like.targets[:1].expand(len(examples))
    return replace(like, inputs=examples.to(like.inputs), targets=targets, baselines=like.baselines[:1], valid=None)


def _sides(
    cases: Cases, name: str, concept: Mask | Tensor | Cases, pool_NA: Floats, layer: str, work: Work, s: ConceptSettings
) -> tuple[Floats, Floats]:
    """Return the activations of examples (with the concept, without it or of the pool)."""
    is_mask = isinstance(concept, np.ndarray) or (isinstance(concept, Tensor) and concept.dtype == torch.bool)
    if not is_mask:
        examples = _as_cases(cases, cast("Tensor | Cases", concept), f"concept {name!r}")
        return layer_activations(examples, layer, replace(work, progress=None), pooled=s.pooled), pool_NA
    mask = np.asarray(concept)
    if mask.shape != (len(pool_NA),) or mask.dtype != bool:
        raise DataError(
            f"concept {name!r}: {mask.dtype} of shape {mask.shape}, expected bool for each of {len(pool_NA)} examples of the pool"
        )
    return pool_NA[mask], pool_NA[~mask]


def _of_random_sets(pool_NA: Floats, n: int, random: int, gradients: Floats, s: ConceptSettings) -> tuple[Floats, Floats]:
    """Return (effects, accuracies) of vectors of random sets of n examples against n others."""
    rng = np.random.Generator(np.random.Philox(key=[s.seed, 1]))
    found = []
    for i in range(random):
        order = rng.permutation(len(pool_NA))
        cav = concept_vector(pool_NA[order[:n]], pool_NA[order[n : 2 * n]], direction=s.direction, held_out=s.held_out, seed=s.seed + i)
        found.append((float((gradients @ cav.vector).mean()) * cav.shift, cav.accuracy))
    effects, accuracies = np.array(found).T
    return effects, accuracies


def _scored(
    names: tuple[str, str], sides: tuple[Floats, Floats], n: int, gradients: Floats, null: tuple[Floats, Floats], s: ConceptSettings
) -> ConceptScore:
    rng = np.random.Generator(np.random.Philox(key=[s.seed, 2]))
    shares, effects, accuracies = [], [], []
    resampled: list[tuple[float, float]] = []
    for i in range(s.runs):
        some, others = (side[rng.permutation(len(side))[:n]] for side in sides)
        cav = concept_vector(some, others, direction=s.direction, held_out=s.held_out, seed=s.seed + i)
        along = gradients @ cav.vector
        shares.append(float((along > 0).mean()))
        effects.append(float(along.mean()) * cav.shift)
        accuracies.append(cav.accuracy)
        for _ in range(BOOTSTRAP):
            drawn = along[rng.integers(0, len(along), len(along))]
            resampled.append((float((drawn > 0).mean()), float(drawn.mean()) * cav.shift))
    effect, accuracy = float(np.mean(effects)), float(np.mean(accuracies))
    random_accuracy = float(np.quantile(null[1], 1 - s.level, method="higher"))
    separates = accuracy > random_accuracy
    # the mean over runs varies less than the single vectors of random sets: the test errs on the side of saying nothing
    p = (1 + float((np.abs(null[0]) >= abs(effect)).sum())) / (1 + len(null[0])) if separates else 1.0
    (low, high), (effect_low, effect_high) = (np.quantile(values, (0.025, 0.975)).tolist() for values in zip(*resampled, strict=True))
    return ConceptScore(
        *names, score=float(np.mean(shares)), low=low, high=high, effect=effect, effect_low=effect_low, effect_high=effect_high,
        accuracy=accuracy, random_accuracy=random_accuracy, p=p, corrected_p=p, separates=separates, significant=False, examples=n,
    )  # fmt: skip
