"""Per-example clipping, exact, in one backward pass."""

from tauon.privacy.clipped.engine import ClippedSum, place
from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rules import register_rule, registered_rules
from tauon.privacy.clipped.terms import Dense, Outer, Rows, Term

__all__ = ["ClippedSum", "Dense", "Outer", "Record", "Rows", "Term", "place", "register_rule", "registered_rules"]
