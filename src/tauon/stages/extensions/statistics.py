"""Noisy means and standard deviations of columns (`privacy.statistics`), drawn by training: data preparation fits nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tauon.data import DataConfig, DataSplits
from tauon.privacy import announced, apply_statistics, fits_nothing, read_statistics
from tauon.privacy.statistics import StatisticsConfig
from tauon.stages.extensions.base import SplitTransform

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["NoisyStatistics", "noisy_statistics"]


def noisy_statistics(ctx: Context) -> NoisyStatistics | None:
    """Return the transform if the recipe has `privacy.statistics`."""
    config = None if ctx.recipe.privacy is None else ctx.recipe.privacy.statistics
    return None if config is None else NoisyStatistics(config, ctx)


class NoisyStatistics(SplitTransform):
    """Scales the data by noisy statistics once training has drawn them."""

    def __init__(self, config: StatisticsConfig, ctx: Context) -> None:
        self.config, self.ctx = config, ctx

    def before(self, config: DataConfig) -> DataConfig:
        return fits_nothing(config)

    def after(self, splits: DataSplits) -> DataSplits:
        splits.facts = announced(splits.facts)
        return splits

    def agreed(self, splits: DataSplits) -> DataSplits:
        if self.ctx.detached:
            return splits

        def drawn() -> dict[str, Any] | None:
            run = self.ctx.run
            return read_statistics(run.folder, splits, self.config, needed=run.manifest().get("training") is not None)

        record = self.ctx.world.rank0_broadcast(drawn)
        return splits if record is None else apply_statistics(splits, record)
