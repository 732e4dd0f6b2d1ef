"""A rule for each kind of layer; one file a family."""

from tauon.privacy.clipped.rules import adapters, attention, convolution, embedding, linear, norm, recurrent
from tauon.privacy.clipped.rules.base import register_rule, registered_rules, rule_of
from tauon.privacy.clipped.rules.generic import vmap_rule

__all__ = [
    "adapters",
    "attention",
    "convolution",
    "embedding",
    "linear",
    "norm",
    "recurrent",
    "register_rule",
    "registered_rules",
    "rule_of",
    "vmap_rule",
]
