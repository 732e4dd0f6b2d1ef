"""Training under differential privacy: per-example clipping, noise, accounting, the ledger of each data set, audits."""

from tauon.privacy.charge import reserve, settle, steps_done
from tauon.privacy.clipped import ClippedSum, ClippingConfig, check_independent, register_rule
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.keys import discard_key, run_key, seeded_key
from tauon.privacy.private import PrivateGradients, make_private
from tauon.privacy.published import read_internal, split, write_internal
from tauon.privacy.run import PrivateRun, refuse_combinations
from tauon.privacy.sampling import PrivateLoader
from tauon.privacy.statistics import (
    StatisticsConfig,
    announced,
    apply_statistics,
    copy_statistics,
    discard_statistics,
    fits_nothing,
    read_statistics,
    refuse_statistics,
)

__all__ = [
    "ClippedSum",
    "ClippingConfig",
    "PrivacyConfig",
    "PrivateGradients",
    "PrivateLoader",
    "PrivateRun",
    "StatisticsConfig",
    "announced",
    "apply_statistics",
    "check_independent",
    "copy_statistics",
    "discard_key",
    "discard_statistics",
    "fits_nothing",
    "make_private",
    "read_internal",
    "read_statistics",
    "refuse_combinations",
    "refuse_statistics",
    "register_rule",
    "reserve",
    "run_key",
    "seeded_key",
    "settle",
    "split",
    "steps_done",
    "write_internal",
]
