"""What an attacker really learns from a trained model: membership inference, one-run auditing, exposure of secrets."""

from tauon.privacy.audit.binomial import binomial_pmf, binomial_tail, clopper_pearson
from tauon.privacy.audit.one_run import Guesses, OneRun, audit_scores, epsilon_lower_bound, guess, p_value, pairs_as_coins

__all__ = [
    "Guesses",
    "OneRun",
    "audit_scores",
    "binomial_pmf",
    "binomial_tail",
    "clopper_pearson",
    "epsilon_lower_bound",
    "guess",
    "p_value",
    "pairs_as_coins",
]
