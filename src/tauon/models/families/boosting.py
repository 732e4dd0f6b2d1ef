"""Gradient boosting by histograms: scikit-learn grows the trees (Friedman 2001; Ke et al. 2017, LightGBM), this module keeps and evaluates them.

The trees are arrays of one size, so that a checkpoint is plain tensors and a prediction is a few tensor operations, which export (the form is
Hummingbird's, Nakandala et al. 2020, arXiv:2010.04804): a node says left or right, and a leaf is reached where all nodes of its path say so.

Shapes: B batch, F columns, N trees, I inner nodes, L leaves, M codes, C outputs, T trees of a round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.errors import MissingExtra, Problem, RecipeError
from tauon.models.base import Fitted, Model
from tauon.models.families.columns import TabularConfig
from tauon.types import Batch, DataSpec

__all__ = ["GradientBoosting", "GradientBoostingConfig"]

_NEVER = 127
"""Depth of a leaf that does not exist: no path is so long."""
_MOST_CODES = 255
"""Most categories of a column that scikit-learn splits as a set; codes of other columns are split as numbers."""


@register("gradient-boosting")
class GradientBoostingConfig(TabularConfig):
    """scikit-learn's HistGradientBoosting, with its defaults; with validation rows it stops early.

    Fitted as a whole: `optim` and the length of `train` have no effect.
    """

    fits_whole = True

    rounds: Count = Field(100, ge=1, le=10_000)
    """Trees that are added, one for each class and round."""
    learning_rate: float = Field(0.1, gt=0, le=1)
    """Factor of each tree's output."""
    leaves: Count = Field(31, ge=2, le=120)
    """Most leaves of a tree, L."""
    min_leaf: Count = Field(20, ge=1)
    """Fewest rows of a leaf."""
    l2: float = Field(0.0, ge=0)
    """Penalty of the leaves' squared values."""

    def build(self) -> GradientBoosting:
        inputs, outputs = self.sizes
        return GradientBoosting(inputs, outputs, self.categories, self.rounds, self.leaves)

    def fit(
        self, train: Batch, validation: Batch | None, *, family: str, seed: int, progress: Callable[[str, int, int], None] | None = None
    ) -> Fitted:
        """Grow the trees; stop early if validation rows are given and their loss has not fallen for ten rounds.

        Raises:
            MissingExtra: scikit-learn is not installed.
            RecipeError: a task other than classification and regression of one number.
        """
        try:
            from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        except ImportError as err:
            raise MissingExtra("model gradient-boosting", "sklearn") from err
        _, outputs = self.sizes
        if family not in ("classification", "regression") or (family == "regression" and outputs != 1):
            message = f"gradient-boosting learns classes or one number, not {family} with {outputs} outputs. Set tabm or mlp."
            raise RecipeError([Problem("model.kind", message)])
        order = column_order(self.categories, self.sizes[0])
        coded = [j for j in order if self.categories and 0 < self.categories[j] <= _MOST_CODES]
        classifies = family == "classification"
        kind: Any = HistGradientBoostingClassifier if classifies else HistGradientBoostingRegressor
        stops = {} if validation is not None else {"validation_fraction": None}  # then the loss is recorded, and stops nothing
        booster = kind(
            max_iter=self.rounds, learning_rate=self.learning_rate, max_leaf_nodes=self.leaves, min_samples_leaf=self.min_leaf,
            l2_regularization=self.l2, categorical_features=[*range(len(coded))] or None, random_state=seed % 2**32,
            early_stopping=True, n_iter_no_change=10 if validation is not None else self.rounds, **stops,
        )  # fmt: skip
        if progress is not None:
            progress("grow trees", 0, self.rounds)
        held = {} if validation is None else dict(zip(("X_val", "y_val"), _arrays(validation, order, len(coded)), strict=True))
        booster.fit(*_arrays(train, order, len(coded)), sample_weight=train.weights.numpy(), **held)
        if progress is not None:
            progress("grow trees", booster.n_iter_, self.rounds)
        losses = [-float(s) for s in booster.train_score_[1:]] if len(booster.train_score_) else []
        return Fitted(self._tensors(booster, order, coded), losses, f"{booster.n_iter_} rounds of at most {self.rounds}")

    def _tensors(self, booster: Any, order: list[int], coded: list[int]) -> dict[str, Tensor]:
        """Return the booster's trees as the module's tensors."""
        model = self.build()
        tensors = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
        tensors["depth"].fill_(_NEVER)
        known = [_codes_of(booster, k) for k in range(len(coded))]
        trees = [tree for one_round in booster._predictors for tree in one_round]
        for n, tree in enumerate(trees):
            _write_tree(tree, n, tensors, order, known)
        tensors["baseline"].copy_(torch.from_numpy(np.asarray(booster._baseline_prediction, np.float64).ravel()))
        return tensors


def column_order(categories: tuple[int, ...], inputs: int) -> list[int]:
    """Return the columns as scikit-learn orders them: those of codes that it splits as sets first."""
    coded = [j for j in range(inputs) if categories and 0 < categories[j] <= _MOST_CODES]
    return [*coded, *(j for j in range(inputs) if j not in coded)]


def _arrays(batch: Batch, order: list[int], coded: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return (rows for scikit-learn, targets). Code 0, missing or unseen, becomes NaN."""
    x = batch.inputs.flatten(1).numpy().astype(np.float64)[:, order]
    x[:, :coded][x[:, :coded] == 0] = np.nan
    targets = batch.targets.numpy()
    return x, targets if targets.ndim == 1 else targets[:, 0]


def _codes_of(booster: Any, column: int) -> NDArray[np.int64]:
    """Return the code of each category that the booster saw, in its own numbering."""
    seen = booster._preprocessor.named_transformers_["encoder"].categories_[column]
    known: NDArray[np.int64] = seen[~np.isnan(seen)].astype(np.int64)
    return known


def _write_tree(tree: Any, n: int, tensors: dict[str, Tensor], order: list[int], known: list[NDArray[np.int64]]) -> None:
    """Write one of scikit-learn's trees as tree `n`: each node's test, each leaf's path, depth and value."""
    nodes = tree.nodes
    place: dict[int, int] = {}
    waiting: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    leaf = 0
    while waiting:
        at, path = waiting.pop()
        node = nodes[at]
        if node["is_leaf"]:
            for inner, side in path:
                tensors["path"][n, inner, leaf] = side
            tensors["depth"][n, leaf], tensors["value"][n, leaf] = len(path), float(node["value"])
            leaf += 1
            continue
        place[at] = inner = len(place)
        column = int(node["feature_idx"])
        tensors["column"][n, inner] = order[column]
        if node["is_categorical"]:
            bits = tree.raw_left_cat_bitsets[int(node["bitset_idx"])]
            left = np.full(tensors["left_codes"].shape[2], bool(node["missing_go_to_left"]))
            numbers = np.arange(len(known[column]))
            left[known[column]] = (bits[numbers // 32] >> (numbers % 32).astype(np.uint32)) & 1 == 1
            tensors["left_codes"][n, inner] = torch.from_numpy(left)
            tensors["is_coded"][n, inner] = True
        else:
            tensors["threshold"][n, inner] = float(_rounded_down(float(node["num_threshold"])))
        waiting += [(int(node["right"]), [*path, (inner, -1)]), (int(node["left"]), [*path, (inner, 1)])]


def _rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above `threshold`: for float32 x, x <= threshold is then decided alike."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf))


class GradientBoosting(Model):
    """BF -> BC: the sum of the trees' leaves. Two classes have one tree a round, whose sum is the second's logit; the first's is 0."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only
    column: Tensor
    threshold: Tensor
    path: Tensor
    depth: Tensor
    baseline: Tensor
    left_codes: Tensor
    is_coded: Tensor

    def __init__(self, inputs: int, outputs: int, categories: tuple[int, ...], rounds: int, leaves: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.categories = inputs, outputs, categories
        self.trees_a_round = outputs if outputs > 2 else 1
        N, I, L, M = rounds * self.trees_a_round, leaves - 1, leaves, max(categories, default=0)
        self.value = nn.Parameter(torch.empty(N, L))
        self.register_buffer("column", torch.empty(N, I, dtype=torch.int32))
        self.register_buffer("threshold", torch.empty(N, I))
        self.register_buffer("path", torch.empty(N, I, L, dtype=torch.int8))
        self.register_buffer("depth", torch.empty(N, L, dtype=torch.int8))
        self.register_buffer("baseline", torch.empty(self.trees_a_round))
        self.has_codes = M > 0
        if self.has_codes:
            self.register_buffer("left_codes", torch.empty(N, I, M, dtype=torch.bool))
            self.register_buffer("is_coded", torch.empty(N, I, dtype=torch.bool))

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BF = x_BF.flatten(1).float()
        N, I = self.column.shape
        seen_BX = x_BF.index_select(1, self.column.flatten())
        left_BX = seen_BX <= self.threshold.flatten()
        if self.has_codes:
            M = self.left_codes.shape[2]
            first_X = torch.arange(N * I, device=x_BF.device) * M
            by_code = self.left_codes.flatten()[first_X + seen_BX.long().clamp(0, M - 1)]
            coded_X = self.is_coded.flatten()
            left_BX = (coded_X & by_code) | (~coded_X & left_BX)
        sides_NBI = (left_BX.float() * 2 - 1).view(-1, N, I).transpose(0, 1)
        agree_NBL = torch.bmm(sides_NBI, self.path.float())
        reached_NBL = (agree_NBL == self.depth.float().unsqueeze(1)).to(self.value.dtype)
        trees_NB = (reached_NBL * self.value.unsqueeze(1)).sum(2)
        out_BT = trees_NB.view(-1, self.trees_a_round, x_BF.shape[0]).sum(0).transpose(0, 1) + self.baseline
        return torch.cat([torch.zeros_like(out_BT), out_BT], 1) if self.outputs == 2 else out_BT

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Leaves at zero: every class equally likely."""
        nn.init.zeros_(p)

    def init_buffers(self) -> None:
        """Balanced trees that ask one column after the other, around zero: a place to start from if no booster was fitted."""
        N, I = self.column.shape
        L = I + 1
        at = torch.arange(N * I)
        self.column.copy_((at % self.inputs).view(N, I))
        self.threshold.copy_(((at * 0.6180339887) % 1 * 3 - 1.5).view(N, I))
        self.path.zero_()
        self.depth.fill_(_NEVER)
        for leaf, node in enumerate(range(I, 2 * I + 1)):  # a heap: the children of node i are 2i + 1 and 2i + 2
            steps = 0
            while node:
                parent, side = (node - 1) // 2, 1 if node % 2 else -1
                self.path[:, parent, leaf] = side
                node, steps = parent, steps + 1
            self.depth[:, leaf % L] = steps
        if self.has_codes:
            sizes = torch.tensor(self.categories)[self.column.long()]
            self.is_coded.copy_(sizes > 0)
            self.left_codes.copy_((torch.arange(self.left_codes.shape[2]) + at.view(N, I, 1)) % 2 == 0)

    def flops_per_example(self, spec: DataSpec) -> float:
        """The products of the paths."""
        return 2.0 * self.path.numel()

    def activations_per_example(self, spec: DataSpec) -> float:
        """Each node's side and each leaf's agreement."""
        return 3.0 * self.path.shape[0] * (self.path.shape[1] + self.path.shape[2])
