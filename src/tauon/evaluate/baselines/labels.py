"""Baselines that read no input: shares of classes, means and medians, frequencies of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.evaluate.baselines.base import Baseline, Training
from tauon.types import Batch

__all__ = ["label_shares", "mean_and_median", "prevalence", "token_frequencies", "training_quantiles"]

_MOST_TOKENS = 4_000_000


def prevalence(training: Training) -> Baseline:
    """The classes' shares of the training part, for every example alike: always the most frequent class, and no ranking."""
    counts = torch.from_numpy(training.class_counts())
    classes = len(counts)
    share = ((counts + 1) / (counts.sum() + classes)).float()  # a class that the sample lacks is not impossible
    name = training.spec.labels[int(share.argmax())] if len(training.spec.labels) == classes else str(int(share.argmax()))

    def predict(batch: Batch) -> dict[str, Tensor]:
        return {"scores": share.expand(len(batch), -1), "targets": batch.targets}

    about = f"Every example gets the classes' shares of {training.part}; the most frequent, {name}, has {float(share.max()):.1%}."
    return Baseline(training.named("the most frequent class"), about, predict)


def label_shares(training: Training) -> Baseline:
    """Each label's share of the training part, for every example alike."""
    batch = training.batch()
    targets = batch.targets.float().reshape(len(batch), -1)
    share = (targets.sum(0) + 0.5) / (len(targets) + 1)

    def predict(batch: Batch) -> dict[str, Tensor]:
        return {"scores": share.expand(len(batch), -1), "targets": batch.targets.float().view(len(batch), -1)}

    return Baseline(training.named("each label's share"), f"Every example gets each label's share of {training.part}.", predict)


def mean_and_median(training: Training) -> list[Baseline]:
    """The mean of the training targets, and their median, for every example alike."""
    targets = training.batch().targets.float().reshape(-1, training.spec.outputs or 1)
    found = []
    for name, value in (("the mean", targets.mean(0)), ("the median", targets.median(0).values)):

        def predict(batch: Batch, value: Tensor = value) -> dict[str, Tensor]:
            true = batch.targets.float().reshape(len(batch), -1)
            return {"predictions": value.expand(len(batch), -1), "targets": true}

        found.append(Baseline(training.named(name), f"Every example gets {name} of the targets of {training.part}.", predict))
    return found


def training_quantiles(training: Training, levels: tuple[float, ...]) -> Baseline:
    """The quantiles of the training targets, for every example alike."""
    batch = training.batch()
    targets = batch.targets.float().reshape(len(batch), -1)
    wanted = torch.tensor(levels)
    value_KQ = torch.quantile(targets, wanted, dim=0).t().contiguous()

    def predict(batch: Batch) -> dict[str, Tensor]:
        n = len(batch)
        found = {"quantiles": value_KQ.expand(n, -1, -1), "crossed": torch.zeros(n), "levels": wanted.expand(n, -1)}
        return found | {"targets": batch.targets.float().reshape(n, -1)}

    name = "the training quantiles" if training.fits else "the quantiles of the evaluated part"
    return Baseline(name, f"Every example gets the quantiles of the targets of {training.part}.", predict)


def token_frequencies(training: Training, token_bytes: Any = None) -> Baseline:
    """A unigram model: each token as often as in the training part, whatever stands before it.

    Args:
        training: of tokens.
        token_bytes: UTF-8 bytes of each token id, for bits per byte; None: bytes are not counted (masked tokens).
    """
    vocab = training.spec.vocab or 1
    counts, seen, dataset = np.zeros(vocab), 0, training.dataset
    order = np.random.default_rng(training.seed).permutation(len(dataset))
    for start in range(0, len(order), 64):
        batch = dataset.batch(np.sort(order[start : start + 64]).astype(np.int64))
        kept = batch.targets[batch.weights > 0].numpy()
        counts += np.bincount(kept, minlength=vocab)
        seen += len(kept)
        if seen >= _MOST_TOKENS:
            break
    nats_V = torch.from_numpy(-np.log((counts + 1) / (counts.sum() + vocab)))
    likeliest = int(nats_V.argmin())
    bytes_V = None if token_bytes is None else torch.as_tensor(token_bytes)

    def predict(batch: Batch) -> dict[str, Tensor]:
        there = batch.weights > 0
        found = {"nll": (nats_V[batch.targets] * batch.weights).sum(1), "tokens": there.sum(1)}
        if bytes_V is None:
            return found | {"correct": ((batch.targets == likeliest) & there).sum(1)}
        return found | {"bytes": (bytes_V[batch.targets] * there).sum(1)}

    about = f"A unigram model: each token as often as among {seen:,} of {training.part}."
    return Baseline(training.named("token frequencies"), about, predict)
