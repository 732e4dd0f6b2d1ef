"""Federated training (`federate:`): which end of it this run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauon.artifacts import Checkpoint
from tauon.federated.config import FederateConfig
from tauon.federated.network import JoinAt, this_end
from tauon.stages.extensions.base import TrainExtension
from tauon.stages.extensions.federation import Federation
from tauon.stages.extensions.federation_site import SiteTraining

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["federated"]


def federated(ctx: Context, checkpoint: Checkpoint | None) -> TrainExtension | None:
    """Return the extension if the recipe has `federate`: that of a real site, or that of the coordinator of real or simulated sites."""
    if getattr(ctx.recipe, "federate", None) is None:
        return None
    config, end = ctx.section("federate", FederateConfig), this_end()
    return SiteTraining(ctx, config, end) if isinstance(end, JoinAt) else Federation(ctx, config, end)
