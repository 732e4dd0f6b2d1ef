"""Noise: multiplier of each step (schedules, adaptive kinds), correlation over steps, and the generator."""

from tauon.privacy.noise.adaptive import Adaptive, GradientNorm, ValidationLoss
from tauon.privacy.noise.correlated import Correlated, prefix_error, sensitivity
from tauon.privacy.noise.plan import NoisePlan, Query
from tauon.privacy.noise.schedule import Constant, Cosine, Exponential, Linear, NoiseConfig, Steps
from tauon.privacy.noise.source import NoiseSource

__all__ = [
    "Adaptive",
    "Constant",
    "Correlated",
    "Cosine",
    "Exponential",
    "GradientNorm",
    "Linear",
    "NoiseConfig",
    "NoisePlan",
    "NoiseSource",
    "Query",
    "Steps",
    "ValidationLoss",
    "prefix_error",
    "sensitivity",
]
