"""Exact per-example clipping in one backward pass."""

from tauon.privacy.clipped.engine import ClippedSum, place
from tauon.privacy.clipped.independence import check_independent
from tauon.privacy.clipped.modes import AdaptiveClipping, AutomaticClipping, ClippingConfig, FlatClipping, PerLayerClipping
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules import register_rule, registered_rules
from tauon.privacy.clipped.terms import Dense, Outer, Rows, Term

__all__ = [
    "AdaptiveClipping",
    "AutomaticClipping",
    "ClippedSum",
    "ClippingConfig",
    "Dense",
    "FlatClipping",
    "Outer",
    "PerLayerClipping",
    "Record",
    "Rows",
    "Term",
    "check_independent",
    "place",
    "register_rule",
    "registered_rules",
    "tap",
]
