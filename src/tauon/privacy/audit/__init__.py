"""Privacy audits of a trained model: membership inference, one-run auditing, exposure of secrets."""

from tauon.privacy.audit.binomial import binomial_pmf, binomial_tail, clopper_pearson
from tauon.privacy.audit.canaries import (
    Canaries,
    CanaryConfig,
    CanaryExamples,
    GradientCanaries,
    WithCanaries,
    canary_dataset,
    canary_key,
    with_canaries,
)
from tauon.privacy.audit.config import AuditConfig
from tauon.privacy.audit.curve import (
    CurveAudit,
    TradeOff,
    audit_curve,
    curve_p_value,
    epsilon_delta_curve,
    gaussian_curve,
    gaussian_epsilon,
    points_curve,
)
from tauon.privacy.audit.extraction import SkewNormal, exposure, extract, fit_skew_normal, surprise
from tauon.privacy.audit.lira import LiraMode, difficulty_calibrated, lira
from tauon.privacy.audit.noise_level import NoiseLevel, noise_level
from tauon.privacy.audit.one_run import Guesses, OneRun, audit_scores, epsilon_lower_bound, group_delta, guess, p_value, pairs_as_coins
from tauon.privacy.audit.roc import Attack, Rate, epsilon_of_rates, roc_points, score_attack
from tauon.privacy.audit.secrets import Secret, SecretRows
from tauon.privacy.audit.signals import Signals, attack_scores, statistic
from tauon.privacy.audit.verdict import Verdict, judge

__all__ = [
    "Attack",
    "AuditConfig",
    "Canaries",
    "CanaryConfig",
    "CanaryExamples",
    "CurveAudit",
    "GradientCanaries",
    "Guesses",
    "LiraMode",
    "NoiseLevel",
    "OneRun",
    "Rate",
    "Secret",
    "SecretRows",
    "Signals",
    "SkewNormal",
    "TradeOff",
    "Verdict",
    "WithCanaries",
    "attack_scores",
    "audit_curve",
    "audit_scores",
    "binomial_pmf",
    "binomial_tail",
    "canary_dataset",
    "canary_key",
    "clopper_pearson",
    "curve_p_value",
    "difficulty_calibrated",
    "epsilon_delta_curve",
    "epsilon_lower_bound",
    "epsilon_of_rates",
    "exposure",
    "extract",
    "fit_skew_normal",
    "gaussian_curve",
    "gaussian_epsilon",
    "group_delta",
    "guess",
    "judge",
    "lira",
    "noise_level",
    "p_value",
    "pairs_as_coins",
    "points_curve",
    "roc_points",
    "score_attack",
    "statistic",
    "surprise",
    "with_canaries",
]
