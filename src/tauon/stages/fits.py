"""Checks that data, task and pretrained model fit together, before training."""

from __future__ import annotations

from tauon.data import DataConfig, DataSplits, FromModelConfig, TokenizerConfig, has_tokenizer, keys_of_kinds, tokenizer_of
from tauon.errors import Problem, RecipeError
from tauon.models import PretrainedModel
from tauon.recipe import Recipe
from tauon.tasks import Task

__all__ = ["refuse_another_task", "refuse_another_tokenizer", "targets_that_do_not_fit", "with_tokenizer_of"]


def targets_that_do_not_fit(task: Task, splits: DataSplits) -> list[Problem]:
    """Return a problem if the targets are numbers and the task needs classes, or the other way round."""
    targets = splits.preprocess.get("targets")
    if task.family == "multi-label":
        return _labels_that_do_not_fit(splits, targets)
    if task.family == "ordinal":
        if targets == "values":
            return [
                Problem(
                    "task", "ordinal needs ordered classes, but the targets are numbers. Use task=regression, or data.source.target=class."
                )
            ]
        if "label_order" not in splits.facts and any(not name.lstrip("-").isdigit() for name in splits.spec.labels):
            names = ", ".join(splits.spec.labels[:8])
            return [
                Problem(
                    "data.label_order",
                    f"is not set, and the order of these classes is not clear from their names: {names}. List them, lowest first.",
                )
            ]
    if task.family == "classification" and targets == "values":
        return [
            Problem("task", "classification needs classes, but the targets are numbers. Use task=regression, or data.source.target=class.")
        ]
    if task.family in ("regression", "quantile-regression") and targets == "classes":
        targets_are = f"the targets are {len(splits.spec.labels)} classes"
        message = f"{task.kind_} needs numbers, but {targets_are}. Use task=classification, or data.source.target=value."
        return [Problem("task", message)]
    return []


def with_tokenizer_of(start: PretrainedModel, recipe: Recipe) -> DataConfig:
    """Return the recipe's `data` with the tokenizer of the pretrained model if the recipe names none."""
    data = recipe.data
    tokenizer: TokenizerConfig = data.raw_value("tokenizer")
    if "tokenizer" not in keys_of_kinds(recipe.task.input_kind):
        return data
    if not isinstance(tokenizer, FromModelConfig):
        if "tokenizer" in data.model_fields_set or not has_tokenizer(start.path):
            return data
        tokenizer = FromModelConfig()
    if tokenizer.path is not None:
        return data
    return data.model_copy(update={"tokenizer": tokenizer.model_copy(update={"path": str(start.path)})})


def refuse_another_task(start: PretrainedModel | None, task: Task) -> None:
    """Raise `RecipeError` if the pretrained model cannot learn the task; called before data is read."""
    if start is None:
        return
    input_kind = start.config.input_kind
    if task.input_kind not in (input_kind if isinstance(input_kind, tuple) else (input_kind,)):
        message = f"{start.path} is a {start.config.kind_}, which cannot learn {task.kind_}. Use another task or checkpoint."
        raise RecipeError([Problem("model.from", message)])


def refuse_another_tokenizer(start: PretrainedModel | None, splits: DataSplits) -> None:
    """Raise `RecipeError` if the data was not tokenized with the pretrained model's tokenizer."""
    if start is None or splits.tokenizer is None:
        return
    original = tokenizer_of(start.path) if has_tokenizer(start.path) else None
    if original is not None and original.sha256 != splits.tokenizer.sha256:
        message = (
            f"is not the tokenizer of {start.path} ({splits.tokenizer.vocab_size:,} ids instead of {original.vocab_size:,}): "
            "the model would read the ids as other words. Leave data.tokenizer out, or set kind: from-model."
        )
        raise RecipeError([Problem("data.tokenizer", message)])


def _labels_that_do_not_fit(splits: DataSplits, targets: str | None) -> list[Problem]:
    """Return a problem if the target columns of a multi-label task are not values of 0 to 1."""
    if targets == "classes":
        message = "multi-label needs one column of 0 and 1 per label, but the targets are classes. Use classification, or target=value."
        return [Problem("task", message)]
    facts = splits.facts["parts"]["train"]["targets"]
    low, high = min(facts["min"]), max(facts["max"])
    if low < 0 or high > 1:
        return [Problem("task", f"multi-label needs targets of 0 and 1, but they range from {low:g} to {high:g}. Use task=regression.")]
    return []
