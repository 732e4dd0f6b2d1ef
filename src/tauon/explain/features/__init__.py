"""Influence of features on a model's answers, over a readable feature matrix."""

from tauon.explain.features.columns import Condition, Feature, OutOfRange, describe_features, outside_range
from tauon.explain.features.dependence import (
    Dependence,
    DependenceSettings,
    Interaction,
    accumulated_local_effects,
    interactions,
    partial_dependence,
)
from tauon.explain.features.importance import Importance, ShuffleSettings, permutation_importance

__all__ = [
    "Condition",
    "Dependence",
    "DependenceSettings",
    "Feature",
    "Importance",
    "Interaction",
    "OutOfRange",
    "ShuffleSettings",
    "accumulated_local_effects",
    "describe_features",
    "interactions",
    "outside_range",
    "partial_dependence",
    "permutation_importance",
]
