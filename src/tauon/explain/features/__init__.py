"""Influence of features on a model's answers, over a readable feature matrix."""

from tauon.explain.features.columns import Condition, Feature, OutOfRange, describe_features, outside_range

__all__ = ["Condition", "Feature", "OutOfRange", "describe_features", "outside_range"]
