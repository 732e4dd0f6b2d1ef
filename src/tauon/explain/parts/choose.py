"""Which held-out examples are explained one by one: those a person would ask about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tauon.explain.subject import Sample

__all__ = ["choose_examples"]


def choose_examples(sample: Sample, n: int, *, classes: bool, seed: int = 0) -> list[tuple[int, str]]:
    """Return (place in the sample, why it was chosen) of at most n examples.

    Of classes: in turn the most confident right answer of each class, the most confident wrong one, and the most uncertain one. Of values: the
    largest errors, the smallest one, and random ones.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    queues = _of_classes(sample) if classes else _of_values(sample)
    queues.append([(int(i), "drawn at random") for i in rng.permutation(len(sample))])
    chosen: dict[int, str] = {}
    while len(chosen) < min(n, len(sample)):
        for queue in queues:
            while queue and queue[0][0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < n:
                place, why = queue.pop(0)
                chosen[place] = why
    return list(chosen.items())


def _of_classes(sample: Sample) -> list[list[tuple[int, str]]]:
    answers, confidence = sample.answers, sample.outputs.max(1)
    right = answers == sample.targets
    best = np.argsort(-confidence, kind="stable")
    confident: list[tuple[int, str]] = []
    by_class = [[int(i) for i in best if right[i] and answers[i] == c] for c in np.unique(answers)]
    for rank in range(max((len(q) for q in by_class), default=0)):
        confident += [(q[rank], "a confident right answer") for q in by_class if rank < len(q)]
    wrong = [(int(i), "a confident wrong answer") for i in best if not right[i]]
    return [confident, wrong, [(int(i), "an uncertain answer") for i in _uncertain(sample.outputs)]]


def _uncertain(outputs: NDArray[np.float32]) -> NDArray[np.int64]:
    top = np.sort(outputs, 1)[:, -2:]
    return np.argsort(top[:, -1] - top[:, 0] if top.shape[1] > 1 else np.abs(top[:, -1] - 0.5), kind="stable")


def _of_values(sample: Sample) -> list[list[tuple[int, str]]]:
    order = np.argsort(-sample.losses, kind="stable")
    middle = order[np.argsort(np.abs(np.arange(len(order)) - len(order) // 2), kind="stable")]
    return [
        [(int(i), "a large error") for i in order],
        [(int(i), "a typical error") for i in middle],
        [(int(i), "a small error") for i in order[::-1]],
    ]
