"""Balance of classes: rare classes, classes that a part does not have, parts whose shares of classes differ by more than chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.quality.base import SHOWN, DataView, Example, Finding, QualityCheck
from tauon.data.quality.two_samples import chi_square_p

__all__ = ["ClassBalance"]

FEW = 20
"""Training records below which a class can hardly be learnt."""
SKEW = 10.0
"""How many times the largest class may be the smallest before it is said."""


@register("class-balance")
class ClassBalance(QualityCheck):
    """How the classes are spread over the records and the parts."""

    title = "Class balance"
    needs_classes = True

    def find(self, view: DataView) -> Iterator[Finding]:
        if view.labels_N is None or not view.label_names:
            return
        counts = {p: np.bincount(view.labels_N[view.rows(p)], minlength=len(view.label_names)) for p in view.parts}
        train = counts.get("train", np.zeros(len(view.label_names), np.int64))
        table = {p: {n: int(c) for n, c in zip(view.label_names, mine, strict=True)} for p, mine in counts.items()}
        rare = [n for n, c in zip(view.label_names, train, strict=True) if c < FEW]
        if rare:
            message = (
                f"{len(rare)} of {len(train)} classes have fewer than {FEW} training records ({_named(rare)}): join them, or collect more"
            )
            yield Finding("rare classes", "warn", message, columns=tuple(rare), facts={"counts": table})
        elif train.max() > SKEW * train.min():
            most, least = (view.label_names[int(f(train))] for f in (np.argmax, np.argmin))
            message = (
                f"class {most} is {train.max() / train.min():.0f} times as frequent as {least}: accuracy says little, look at recall, ROC-AUC or average "
                "precision; data.class_weights: balanced weights the rare one up"
            )
            yield Finding("unequal classes", "note", message, columns=(most, least), facts={"counts": table})
        for part, mine in counts.items():
            lost = [n for n, c, t in zip(view.label_names, mine, train, strict=True) if part != "train" and not c and t]
            if lost:
                yield Finding(
                    "missing classes",
                    "warn",
                    f"the {part} part has no record of {_named(lost)}: nothing is measured on it",
                    columns=tuple(lost),
                )
            elif part != "train" and (p := chi_square_p(np.stack([train, mine]))) < 1e-4:
                message = (
                    f"the shares of the classes differ between train and {part} by more than chance (chi-square test, p = {p:.0e}): the {part} part "
                    "measures another mixture than the one that was learnt. Split stratified, or say why"
                )
                shares = _shares(view.label_names, train, mine, part)
                yield Finding("class shares", "warn", message, (), shares, view.label_names, {"counts": table, "p": p, "part": part})


def _named(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _shares(names: tuple[str, ...], train: NDArray[np.int64], held: NDArray[np.int64], part: str) -> tuple[Example, ...]:
    """Return the classes whose shares differ most."""
    a, b = train / train.sum(), held / held.sum()
    order = np.argsort(-np.abs(a - b), kind="stable")[:SHOWN].tolist()
    return tuple(
        Example((), (names[k],), f"{a[k]:.1%} of train ({train[k]:,} records), {b[k]:.1%} of {part} ({held[k]:,} records)") for k in order
    )
