"""Privacy accounting: epsilon and delta of a list of releases, and the noise that a target needs."""

from tauon.privacy.accounting.calibrate import calibrate
from tauon.privacy.accounting.guarantee import NOT_COVERED, Guarantee, Scaling, charge_search, compose_basic, guarantee, uncovered
from tauon.privacy.accounting.loss import Accountant, composed_loss, delta_at, epsilon, epsilons, trade_off
from tauon.privacy.accounting.release import ZERO_OUT, Release, Sampling, refuse_delta, refuse_epsilon, relation_of

__all__ = [
    "NOT_COVERED",
    "ZERO_OUT",
    "Accountant",
    "Guarantee",
    "Release",
    "Sampling",
    "Scaling",
    "calibrate",
    "charge_search",
    "compose_basic",
    "composed_loss",
    "delta_at",
    "epsilon",
    "epsilons",
    "guarantee",
    "refuse_delta",
    "refuse_epsilon",
    "relation_of",
    "trade_off",
    "uncovered",
]
