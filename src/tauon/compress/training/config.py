"""The recipe's sections `distil` and `qat`, and what heals a pruned model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tauon.compress.base import LayerStep
from tauon.compress.steps import Int4WeightOnly, Int8, Int8WeightOnly
from tauon.config import Config, Count, Fraction

__all__ = ["DistilConfig", "HealConfig", "QatConfig"]


class DistilConfig(Config):
    """Train against the outputs of a larger trained model as well: `distil: {teacher: runs/big, temperature: 2, weight: 0.5}`."""

    teacher: str = Field(min_length=1)
    """The trained model: a run, a checkpoint or a Hugging Face folder. It stays as it is."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Outputs of both are divided by it before the softmax; the divergence is multiplied by its square (arXiv:1503.02531). Classes and tokens only."""
    weight: Fraction = Field(0.5, ge=0, le=1)
    """The loss is (1 - weight) times that of the task plus weight times the divergence from the teacher."""
    features: dict[str, str] = Field(default_factory=dict)
    """Hidden states to match (FitNets, arXiv:1412.6550): module of the student to module of the teacher, {"blocks.1": "blocks.3"}. A linear
    projection between different widths is trained with the model, and not kept."""
    feature_weight: float = Field(1.0, ge=0)
    """Weight of the mean squared difference of these hidden states."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("feature_weight") != 1.0 and not self.raw_value("features"):
            yield "feature_weight", "has no effect without features. Name some, or remove it."


class QatConfig(Config):
    """Train with weights as a step of `compress` will round them (quantisation-aware training): `qat: {weights: int4, group: 32}`."""

    weights: Literal["int4", "int8"] = "int4"
    """int4: what `compress: {steps: [int4_weight_only]}` rounds; int8: what `int8` does, or `int8_weight_only`."""
    activations: Literal["float", "int8"] = "float"
    """int8: inputs of linear layers are rounded, too, each row by its own range (`int8`, dynamic). Only with weights: int8."""
    group: Count = Field(32, ge=2, le=4096)
    """int4: inputs that share a scale."""
    start: Fraction = Field(0.2, ge=0, lt=1)
    """Share of the steps before rounding begins."""
    embeddings: bool = True
    """Round tables of embeddings to int8, too."""
    only: tuple[str, ...] = ("*",)
    """Patterns (fnmatch) of the names of the layers that are rounded."""
    skip: tuple[str, ...] = ()
    """Patterns of the names of layers that stay as they are."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("weights") == "int4" and self.raw_value("activations") == "int8":
            yield "activations", "is int8, but activations stay float beside int4 weights. Set weights: int8, or remove it."
        if self.raw_value("weights") == "int8" and self.raw_value("group") != 32:
            yield "group", "is for int4: int8 weights have one scale for each output. Remove it."
        if self.raw_value("weights") == "int8" and self.raw_value("activations") == "float" and not self.raw_value("embeddings"):
            yield "embeddings", "int8_weight_only rounds tables, too. Set qat.skip to their names instead."

    def step(self) -> LayerStep:
        """Return the step of `compress` that rounds the trained weights to what training saw."""
        if self.weights == "int4":
            return Int4WeightOnly(group=self.group, embeddings=self.embeddings, only=self.only, skip=self.skip)
        if self.activations == "int8":
            return Int8(embeddings=self.embeddings, only=self.only, skip=self.skip)
        return Int8WeightOnly(only=self.only, skip=self.skip)


class HealConfig(Config):
    """Train a model again after parts or weights were removed: `heal: {steps: 200, lr: 1e-4}`."""

    steps: Count = Field(200, ge=1)
    """Steps after each step of compression but quantisation."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch: Count | None = Field(None, ge=1)
    """Examples of a step. Left out: train.batch."""
    teacher: bool = True
    """Distil from the model as it was before compression; false: train on the task alone."""
    temperature: float = Field(2.0, gt=0, le=100)
    """As in `distil`."""
    weight: Fraction = Field(0.5, ge=0, le=1)
    """As in `distil`."""
