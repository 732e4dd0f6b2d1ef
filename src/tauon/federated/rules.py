"""Rules of a recipe: what does not work with `federate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule

__all__: list[str] = []

_ONE_PROCESS = ("auto",)


@recipe_rule
def federated_training(recipe: Any) -> Iterator[tuple[str, str]]:
    """Settings that mean nothing where sites train in rounds."""
    federate = recipe.__dict__.get("federate")
    if federate is None:
        return
    train, privacy, parallel = (recipe.raw_value(k) for k in ("train", "privacy", "parallel"))
    for name in ("time", "tokens", "batch_warmup", "seq_len_warmup"):
        if train.raw_value(name) is not None:
            yield (
                f"train.{name}",
                "does not work with federate: a round has the same local work everywhere. Set train.epochs or train.steps.",
            )
    if train.raw_value("keep_early"):
        yield "train.keep_early", "counts steps, but a federated run saves rounds. Remove it."
    for name in ("distil", "qat"):
        if recipe.raw_value(name) is not None:
            yield name, "does not work with federate yet. Train first, then continue from the run (model.from)."
    if parallel.kind_ not in _ONE_PROCESS:
        yield "parallel", f"{parallel.kind_} does not work with federate: the coordinator is one process. Remove it."
    if privacy is not None and privacy.promises and federate.raw_value("simulate") is not None:
        yield (
            "privacy",
            "protects single examples at each real site, and is not simulated. Remove federate.simulate, or privacy.",
        )


@recipe_rule
def rows_to_train_on(recipe: Any) -> Iterator[tuple[str, str]]:
    """`data.rows: false` is for the coordinator of real sites only."""
    federate, data = recipe.__dict__.get("federate"), recipe.raw_value("data")
    if not data.raw_value("rows") and (federate is None or federate.raw_value("simulate") is not None):
        yield (
            "data.rows",
            "is false, so that there is nothing to train on: it is for the coordinator of real sites (tauon federate serve --spec).",
        )
    if not data.raw_value("rows") and recipe.raw_value("train").raw_value("early_stopping") is not None:
        yield "train.early_stopping", "needs validation examples, and data.rows is false. Remove it."
