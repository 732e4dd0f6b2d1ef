"""Recipe rules of models: which model fits which task, and where adapters may be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule, registered

__all__: list[str] = []


@recipe_rule
def model_reads_what_the_task_gives(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield a problem if the model does not read the kind of input that the task gives."""
    task, model = recipe.raw_value("task"), recipe.raw_value("model")
    if model.kind_ == "checkpoint" or task.input_kind in (model.input_kind if isinstance(model.input_kind, tuple) else (model.input_kind,)):
        return  # what a checkpoint reads is known when it is opened
    readers = {k: getattr(m, "input_kind", ()) for k, m in registered("model").items()}
    fit = ", ".join(k for k, n in readers.items() if task.input_kind in ((n,) if isinstance(n, str) else n))
    reads = model.input_kind if isinstance(model.input_kind, str) else " or ".join(model.input_kind)
    yield (
        "model.kind",
        f"{model.kind_} reads {reads}, but task {task.kind_} gives {task.input_kind}. Use one of {fit}, or another task.",
    )


@recipe_rule
def adapters_have_a_base(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield a problem if adapters are in the wrong section, or have no base model."""
    model = recipe.raw_value("model")
    if model.raw_value("adapt") is not None:
        yield "model.adapt", "must be a separate section. Write adapt: next to model:, not inside it."
    if recipe.raw_value("adapt") is not None and model.raw_value("from_") is None:
        yield "adapt", "needs model.from, the pretrained model that it adapts. Set model.from, or remove this section."


@recipe_rule
def whole_fits_take_no_steps(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield a problem for each setting that needs gradient steps, if the model is fitted as a whole."""
    model = recipe.raw_value("model")
    if not model.fits_whole:
        return
    kind, train, privacy = model.kind_, recipe.raw_value("train"), recipe.raw_value("privacy")
    if privacy is not None and privacy.promises:
        yield (
            "privacy",
            f"clips the gradient of each example, but {kind} has no gradient steps. Take tabm, mlp or text-bag, or remove privacy.",
        )
    for section in ("adapt", "distil", "qat", "federate"):
        if recipe.__dict__.get(section) is not None:
            yield section, f"needs gradient steps, but {kind} is fitted as a whole. Remove this section, or take another model."
    if recipe.raw_value("parallel").kind_ != "auto":
        yield "parallel", f"{kind} is fitted by one process. Remove this section."
    if model.raw_value("from_") is not None:
        yield "model.from", f"{kind} cannot continue from other weights: it is fitted as a whole. Remove it."
    for name in ("ema", "freeze", "keep_early"):
        if train.raw_value(name):
            yield f"train.{name}", f"needs gradient steps, but {kind} is fitted as a whole. Remove it."
