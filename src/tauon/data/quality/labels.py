"""Labels that are probably wrong, by a cheap model's opinion of each record when it was fitted without it.

The model learns from records that are neither outliers nor blank (`odd`, `blank`), and of a table not from columns that give the label away. Which of
the labels that it contradicts are named is decided in `wrong_labels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.quality.base import DataView, Finding, QualityCheck, counted, examples_of, show
from tauon.data.quality.columns import given_away, number_columns, word_columns
from tauon.data.quality.image_outliers import blank_images, odd_images
from tauon.data.quality.label_errors import find_label_errors
from tauon.data.quality.out_of_fold import out_of_fold
from tauon.data.quality.text_outliers import odd_texts

__all__ = ["WrongLabels", "wrong_labels"]

MOST = 20_000
"""Records that are looked at; of more, a sample."""
_WORDS = 30
"""Most frequent words of a column that become features."""


@register("label-errors")
class WrongLabels(QualityCheck):
    """Labels that a model which has not seen the record finds implausible (confident learning, Northcutt et al. 2021)."""

    kinds = ("texts", "table", "images", "recordings")
    title = "Label errors"
    extra = "sklearn"

    def find(self, view: DataView) -> Iterator[Finding]:
        if view.labels_N is None:
            return
        rows = _usable(view)
        total = len(rows)
        if total > MOST:
            rows = rows[np.linspace(0, total - 1, MOST).astype(np.int64)]
        names, labels = np.unique(view.labels_N[rows], return_inverse=True)
        if len(names) < 2:
            return
        examples = features_of(view, rows)
        groups = np.unique([view.groups_N[i] for i in rows], return_inverse=True)[1] if len(view.groups_N) else None
        probabilities = out_of_fold(examples, labels, seed=view.seed, groups=groups)
        found, suggested = wrong_labels(labels, probabilities)
        if not len(found):
            return
        accuracy = float((probabilities.argmax(1) == labels).mean())
        sample = f" of a sample of {len(rows):,}" if len(rows) < total else ""
        message = (
            f"{counted(len(found), 'label')} probably wrong{sample}: a model that did not see the record is sure of another class (it agrees with {accuracy:.1%} "
            "of all labels). Look at them before training"
        )
        places = tuple((int(rows[k]),) for k in found)
        notes = [f"label {view.label_names[names[labels[k]]]}, rather {view.label_names[names[s]]}" for k, s in zip(found, suggested, strict=True)]
        yield Finding(
            "label errors", "warn", message, places, examples_of(view, places, lambda i: show(view, i), lambda k: notes[k]),
            facts={"accuracy": round(accuracy, 4)},
        )  # fmt: skip
def wrong_labels(*a): ...
def features_of(*a): ...
def _usable(*a): ...
