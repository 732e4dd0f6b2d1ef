"""Canaries (`privacy.audit`): inserted examples with which an audit measures how much training reveals about one example."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tauon.artifacts import read_json, write_json
from tauon.data import DataSplits
from tauon.errors import RunError
from tauon.privacy.audit import Canaries, CanaryConfig, canary_key, with_canaries
from tauon.stages.extensions.base import SplitTransform

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["FOLDER", "CanaryTransform", "canaries", "plant", "planted"]

FOLDER, _CANARIES = "audit", "canaries.json"


def canaries(ctx: Context) -> CanaryTransform | None:
    """Return the transform if the recipe has `privacy.audit`."""
    config = None if ctx.recipe.privacy is None else ctx.recipe.privacy.audit
    return None if config is None or ctx.detached else CanaryTransform(config, ctx.run.folder)


class CanaryTransform(SplitTransform):
    """Adds canaries to the training part."""

    def __init__(self, config: CanaryConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    def after(self, splits: DataSplits) -> DataSplits:
        return plant(splits, self.config, self.folder)


def plant(splits: DataSplits, config: CanaryConfig, folder: Path) -> DataSplits:
    """Return the splits with canaries in the training part.

    The draws are stored in the run's folder, readable only by its owner, so that a resume uses the same; they are in no checkpoint.
    """
    path = folder / FOLDER / _CANARIES
    before = planted(folder)
    key, absent = (canary_key(config), "zeroed") if before is None else (before.key, before.absent)
    train, drawn = with_canaries(splits.train, config, key=key, absent=absent)  # type: ignore[arg-type]
    if before is not None and before.to_json() != drawn.to_json():
        raise RunError(
            f"{path}: the canaries differ from those of the recipe. Start over with --fresh, or give the run another name (name=...)."
        )
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, drawn.to_json())
        os.chmod(path, 0o600)
    facts = {"kind": config.kind, "coins": len(drawn)}
    fingerprint = hashlib.sha256(f"{splits.fingerprint}/canaries/{hashlib.sha256(drawn.key).hexdigest()}".encode()).hexdigest()
    return replace(splits, train=train, facts=splits.facts | {"canaries": facts}, fingerprint=fingerprint)


def planted(folder: Path) -> Canaries | None:
    """Return the canaries of a run; None if it has none."""
    path = folder / FOLDER / _CANARIES
    return Canaries.from_json(read_json(path)) if path.exists() else None
