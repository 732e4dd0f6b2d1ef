"""Training under differential privacy: per-example clipping, noise, accounting, the ledger of each data set, audits."""

from tauon.privacy.charge import reserve, settle, steps_done
from tauon.privacy.clipped import ClippedSum, ClippingConfig, check_independent, register_rule
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.keys import discard_key, run_key, seeded_key
from tauon.privacy.private import PrivateGradients, make_private
from tauon.privacy.run import PrivateRun, refuse_combinations
from tauon.privacy.sampling import PrivateLoader

__all__ = [
    "ClippedSum",
    "ClippingConfig",
    "PrivacyConfig",
    "PrivateGradients",
    "PrivateLoader",
    "PrivateRun",
    "check_independent",
    "discard_key",
    "make_private",
    "refuse_combinations",
    "register_rule",
    "reserve",
    "run_key",
    "seeded_key",
    "settle",
    "steps_done",
]
