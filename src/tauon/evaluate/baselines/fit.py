"""Which baselines a task has: the list that another family is added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tauon.evaluate.baselines.base import Baseline, Training
from tauon.evaluate.baselines.compressor import compressor
from tauon.evaluate.baselines.labels import label_shares, mean_and_median, prevalence, token_frequencies, training_quantiles
from tauon.evaluate.baselines.linear import logistic_regression, ridge_regression, tfidf_logistic_regression
from tauon.evaluate.baselines.pairs import equal_rewards, longer_answer
from tauon.evaluate.baselines.series import copies
from tauon.evaluate.baselines.sounds import mfcc_logistic_regression
from tauon.types import Dataset

__all__ = ["fit_baselines"]

Makes = Callable[[Any, Training, Dataset], Iterator[Baseline | None]]


def fit_baselines(task: Any, training: Training, dataset: Dataset) -> list[Baseline]:
    """Return the baselines of a task, the simplest first. A task without one has an empty list.

    Args:
        task: its `family` and `input_kind` say which.
        training: what they are fitted to. Where `fits` is false (private training: what is fitted to records without noise may not be published) shares and
            means are those of `dataset` itself, and no model is fitted.
        dataset: the examples to be scored.
    """
    makes = _FAMILIES.get(task.family)
    if makes is None:
        return []
    if not training.fits:
        training = replace(training, dataset=dataset)
    return [b for b in makes(task, training, dataset) if b is not None]


def _classes(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield prevalence(training)
    kind = getattr(task, "input_kind", "")
    if training.fits and kind == "arrays":
        yield logistic_regression(training)
    if training.fits and kind == "signals":
        yield mfcc_logistic_regression(training)
    if training.fits and kind == "labelled-text":
        yield tfidf_logistic_regression(training)


def _labels(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield label_shares(training)


def _ranks(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield replace(prevalence(training), name=training.named("the median class"))
    if training.fits:
        yield logistic_regression(training)


def _numbers(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield from mean_and_median(training)
    if training.fits:
        yield ridge_regression(training)


def _quantiles(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield training_quantiles(training, tuple(task.quantiles))


def _series(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    if hasattr(dataset, "earlier"):
        yield from copies(dataset, tuple(task.levels))


def _tokens(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield token_frequencies(training, getattr(dataset, "token_bytes", None))
    if training.tokenizer is not None:
        yield compressor(dataset, training.tokenizer)


def _hidden_tokens(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield token_frequencies(training)


def _pairs(task: Any, training: Training, dataset: Dataset) -> Iterator[Baseline | None]:
    yield equal_rewards()
    yield longer_answer()


_FAMILIES: dict[str, Makes] = {
    "classification": _classes, "multi-label": _labels, "ordinal": _ranks, "regression": _numbers, "quantile-regression": _quantiles,
    "forecasting": _series, "language-modelling": _tokens, "masked-language-modelling": _hidden_tokens,
    "preference": _pairs,
}  # fmt: skip
