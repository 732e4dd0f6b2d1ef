"""Training under differential privacy: per-example clipping, noise, accounting, the ledger of each data set, audits."""

from tauon.privacy.config import PrivacyConfig
from tauon.privacy.keys import discard_key, run_key, seeded_key
from tauon.privacy.private import PrivateGradients, make_private
from tauon.privacy.run import PrivateRun, refuse_combinations
from tauon.privacy.sampling import PrivateLoader

__all__ = [
    "PrivacyConfig",
    "PrivateGradients",
    "PrivateLoader",
    "PrivateRun",
    "discard_key",
    "make_private",
    "refuse_combinations",
    "run_key",
    "seeded_key",
]
