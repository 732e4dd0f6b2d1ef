"""Secure aggregation: the coordinator gets the sum of what the sites contribute, and nothing about a single one."""

from tauon.federated.secagg.identity import Identity, PinnedKeys, fingerprint
from tauon.federated.secagg.joining import JoinedSites, join_sites
from tauon.federated.secagg.quantise import Contribution, Entry, Integers, Layout, Total, layout_of
from tauon.federated.secagg.server import SecureSettings, SecureSum, secure_sum
from tauon.federated.secagg.session import Refused, RoundFailed, SecureAggregationError, Session
from tauon.federated.secagg.site import IntegerNoise, SecureSite, SiteRules
from tauon.federated.secagg.summation import AgreedRange, SecureSummation, site_contribution

__all__ = [
    "AgreedRange",
    "Contribution",
    "Entry",
    "Identity",
    "IntegerNoise",
    "Integers",
    "JoinedSites",
    "Layout",
    "PinnedKeys",
    "Refused",
    "RoundFailed",
    "SecureAggregationError",
    "SecureSettings",
    "SecureSite",
    "SecureSum",
    "SecureSummation",
    "Session",
    "SiteRules",
    "Total",
    "fingerprint",
    "join_sites",
    "layout_of",
    "secure_sum",
    "site_contribution",
]
