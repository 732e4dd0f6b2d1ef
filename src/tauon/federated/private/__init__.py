"""Differential privacy of updates: the unit is a site; the noise is central, local, or distributed over the sites."""

from tauon.federated.private.account import (
    calibrate_noise,
    explain_privacy,
    explain_records,
    federation_identity,
    reserve_rounds,
    settle_rounds,
    site_guarantee,
    site_releases,
)
from tauon.federated.private.clipping import (
    WITHIN,
    AdaptiveClip,
    add_central_noise,
    add_local_noise,
    clip_contribution,
    clip_update,
    private_mean,
)
from tauon.federated.private.discrete import discrete_gaussian
from tauon.federated.private.distributed import DistributedNoise
from tauon.federated.private.sampling import choose_sites
from tauon.federated.private.settings import UpdatePrivacy, private_layout
from tauon.federated.private.summation import PrivateContribution, PrivateSecureSummation, PrivateSite, PrivateSummation

__all__ = [
    "WITHIN",
    "AdaptiveClip",
    "DistributedNoise",
    "PrivateContribution",
    "PrivateSecureSummation",
    "PrivateSite",
    "PrivateSummation",
    "UpdatePrivacy",
    "add_central_noise",
    "add_local_noise",
    "calibrate_noise",
    "choose_sites",
    "clip_contribution",
    "clip_update",
    "discrete_gaussian",
    "explain_privacy",
    "explain_records",
    "federation_identity",
    "private_layout",
    "private_mean",
    "reserve_rounds",
    "settle_rounds",
    "site_guarantee",
    "site_releases",
]
