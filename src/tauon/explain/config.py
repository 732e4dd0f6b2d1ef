"""The recipe's section `explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.config import Config, Count, Fraction

__all__ = [
    "CardConfig",
    "ChecksConfig",
    "ConceptConfig",
    "CounterfactualConfig",
    "ExplainConfig",
    "InfluenceConfig",
    "LanguageConfig",
    "TreeConfig",
]


class TreeConfig(Config):
    """The surrogate tree: a small decision tree that gives the model's answers."""

    depth: Literal["auto"] | Count = "auto"
    """Most questions from the root to an answer. auto: the smallest depth whose fidelity is within one standard error of the best, up to 6."""


class InfluenceConfig(Config):
    """Which training examples a decision rests on."""

    examples: bool = True
    """Compute it. Private runs refuse it: it would show their records."""
    method: Literal["auto", "ekfac", "trak", "tracin"] = "auto"
    """auto: ekfac for models of up to 20 million parameters, else trak."""
    most: Count = Field(5_000, ge=10)
    """Most training examples in the index; the first of a random order. Of running text at most 100,000 tokens."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("method", "most") if not self.raw_value("examples") else ():
            if name in self.model_fields_set:
                yield name, "has no effect with examples: false; remove one of them"


class CounterfactualConfig(Config):
    """Changes that would flip an answer."""

    keep: tuple[str, ...] = ()
    """Columns that cannot change: age, sex."""


class ConceptConfig(Config):
    """Concept activation vectors (Kim et al. 2018). Concepts are readable features: a column above its median, a word, a bright region."""

    layer: str
    """Module whose activations are used: layer3.0, layers.0."""
    most: Count = Field(8, ge=1, le=100)
    """Concepts that are tested: the features that the surrogate tree uses most."""


class ChecksConfig(Config):
    """Tests of the maps."""

    examples: Count = Field(24, ge=1)
    """Held-out examples on which maps are tested, those that are explained among them."""


class LanguageConfig(Config):
    """What is said about language models alone."""

    answer: Count = Field(12, ge=0, le=500)
    """Tokens of the continuation of a new prompt whose attribution is computed."""
    contrast: tuple[str, ...] = ()
    """Two prompts of the same number of tokens: which activations carry the difference between their answers."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.raw_value("contrast")) not in (0, 2):
            yield "contrast", f"has {len(self.raw_value('contrast'))} prompts; give two, or remove it"


class CardConfig(Config):
    """What only a person can say in the model card."""

    purpose: str = ""
    """What the model is for, and what it must not be used for."""
    licence: str = ""
    """Licence of the model: apache-2.0, cc-by-4.0, other."""
    language: str = ""
    """Language of its texts: en, de."""


class ExplainConfig(Config):
    """Explanations of the trained model."""

    examples: Count = Field(6, ge=0, le=200)
    """Number of held-out examples that are explained one by one: confident, uncertain and wrong ones."""
    rows: tuple[Count, ...] = ()
    """Rows of the held-out part to explain one by one, in place of `examples`."""
    maps: tuple[str, ...] = ()
    """Attribution methods: integrated_gradients, grad_cam, kernel_shap, ... Left out: those that suit the model."""
    layer: str = ""
    """Module whose activations grad_cam uses: layer3.2. Left out: the last one with a grid."""
    target: str = ""
    """Class or target that is explained. Left out: the predicted class, or the first target."""
    tree: TreeConfig | bool = TreeConfig()
    """Surrogate tree; false: none."""
    features: bool = True
    """Permutation importance, partial dependence and interactions of features."""
    influence: InfluenceConfig | bool = InfluenceConfig()
    """Training examples behind each answer; false: none."""
    counterfactuals: CounterfactualConfig | bool = CounterfactualConfig()
    """For tables: the nearest change that would flip the answer; false: none."""
    prototypes: bool = True
    """Held-out examples that stand for the others in the model's eyes, and those that none of them stands for."""
    concepts: ConceptConfig | None = None
    """Concepts that the answers rise and fall with (TCAV), at one layer. Left out: none."""
    slices: bool = True
    """Search for groups of examples on which the model fails."""
    activations: bool = True
    """Activations of each layer, and units that are dead or saturated."""
    checks: ChecksConfig | bool = ChecksConfig()
    """Tests of every map: hiding what it marks, shuffled weights, small noise; false: none."""
    sample: Count = Field(512, ge=20)
    """Held-out examples behind figures about the model as a whole."""
    background: Count = Field(64, ge=1)
    """Training examples that stand for an absent feature."""
    memory: Fraction = Field(0.5, gt=0, le=0.95)
    """Most of the free memory of the device that explaining may use."""
    split: Literal["auto", "test", "validation", "train"] = "auto"
    """Part whose examples are explained. auto: test, else validation, else train."""
    language: LanguageConfig = LanguageConfig()
    """For language models: whole answers, and two prompts side by side."""
    card: CardConfig = CardConfig()
    """For card.md, the model card."""

    def problems(self) -> Iterator[tuple[str, str]]:
        rows, examples = self.raw_value("rows"), self.raw_value("examples")
        if rows and "examples" in self.model_fields_set and examples != len(rows):
            yield "examples", f"is {examples} beside rows: {list(rows)}; remove one of them, or set examples: {len(rows)}"
        for name in ("maps", "rows"):
            values = list(self.raw_value(name))
            if len(set(values)) != len(values):
                yield name, f"names something twice: {values}"
        if self.raw_value("layer") and self.raw_value("maps") and not any(m.startswith("grad_cam") for m in self.raw_value("maps")):
            yield "layer", "is only read by grad_cam and grad_cam_plus_plus; add one to maps, or remove it"

    @property
    def keep_columns(self) -> tuple[str, ...]:
        """Columns that cannot change in a counterfactual."""
        found = self.counterfactuals
        return found.keep if isinstance(found, CounterfactualConfig) else ()

    @property
    def tested(self) -> int:
        """Number of examples on which maps are tested; 0: maps are not tested."""
        checks = self.checks
        return checks.examples if isinstance(checks, ChecksConfig) else ChecksConfig().examples if checks else 0
