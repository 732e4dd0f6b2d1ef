"""Differential privacy: takes a training job, returns a training job."""

from tauon.privacy.clipped import ClippedSum, ClippingConfig, check_independent, register_rule

__all__ = ["ClippedSum", "ClippingConfig", "check_independent", "register_rule"]
