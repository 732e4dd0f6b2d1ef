"""Whether data, task and the model that training starts from belong together: refused before anything is trained."""

from __future__ import annotations

from tauon.data import DataConfig, DataSplits, FromModelConfig, TokenizerConfig, has_tokenizer, keys_of_kinds, tokenizer_of
from tauon.errors import Problem, RecipeError
from tauon.models import PretrainedModel
from tauon.recipe import Recipe
from tauon.tasks import Task

__all__ = ["refuse_another_task", "refuse_another_tokenizer", "targets_that_do_not_fit", "with_tokenizer_of"]


def targets_that_do_not_fit(task: Task, splits: DataSplits) -> list[Problem]:
    """Numbers where the task needs classes, or the other way round."""
    targets = splits.preprocess.get("targets")
    if task.family == "multi-label":
        return _labels_that_do_not_fit(splits, targets)
    if task.family == "ordinal":
        if targets == "values":
            return [Problem("task", "ordinal needs classes in an order, and the targets are numbers. Take regression, or target=class.")]
        if "label_order" not in splits.facts and any(not name.lstrip("-").isdigit() for name in splits.spec.labels):
            names = ", ".join(splits.spec.labels[:8])
            return [
                Problem("data.label_order", f"is not set, and names do not say which class is lowest: {names}. List them, lowest first.")
            ]
    if task.family == "classification" and targets == "values":
        return [Problem("task", "classification needs classes, and the targets are numbers. Take regression, or data.source.target=class.")]
    if task.family in ("regression", "quantile-regression") and targets == "classes":
        what = f"the targets are {len(splits.spec.labels)} classes"
        return [Problem("task", f"{task.kind_} needs numbers, and {what}. Take classification, or data.source.target=value.")]
    return []


def with_tokenizer_of(start: PretrainedModel, recipe: Recipe) -> DataConfig:
    """The recipe's `data` with the tokenizer of the trained model, where the recipe names none."""
    data = recipe.data
    asked: TokenizerConfig = data.raw_value("tokenizer")
    if "tokenizer" not in keys_of_kinds(recipe.task.input_kind):
        return data
    if not isinstance(asked, FromModelConfig):
        if "tokenizer" in data.model_fields_set or not has_tokenizer(start.path):
            return data
        asked = FromModelConfig()
    if asked.path is not None:
        return data
    return data.model_copy(update={"tokenizer": asked.model_copy(update={"path": str(start.path)})})


def refuse_another_task(start: PretrainedModel | None, task: Task) -> None:
    """A model that cannot learn what the recipe asks for is a `RecipeError`, before any data is read."""
    if start is None:
        return
    input_kind = start.config.input_kind
    if task.input_kind not in (input_kind if isinstance(input_kind, tuple) else (input_kind,)):
        message = f"{start.path} holds a {start.config.kind_}, which does not learn {task.kind_}. Take another task or checkpoint."
        raise RecipeError([Problem("model.from", message)])


def refuse_another_tokenizer(start: PretrainedModel | None, splits: DataSplits) -> None:
    """A model reads the ids of the tokenizer that it was trained with: `RecipeError` where the data has other ones."""
    if start is None or splits.tokenizer is None:
        return
    theirs = tokenizer_of(start.path) if has_tokenizer(start.path) else None
    if theirs is not None and theirs.sha256 != splits.tokenizer.sha256:
        message = (
            f"is not that of {start.path} ({splits.tokenizer.vocab_size:,} ids, there {theirs.vocab_size:,}), and its ids mean other words."
        )
        raise RecipeError([Problem("data.tokenizer", f"{message} Leave it out, or set kind: from-model.")])


def _labels_that_do_not_fit(splits: DataSplits, targets: str | None) -> list[Problem]:
    """Columns of a multi-label task: values, each 0 or 1 (or a share between)."""
    if targets == "classes":
        said = "multi-label needs one column of 0 and 1 a label, and the targets are classes. Take classification, or target=value."
        return [Problem("task", said)]
    facts = splits.facts["parts"]["train"]["targets"]
    low, high = min(facts["min"]), max(facts["max"])
    if low < 0 or high > 1:
        return [Problem("task", f"multi-label needs targets of 0 and 1, and they run from {low:g} to {high:g}. Take regression.")]
    return []
