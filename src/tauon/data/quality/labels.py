"""Labels that are probably wrong, by a cheap model's opinion of each record when it was fitted without it.

The model learns from records that are neither outliers nor blank (`odd`, `blank`), and of a table not from columns that give the label away. Which of
the labels that it contradicts are named is decided in `wrong_labels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.clean.signals import level_of
from tauon.data.quality.base import DataView, Finding, QualityCheck, Severity, examples_of, show
from tauon.data.quality.columns import far_outside, given_away, number_columns, word_columns
from tauon.data.quality.image_gradients import gradients
from tauon.data.quality.image_outliers import blank_rows, odd_images
from tauon.data.quality.label_errors import find_label_errors
from tauon.data.quality.leave_one_out import BLOCK, leave_one_out
from tauon.data.quality.near import fingerprint
from tauon.data.quality.out_of_fold import out_of_fold
from tauon.data.quality.signal_faults import SILENT
from tauon.data.quality.text_outliers import odd_texts
from tauon.errors import MissingExtra

__all__ = ["WrongLabels", "wrong_labels"]

SURE, SURE_OF_ROWS, SURER = 0.4, 0.2, 0.7
"""Margin from which a label is named, as a share of the usual lead of a label: where few labels are contradicted, and where many are. `SURE_OF_ROWS`:
in the first of two rounds on a table, whose model learns from the labels corrected in the first."""
FEW, MANY = 0.06, 0.08
"""Shares of contradicted labels between which the one becomes the other."""
HOPELESS = 0.2
"""Share of contradicted labels from which on the model has nothing to say."""
WORTH = 0.015
"""Share of wrong labels from which on it is a warning."""
FOLDS = 5
MOST = 12_000
"""Records that are looked at; of more, a sample."""
_WORDS = 30
"""Most frequent words of a column that become features."""


@register("label-errors")
class WrongLabels(QualityCheck):
    """Labels that a model which has not seen the record finds implausible (confident learning, Northcutt et al. 2021)."""

    kinds = ("texts", "table", "images", "recordings")
    title = "Label errors"
    needs_classes = True
    extra = "sklearn"

    def find(self, view: DataView) -> Iterator[Finding]:
        if view.labels_N is None:
            return
        rows = _usable(view)
        total = len(rows)
        if total > MOST:
            rows = rows[np.linspace(0, total - 1, MOST).astype(np.int64)]
        names, labels = np.unique(view.labels_N[rows], return_inverse=True)
        rare = np.bincount(labels) < 2 * FOLDS
        kept = ~rare[labels]  # a model without a record must still know its class
        rows, (names, labels) = rows[kept], (names[~rare], np.unique(labels[kept], return_inverse=True)[1])
        if len(names) < 2:
            return
        scores = _scores(view, rows, labels)
        if np.isnan(scores).any():  # not worth the time
            return
        found, suggested = wrong_labels(labels, scores, confident=view.kind != "table")
        if not len(found):
            return
        accuracy = float((scores.argmax(1) == labels).mean())
        unsure = 1 - accuracy > FEW
        if 1 - accuracy > HOPELESS:
            return
        sample = f" (of a sample of {len(rows):,})" if len(rows) < total else ""
        agrees = f"and that agrees with {accuracy:.1%} of all labels"
        if unsure:
            message = (
                f"{len(found):,} labels{sample} are contradicted by a small model that did not see the record, {agrees}: the classes overlap for it, so "
                "that borderline cases are among these. The first are the ones that it contradicts most"
            )
        else:
            message = (
                f"{len(found):,} {'label' if len(found) == 1 else 'labels'} may be wrong{sample}: contradicted by a small model that did not see the record, "
                f"{agrees}. The first are the ones that it contradicts most; unusual records with right labels are among them, which only someone who "
                "knows the matter can tell"
            )
        severity: Severity = "note" if unsure or len(found) < WORTH * len(rows) else "warn"
        places = tuple((int(rows[k]),) for k in found)
        notes = [
            f"labelled {view.label_names[names[labels[k]]]}, looks like {view.label_names[names[s]]}"
            for k, s in zip(found, suggested, strict=True)
        ]
        yield Finding(
            "label errors", severity, message, places, examples_of(view, places, lambda i: show(view, i), lambda k: notes[k]),
            facts={"accuracy": round(accuracy, 4)},
        )  # fmt: skip


def wrong_labels(
    labels_N: NDArray[np.int64], scores_NK: NDArray[np.float64], sure: float = SURE, confident: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (records whose labels are probably wrong, the class that is more likely), the surest first.

    The margin of a record is the largest score of another class less that of its label, divided by how far the label leads in the usual record. Named are
    those with a margin of `sure`, and those that confident learning names; confident learning alone misses a fifth where the model is good. The more of
    the labels the model contradicts, the more of that is its own error: then confident learning is not asked, and the margin must be larger, up to `SURER`.

    Args:
        labels_N: classes from 0.
        scores_NK: of each class, by a model that did not see the record.
        sure: smallest margin.
        confident: ask confident learning, too.
    """
    n = np.arange(len(labels_N))
    others = scores_NK.copy()
    others[n, labels_N] = -np.inf
    margin = others.max(1) - scores_NK[n, labels_N]
    contradicted = margin > 0
    if contradicted.all():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    usual = float(np.median(-margin[~contradicted]))
    excess = (float(contradicted.mean()) - FEW) / (MANY - FEW)
    named = margin >= (sure + (SURER - sure) * min(1.0, max(0.0, excess))) * usual
    if confident and excess <= 0:
        probabilities = np.clip(scores_NK, 1e-3, 1)
        named[find_label_errors(labels_N, probabilities / probabilities.sum(1, keepdims=True)).examples] = True
    found = np.flatnonzero(named & contradicted)
    found = found[np.argsort(-margin[found], kind="stable")]
    return found, others[found].argmax(1)


def _usable(view: DataView) -> NDArray[np.int64]:
    """Return the records that a label can be about: no outliers, broken numbers, blank images or silence."""
    left: set[int] = set()
    if view.kind == "texts":
        left |= view.once("odd", lambda: odd_texts(view.texts)).keys()
    elif view.images is not None:
        left |= view.once("odd", lambda: odd_images(view)).keys() | set(blank_rows(view).tolist())
    elif view.kind == "recordings":
        left |= {i for i, wave in enumerate(view.waves) if level_of(wave) < SILENT}
    else:
        for _, numbers, broken in number_columns(view):
            left.update(np.flatnonzero(broken | far_outside(numbers)).tolist())
    return np.array([i for i in range(len(view)) if i not in left], np.int64)


def _scores(view: DataView, rows: NDArray[np.int64], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scores of each class; NaN if the model of few records already says that it cannot tell the classes apart."""
    groups = np.unique([view.groups_N[i] for i in rows], return_inverse=True)[1] if len(view.groups_N) else None
    if view.kind == "table":
        numbers = _numbers(view, rows)
        if len(rows) > 2 * BLOCK and not _some_are_told(numbers, labels_N, view.seed):
            return np.full((len(rows), 1), np.nan)
        scores = out_of_fold(numbers, labels_N, seed=view.seed, groups=groups)
        found, likely = wrong_labels(labels_N, scores, SURE_OF_ROWS)
        corrected = labels_N.copy()
        corrected[found] = likely
        if np.bincount(corrected, minlength=scores.shape[1]).min() < 2 * FOLDS:
            return scores
        return out_of_fold(
            numbers, corrected, seed=view.seed, groups=groups
        )  # wrong labels blur a small model: once more without the plainest
    if view.kind == "texts":
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as err:
            raise MissingExtra("a second opinion on the labels of texts", "sklearn") from err
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=40_000, dtype=np.float32)
        features: Any = words.fit_transform([view.texts[i] for i in rows])
        return leave_one_out(features, labels_N, radial=False, ridge=0.5, groups_N=groups, seed=view.seed, go_on=_are_told)
    if view.images is not None:
        images = view.images

        def features(some: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.concatenate([gradients(images[rows[some[a : a + 1024]]]) for a in range(0, len(some), 1024)])

    else:
        features = np.stack([fingerprint(view.waves[i], view.rate) for i in rows.tolist()])
    return leave_one_out(features, labels_N, radial=True, ridge=0.1, groups_N=groups, seed=view.seed, go_on=_are_told)


def _are_told(scores_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> bool:
    """Whether a model of few records tells the classes apart so well that one of more is worth the time."""
    return bool((scores_NK.argmax(1) != labels_N).mean() <= HOPELESS + 0.1)


def _some_are_told(numbers_NF: NDArray[np.float64], labels_N: NDArray[np.int64], seed: int) -> bool:
    some = np.linspace(0, len(labels_N) - 1, BLOCK).astype(np.int64)
    kept = some[np.bincount(labels_N[some], minlength=int(labels_N.max()) + 1)[labels_N[some]] >= 2 * FOLDS]
    few = np.unique(labels_N[kept], return_inverse=True)[1]
    return len(np.unique(few)) < 2 or _are_told(out_of_fold(numbers_NF[kept], few, seed=seed), few)


def _numbers(view: DataView, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the columns that do not give the label away as numbers: words as one column for each of the most frequent."""
    told, features = set(given_away(view)[1]), []
    for name, numbers, _ in number_columns(view):
        if name not in told:
            usual = numbers[np.isfinite(numbers)]
            features.append(np.clip(numbers, *np.percentile(usual, [1, 99])))
    for name, values in word_columns(view):
        if name not in told:
            words = np.array([str(v) for v in values], object)
            features += [(words == word).astype(np.float64) for word, n in Counter(words.tolist()).most_common(_WORDS) if n > 1]
    return np.stack(features, 1)[rows] if features else np.zeros((len(rows), 1))
