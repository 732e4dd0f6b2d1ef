"""Where a model of two classes changes its mind, along the line between the mean examples of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from tauon.artifacts import write_json
from tauon.config import Config, Count
from tauon.report import Records, Section
from tauon.stages.context import Context
from tauon.stages.load import load_model

__all__ = ["BoundaryConfig", "boundary_stage", "section"]


class BoundaryConfig(Config):
    """How closely to look."""

    points: Count = Field(101, ge=2)
    """Points on the line."""


def boundary_stage(ctx: Context) -> dict[str, Any]:
    """Checkpoint -> `boundary.json`."""
    config = ctx.section("boundary", BoundaryConfig)
    checkpoint, train = ctx.final_checkpoint, ctx.splits.train
    batch = train.batch(np.arange(len(train)))
    first, second = (batch.inputs[batch.targets == c].mean(0) for c in (0, 1))
    share = torch.linspace(0, 1, config.points)[:, None]
    model, precision = load_model(checkpoint, ctx.recipe)
    with torch.no_grad(), precision.context():
        chosen = model((first + share * (second - first)).to(precision.device)).argmax(1).cpu()
    changes = torch.nonzero(chosen[1:] != chosen[:-1]).flatten()
    record = {"points": config.points, "changes": [float(share[i + 1, 0]) for i in changes.tolist()]}
    write_json(ctx.run.folder / "boundary.json", record)
    return {"checkpoint": checkpoint.hash, "changes": len(changes)}


def section(records: Records) -> Section | None:
    """Its part of the report; None before it was done."""
    found = records.json("boundary.json")
    if not isinstance(found, dict):
        return None
    places = ", ".join(f"{x:.2f}" for x in found["changes"]) or "nowhere"
    return Section("boundary", "Boundary", f"<p>On the way from class 0 to class 1, the model changes its mind at {places}.</p>")
