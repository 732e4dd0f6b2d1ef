"""Examples as rows of readable features, whatever the kind of data: columns of a table, cells of a grid, words, statistics of a window.

Trees, slices and importance work on these rows. Only for tables can the model be asked about a new row; for other data it has answered the
examples themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data import Normalizer
from tauon.explain.base import Work
from tauon.explain.features.columns import Feature, Matrix
from tauon.explain.parts.shown import values_in_units
from tauon.explain.subject import Sample, Subject
from tauon.explain.trees import band_time_means, choose_ngrams, grid_cells, ngram_presence, window_statistics
from tauon.types import Dataset

__all__ = ["ReadableRows", "readable_rows"]

_TRAIN = 2_000
"""Training examples, where the model must answer each."""


@dataclass
class ReadableRows:
    """Training and held-out examples as readable rows, with the model's answers."""

    features: tuple[Feature, ...]
    train: Matrix
    train_answers: Matrix
    heldout: Matrix
    """Rows of the sample."""
    predict: Callable[[Matrix], Matrix] | None
    """The model as a function of readable rows; None: it cannot be asked about a new row."""
    note: str = ""
    """What the features are."""


def readable_rows(subject: Subject, kind: str, sample: Sample, features: tuple[Feature, ...], work: Work) -> ReadableRows | None:
    """Return readable rows of the training data and of the held-out sample; None where this kind of data has none.

    Args:
        subject: the model and its data.
        kind: `Cases.kind`.
        sample: held-out examples with the model's answers.
        features: of a table.
        work: how to compute.
    """
    rows = subject.draw(subject.train, _TRAIN)
    if kind == "table" and subject.table is not None:
        table = subject.table
        train = table.read(subject.train.batch(rows).inputs.numpy())
        held = table.read(subject.heldout.batch(sample.rows).inputs.numpy())

        def predict(readable: Matrix) -> Matrix:
            return subject.predict(table.inputs(readable))

        return ReadableRows(features, train, predict(train), held, predict)
    makers: dict[str, Callable[..., tuple[Matrix, Matrix, tuple[Feature, ...], str]]] = {
        "image": _images, "text": _texts, "audio": _sounds, "series": _windows,
    }  # fmt: skip
    if kind not in makers or subject.input_kind == "tokens":
        return None
    answers = subject.answers_to(rows, work=work, what="answers to training examples", dataset=subject.train).outputs
    train, held, made, note = makers[kind](subject, rows, sample, answers)
    return ReadableRows(made, train, answers.astype(np.float64), held, None, note)


def _both(subject: Subject, rows: NDArray[np.int64], sample: Sample) -> list[NDArray[Any]]:
    return [d.batch(r).inputs.numpy() for d, r in ((subject.train, rows), (subject.heldout, sample.rows))]


def _images(subject: Subject, rows: NDArray[np.int64], sample: Sample, _: Any) -> tuple[Matrix, Matrix, tuple[Feature, ...], str]:
    kept = subject.preprocess.get("normalize")
    found = []
    for inputs in _both(subject, rows, sample):
        values = inputs.astype(np.float64)
        if kept is not None and kept["kind"] != "none":
            normalizer = Normalizer.from_json(dict(kept))
            values = values * normalizer.scale + normalizer.center
        found.append(grid_cells(np.round(values, 3)))
    return found[0][0], found[1][0], found[0][1], "mean brightness of the cells of a 4 x 4 grid"


def _texts(
    subject: Subject, rows: NDArray[np.int64], sample: Sample, answers: NDArray[Any]
) -> tuple[Matrix, Matrix, tuple[Feature, ...], str]:
    train, held = texts_of(subject, subject.train, rows), texts_of(subject, subject.heldout, sample.rows)
    ngrams = choose_ngrams(train, answers.argmax(1), most=150)
    x, features = ngram_presence(train, ngrams)
    return (
        x,
        ngram_presence(held, ngrams)[0],
        features,
        "presence of the 150 words and pairs of words that go most with the model's answers",
    )


def texts_of(subject: Subject, dataset: Dataset, rows: NDArray[np.int64]) -> list[str]:
    """Return the texts of some examples, as they were given or decoded from their tokens."""
    given: Any = getattr(dataset, "texts", ())
    if len(given) == len(dataset):
        return [str(given[i]) for i in rows]
    batch = dataset.batch(rows)
    there = np.ones(batch.inputs.shape, bool) if batch.segments is None else batch.segments.numpy() >= 0
    ids = [row[kept] for row, kept in zip(batch.inputs.numpy(), there, strict=True)]
    return [" ".join(map(str, i.tolist())) if subject.tokenizer is None else subject.tokenizer.decode(i) for i in ids]


def _sounds(subject: Subject, rows: NDArray[np.int64], sample: Sample, _: Any) -> tuple[Matrix, Matrix, tuple[Feature, ...], str]:
    found = []
    seconds = (subject.spec.input_shape or (1,))[0] / (subject.spec.sample_rate or 1)
    for dataset, chosen in ((subject.train, rows), (subject.heldout, sample.rows)):
        parts = [subject.cases(batch).inputs.cpu().numpy() for _, batch in subject.batches(dataset, chosen, 64)]
        found.append(band_time_means(np.concatenate(parts).transpose(0, 2, 1).astype(np.float64), seconds=seconds))
    return found[0][0], found[1][0], found[0][1], "mean level of 4 bands in 4 parts of the time, against the recording's own mean"


def _windows(subject: Subject, rows: NDArray[np.int64], sample: Sample, _: Any) -> tuple[Matrix, Matrix, tuple[Feature, ...], str]:
    train, held = (values_in_units(subject, x.astype(np.float64)) for x in _both(subject, rows, sample))
    names = [str(n) for n in subject.preprocess.get("columns") or ()]
    names = names if len(names) == train.shape[2] else [f"column {k}" for k in range(train.shape[2])]
    x, features = window_statistics(train, names)
    return x, window_statistics(held, names)[0], features, "last value, mean, trend and range of each column in the window"
