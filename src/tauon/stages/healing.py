"""Healing inside the compress stage (`compress: {heal: {steps: 200}}`): trains on the run's own training data, with the uncompressed model as teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from tauon.compress import Heal
from tauon.compress.training import HealConfig, healer
from tauon.data import Loader
from tauon.errors import Problem, RecipeError

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["stage_healer"]


def stage_healer(ctx: Context, config: HealConfig | None, model: nn.Module) -> Heal | None:
    """Return what `compress_model` calls after each step but quantisation; None without `heal`.

    Args:
        ctx: of the run.
        config: the section `compress.heal`.
        model: the model before compression, in float32; it stays as it is.

    Raises:
        RecipeError: the run is private: healing would train on its examples without noise.
    """
    if config is None:
        return None
    privacy = ctx.recipe.privacy
    if privacy is not None and privacy.promises:
        message = (
            "does not work with privacy: it would train on the protected examples without noise, and their budget is spent. Remove it, or start a "
            "private run from the compressed model (model.from)."
        )
        raise RecipeError([Problem("compress.heal", message)])
    batch = config.batch or ctx.train.batch
    return healer(
        Loader(ctx.splits.train, batch=batch, seed=ctx.recipe.seed), config, teacher=model, microbatch=ctx.recipe.train.microbatch
    )
