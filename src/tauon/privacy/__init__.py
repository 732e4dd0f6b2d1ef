"""Training under differential privacy: per-example clipping, noise, accounting, the ledger of each data set, audits."""

from tauon.privacy.charge import give_up, original_of, reserve, settle, steps_done
from tauon.privacy.clipped import ClippedSum, ClippingConfig, check_independent, register_rule
from tauon.privacy.config import PrivacyConfig
from tauon.privacy.keys import Key, bind_key, discard_key, read_key, run_key, seeded_key
from tauon.privacy.ledger import SEEDED, Owner
from tauon.privacy.private import PrivateGradients, make_private
from tauon.privacy.published import read_internal, split, write_internal
from tauon.privacy.run import PrivateRun, refuse_combinations
from tauon.privacy.sampling import PrivateLoader, SamplingScheme
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
    "SEEDED",
    "ClippedSum",
    "ClippingConfig",
    "Key",
    "Owner",
    "PrivacyConfig",
    "PrivateGradients",
    "PrivateLoader",
    "PrivateRun",
    "SamplingScheme",
    "StatisticsConfig",
    "announced",
    "apply_statistics",
    "bind_key",
    "check_independent",
    "copy_statistics",
    "discard_key",
    "discard_statistics",
    "fits_nothing",
    "give_up",
    "make_private",
    "original_of",
    "read_internal",
    "read_key",
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
