"""A decision tree that imitates a model over readable features, with how well it does so.

The tree is fitted on the model's own answers: on the training rows, and on points sampled around them (Craven & Shavlik 1996, TREPAN;
Breiman & Shang 1996, "born again trees"). A sampled point takes each column from one of two training rows, each with probability one half:
all its values, and all its categories, are ones that occur. Depth is the smallest whose cross-validated fidelity is within one standard
error of the best (Breiman et al. 1984, section 3.4.3). The tree explains the model, not the world: its fidelity is beside it always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, Matrix, Predict, answers_of, check_rows, number_text, outside_range
from tauon.explain.trees.fidelity import Fidelity, measure_fidelity, r2_of
from tauon.explain.trees.grow import Node, PlainTree, grow_tree
from tauon.metrics.intervals import generator

__all__ = ["CasePath", "DepthScore", "Rule", "Surrogate", "SurrogateSettings", "crossed_rows", "fit_surrogate", "fit_surrogate_of_answers"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SurrogateSettings:
    """How a surrogate is fitted."""

    kind: Literal["classes", "values"] = "classes"
    """classes: the outputs are probabilities and the answer is the largest; values: the output is one number."""
    max_depth: int = 6
    depth: int | None = None
    """Use exactly this depth instead of choosing one."""
    samples: int = 20_000
    """Points sampled around the training rows. More of them cost time alone."""
    min_leaf: int = 5
    """Fewest fitted rows in a leaf."""
    folds: int = 5
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class DepthScore:
    """Cross-validated fidelity of a depth: agreement with the model, or R2 of its values."""

    depth: int
    fidelity: float
    standard_error: float


@dataclass(frozen=True)
class Rule:
    """The path to one leaf."""

    conditions: tuple[str, ...]
    answer: str
    value: float
    """Probability of the answer, or the value."""
    training_rows: int

    @property
    def text(self) -> str:
        return f"If {' and '.join(self.conditions) or 'in any case'}: {self.answer} ({self.training_rows:,} training rows)"


@dataclass(frozen=True)
class CasePath:
    """Why the tree answers as it does for one row."""

    sentence: str
    leaf: int
    agrees: bool | None
    """Whether the model gives the same answer; None if its answer is not known. Where it does not, the path is no reason."""
    outside: tuple[str, ...] = ()
    """Values that no training row has."""


@dataclass(frozen=True)
class Surrogate:
    """A tree with the figures that say how far it may be believed."""

    tree: PlainTree
    outputs: tuple[str, ...]
    """Names of the classes, or of the value."""
    kind: Literal["classes", "values"]
    fidelity: Fidelity
    depths: tuple[DepthScore, ...] = ()
    training_rows: int = 0
    sampled_rows: int = 0
    note: str = ""
    """Why there is no tree, where there is none."""

    @property
    def features(self) -> tuple[Feature, ...]:
        return self.tree.features

    def predict(self, rows_NF: Matrix) -> Matrix:
        """Return the tree's outputs, (N, C)."""
        return self.tree.predict(check_rows(rows_NF, self.features))

    def answer_of(self, value: Sequence[float]) -> str:
        """Write an output in words: "malignant (0.93)", or the value."""
        if self.kind == "values":
            return f"{self.outputs[0]} {number_text(value[0])}"
        best = int(np.argmax(value))
        return f"{self.outputs[best]} ({value[best]:.2f})"

    def rules(self) -> list[Rule]:
        """Return every path in words, those with the most training rows first."""
        rules = []
        for leaf in self.tree.leaves:
            node = self.tree.nodes[leaf]
            conditions = tuple(condition.text(self.features) for condition in self.tree.conditions_to(leaf))
            rules.append(
                Rule(
                    conditions, self.answer_of(node.value), max(node.value) if self.kind == "classes" else node.value[0], node.training_rows
                )
            )
        return sorted(rules, key=lambda rule: -rule.training_rows)

    def path_of(self, row_F: Matrix, outputs_C: Matrix | None = None) -> CasePath:
        """Return the path of one row (F,) as a sentence. With the model's own outputs (C,), also whether the model agrees."""
        row_1F = check_rows(row_F, self.features, "the row")
        leaf = int(self.tree.apply(row_1F)[0])
        value = self.tree.nodes[leaf].value
        reasons = " and ".join(condition.text(self.features) for condition in self.tree.conditions_to(leaf))
        said = f"predicted {self.answer_of(value)}" if self.kind == "classes" else f"predicted to have {self.answer_of(value)}"
        sentence = f"This case is {said} because {reasons}." if reasons else f"This case is {said}, as every case is."
        agrees = None
        if outputs_C is not None and self.kind == "classes":
            agrees = int(np.argmax(outputs_C)) == int(np.argmax(value))
            if not agrees:
                sentence = (
                    f"The model answers {self.answer_of(np.asarray(outputs_C).tolist())}, but the tree does not follow it here: {sentence}"
                )
        outside = tuple(value.text for value in outside_range(row_1F[0], self.features))
        return CasePath(sentence, leaf, agrees, outside)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: nodes, features, rules in words, fidelity."""
        return {
            "kind": self.kind, "outputs": list(self.outputs), "tree": self.tree.to_json(), "fidelity": self.fidelity.to_json(),
            "depth": self.tree.depth, "depths": [asdict(score) for score in self.depths], "training_rows": self.training_rows,
            "sampled_rows": self.sampled_rows, "note": self.note, "rules": [rule.text for rule in self.rules()],
        }  # fmt: skip

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Surrogate:
        return cls(
            PlainTree.from_json(plain["tree"]), tuple(plain["outputs"]), plain["kind"], Fidelity.from_json(plain["fidelity"]),
            tuple(DepthScore(**score) for score in plain["depths"]), plain["training_rows"], plain["sampled_rows"], plain["note"],
        )  # fmt: skip


def crossed_rows(train_NF: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    """Sample `count` rows: each column from one of two training rows, each with probability one half."""
    one, other = rng.integers(0, len(train_NF), count), rng.integers(0, len(train_NF), count)
    rows: Matrix = np.where(rng.random((count, train_NF.shape[1])) < 0.5, train_NF[one], train_NF[other])
    return rows


def fit_surrogate(
    predict: Predict, train_NF: Matrix, features: Sequence[Feature], held_out_MF: Matrix, *, outputs: Sequence[str] = (),
    truth_M: Matrix | None = None, settings: SurrogateSettings | None = None, progress: Progress | None = None,
) -> Surrogate:  # fmt: skip
    """Fit a tree to a model's answers on the training rows and on points sampled around them; measure it on held-out rows.

    `outputs` names the classes (or the value); `truth_M` are the held-out rows' true labels (class numbers, or values), for figures that are
    named apart from fidelity. A model that always gives the same answer has no decision to show: the tree is then one leaf, and `note` says
    so. DataError for rows that are not finite numbers or too few.
    """
    settings = settings or SurrogateSettings()
    train_NF, held_out_MF = check_rows(train_NF, features, "the training rows"), check_rows(held_out_MF, features, "the held-out rows")
    answers = answers_of(predict, train_NF), answers_of(predict, held_out_MF)

    def sample(rows_NF: Matrix, count: int, purpose: str) -> tuple[Matrix, Matrix]:
        crossed = crossed_rows(rows_NF, count, generator(settings.seed, purpose))
        return crossed, answers_of(predict, crossed) if count else np.empty((0, answers[0].shape[1]))

    return _fit(_Data(train_NF, answers[0], held_out_MF, answers[1], truth_M), features, outputs, settings, (sample, progress))


def fit_surrogate_of_answers(
    train_NF: Matrix, answers_NC: Matrix, features: Sequence[Feature], held_out_MF: Matrix, held_out_answers_MC: Matrix, *,
    outputs: Sequence[str] = (), truth_M: Matrix | None = None, settings: SurrogateSettings | None = None,
) -> Surrogate:  # fmt: skip
    """Fit a tree to answers that the model gave to the original examples, where it cannot be asked about a readable row (images, text,
    signals: `tauon.explain.trees.readable`). No points are sampled.
    """
    train_NF, held_out_MF = check_rows(train_NF, features, "the training rows"), check_rows(held_out_MF, features, "the held-out rows")
    train_answers, held_answers = answers_of(lambda _: answers_NC, train_NF), answers_of(lambda _: held_out_answers_MC, held_out_MF)
    data = _Data(train_NF, train_answers, held_out_MF, held_answers, truth_M)
    return _fit(data, features, outputs, settings or SurrogateSettings(), (None, None))


@dataclass(frozen=True)
class _Data:
    train_NF: Matrix
    train_NC: Matrix
    held_MF: Matrix
    held_MC: Matrix
    truth_M: Matrix | None


_Sample = Callable[[Matrix, int, str], tuple[Matrix, Matrix]]


def _fit(
    data: _Data, features: Sequence[Feature], outputs: Sequence[str], settings: SurrogateSettings,
    means: tuple[_Sample | None, Progress | None],
) -> Surrogate:  # fmt: skip
    classes, count = settings.kind == "classes", data.train_NC.shape[1]
    _check(data, features, outputs, settings)
    names = tuple(outputs) or (tuple(f"class {c}" for c in range(count)) if classes else ("value",))
    majority = int(np.bincount(data.train_NC.argmax(1)).argmax())
    note = _no_decision(data.train_NC, names, classes)
    scores: tuple[DepthScore, ...] = ()
    sampled = 0
    if note:
        root = Node(0, len(data.train_NF), len(data.train_NF), tuple(data.train_NC.mean(0).tolist()))
        tree = PlainTree((root,), tuple(features))
    else:
        sample, progress = means
        scores = _depth_scores(data, features, settings, sample, progress)
        rows, answers = _with_samples(data.train_NF, data.train_NC, settings.samples, sample, "surrogate")
        sampled = len(rows) - len(data.train_NF)
        tree = grow_tree(
            rows, answers, features, depth=settings.depth or _chosen(scores), training_rows=len(data.train_NF),
            min_leaf=settings.min_leaf, seed=settings.seed,
        )  # fmt: skip
        if progress is not None:
            progress(settings.folds + 1, settings.folds + 1)
    fidelity = measure_fidelity(
        tree.predict(data.held_MF), data.held_MC, classes=classes, majority=majority, truth_N=data.truth_M,
        confidence=settings.confidence, seed=settings.seed,
    )  # fmt: skip
    return Surrogate(tree, names, settings.kind, fidelity, scores, len(data.train_NF), sampled, note)


def _check(data: _Data, features: Sequence[Feature], outputs: Sequence[str], settings: SurrogateSettings) -> None:
    count = data.train_NC.shape[1]
    if settings.kind == "classes" and count < 2:
        raise DataError(f"the model has {count} output, but classes need the probability of each: give both columns, or kind='values'")
    if settings.kind == "values" and count != 1:
        raise DataError(f"the model has {count} values: explain one at a time, with a predict that returns (rows, 1)")
    if outputs and len(outputs) != count:
        raise DataError(f"got {len(outputs)} names for {count} outputs")
    if len(data.train_NF) < 2 or not len(data.held_MF):
        raise DataError(
            f"got {len(data.train_NF)} training and {len(data.held_MF)} held-out rows: a surrogate needs at least 2 and 1, "
            "and its fidelity means something from about 50 held-out rows"
        )


def _no_decision(answers_NC: Matrix, names: Sequence[str], classes: bool) -> str:
    """Return why there is no tree to fit; empty where there is one."""
    rows = f"{len(answers_NC):,} training rows"
    if classes and len(np.unique(answers_NC.argmax(1))) == 1:
        return f"The model answers {names[int(answers_NC[0].argmax())]} for every one of {rows}: a tree has no decision to show."
    if np.ptp(answers_NC, axis=0).max() == 0:
        return f"The model's value is {number_text(answers_NC[0, 0])} for every one of {rows}: a tree has nothing to show."
    return ""


def _with_samples(rows_NF: Matrix, answers_NC: Matrix, count: int, sample: _Sample | None, purpose: str) -> tuple[Matrix, Matrix]:
    if sample is None or not count:
        return rows_NF, answers_NC
    more_rows, more_answers = sample(rows_NF, count, purpose)
    return np.concatenate([rows_NF, more_rows]), np.concatenate([answers_NC, more_answers])


def _depth_scores(
    data: _Data, features: Sequence[Feature], settings: SurrogateSettings, sample: _Sample | None, progress: Progress | None
) -> tuple[DepthScore, ...]:
    """Cross-validated fidelity of each depth. One tree a fold is grown and cut off at each depth."""
    folds = min(settings.folds, len(data.train_NF))
    if settings.depth is not None or folds < 2:
        return ()
    fold_N = generator(settings.seed, "folds of a surrogate").permutation(len(data.train_NF)) % folds
    scores = np.zeros((folds, settings.max_depth))
    for fold in range(folds):
        if progress is not None:
            progress(fold, folds + 1)
        inside, held = fold_N != fold, fold_N == fold
        rows, answers = _with_samples(data.train_NF[inside], data.train_NC[inside], settings.samples, sample, f"surrogate fold {fold}")
        tree = grow_tree(rows, answers, features, depth=settings.max_depth, min_leaf=settings.min_leaf, seed=settings.seed)
        for depth in range(1, settings.max_depth + 1):
            scores[fold, depth - 1] = _score(tree.predict(data.train_NF[held], depth), data.train_NC[held], settings.kind)
    errors = scores.std(0, ddof=1) / np.sqrt(folds)
    return tuple(DepthScore(d + 1, float(scores[:, d].mean()), float(errors[d])) for d in range(settings.max_depth))


def _score(predicted_NC: Matrix, outputs_NC: Matrix, kind: str) -> float:
    if kind == "classes":
        return float((predicted_NC.argmax(1) == outputs_NC.argmax(1)).mean())
    r2 = r2_of(predicted_NC, outputs_NC)
    return 0.0 if r2 is None else r2


def _chosen(scores: Sequence[DepthScore]) -> int:
    """Return the smallest depth within one standard error of the best."""
    if not scores:
        return 1
    best = max(scores, key=lambda score: score.fidelity)
    return next(score.depth for score in scores if score.fidelity >= best.fidelity - best.standard_error)
