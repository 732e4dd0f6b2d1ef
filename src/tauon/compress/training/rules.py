"""Rules of a recipe: what does not work with `distil` and `qat`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.compress.training.soft import FAMILIES
from tauon.config import recipe_rule

__all__: list[str] = []

_NUMBERS = ("regression", "quantile-regression", "forecasting")


@recipe_rule
def distillation(recipe: Any) -> Iterator[tuple[str, str]]:
    """A teacher whose outputs cannot be used, or would undo what another section promises."""
    distil = recipe.raw_value("distil")
    if distil is None:
        return
    task, train, privacy = (recipe.raw_value(k) for k in ("task", "train", "privacy"))
    if privacy is not None and privacy.promises:
        yield (
            "distil",
            "does not work with privacy: the teacher may have seen the training examples without noise, and the student would learn them from it. "
            "Remove one of the two.",
        )
    if task.family not in FAMILIES:
        yield "distil", f"does not work with task {task.kind_}. It works with {', '.join(FAMILIES)}."
    if task.family in _NUMBERS and "temperature" in distil.model_fields_set:
        yield "distil.temperature", f"has no effect: {task.kind_} compares numbers by their squared difference. Remove it."
    if train.raw_value("time") is not None:
        yield "train.time", "is measured without the teacher. Set train.steps, epochs or tokens."
    if distil.raw_value("features") and train.raw_value("activation_checkpointing") is True:
        yield "distil.features", "are not kept with activation checkpointing. Remove one of the two."
    yield from _whole_layers(recipe, "distil")


@recipe_rule
def quantisation_aware_training(recipe: Any) -> Iterator[tuple[str, str]]:
    """Rounded weights where a weight itself must be read, or where the best checkpoint may be from before they were rounded."""
    qat = recipe.raw_value("qat")
    if qat is None:
        return
    privacy = recipe.raw_value("privacy")
    if privacy is not None and privacy.promises:
        yield "qat", "does not work with privacy: gradients of single examples are not known for rounded layers. Compress after training."
    if recipe.raw_value("adapt") is not None:
        yield "qat", "rounds the weights that train, but `adapt` freezes them. Remove one of the two."
    if recipe.raw_value("train").raw_value("early_stopping") is not None and qat.raw_value("start") > 0:
        yield (
            "qat.start",
            "above 0 does not work with train.early_stopping: the best checkpoint could be one from before rounding began. Set qat.start=0, or "
            "remove early_stopping.",
        )
    yield from _whole_layers(recipe, "qat")


def _whole_layers(recipe: Any, section: str) -> Iterator[tuple[str, str]]:
    parallel = recipe.raw_value("parallel")
    if parallel.kind_ == "parameter-server":
        yield section, "does not work with parallel: parameter-server. Use replicate, shard, local-sgd or diloco."
    fields = type(parallel).model_fields
    for name in ("tensor", "pipeline", "context"):
        if name in fields and parallel.raw_value(name) not in (1, "auto", None):
            yield section, f"needs whole layers and sequences in each process, without parallel.{name}. Use replicate or shard."
