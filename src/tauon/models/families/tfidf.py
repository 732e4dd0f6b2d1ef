"""A linear model of TF-IDF over n-grams of tokens (Sparck Jones 1972; Salton & Buckley 1988): what every text classifier has to beat.

A text is the set of its tokens and of its runs of two to N tokens, each weighted by (1 + log count) x log inverse document frequency, scaled to length
one. Subword tokens and their runs are what words, parts of words and pairs of words are elsewhere. Runs share `buckets` places by a hash. The weights
are the optimum of L2-regularised logistic regression, found by L-BFGS; the strength of the penalty is the one that held-out texts like best.

Shapes: B batch, T time, G n-grams of a text, P places (vocabulary and buckets), C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Fitted, Model, ModelConfig, Size
from tauon.models.families.bag import mixed
from tauon.types import Batch, DataSpec

__all__ = ["TextLinear", "TextLinearConfig"]

_CHUNK = 512
"""Texts whose n-grams are weighted at once."""
_STRENGTHS = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0, 2048.0)
"""Inverse penalties that are tried, as scikit-learn's C."""


@register("tfidf")
class TextLinearConfig(ModelConfig):
    """Logistic regression on TF-IDF of n-grams of tokens. Fitted as a whole: `optim` and the length of `train` have no effect."""

    input_kind = "labelled-text"
    fits_whole = True

    ngrams: Count = Field(3, ge=1, le=8)
    """Longest run of tokens that counts, N."""
    buckets: Size = 2**18
    """Places that runs of two and more share."""
    sublinear: bool = True
    """Count a repeated n-gram as 1 + log count; false: as often as it occurs."""
    strength: float | None = Field(None, gt=0)
    """Inverse penalty, scikit-learn's C. Left out: of 0.5, 2, 8, ..., 2048 the best on the validation texts, or on a tenth of the training texts."""
    vocab: Size | None = None
    """Token ids. Left out: the tokenizer's."""
    outputs: Size | None = None
    """Classes. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        if spec.vocab is None or spec.outputs is None:
            message = f"{self.kind_} sorts texts, and this data has no texts with labels. Take another model."
            raise RecipeError([Problem("model.kind", message)])
        for name, mine, theirs in (("vocab", self.vocab, spec.vocab), ("outputs", self.outputs, spec.outputs)):
            if mine not in (None, theirs):
                raise RecipeError([Problem(f"model.{name}", f"{mine}, but the data has {theirs}. Leave it out.")])
        return self.model_copy(update={"vocab": spec.vocab, "outputs": spec.outputs})

    def build(self) -> TextLinear:
        assert self.vocab is not None
        assert self.outputs is not None
        return TextLinear(self.vocab, self.ngrams, self.buckets if self.ngrams > 1 else 0, self.outputs, sublinear=self.sublinear)

    def fit(
        self, train: Batch, validation: Batch | None, *, family: str, seed: int, progress: Callable[[str, int, int], None] | None = None
    ) -> Fitted:
        """Measure document frequencies on the training texts, choose the penalty, and solve for the weights."""
        model = self.build()
        model.idf.fill_(1)
        rows = _Rows.of(model, train, progress)
        documents = torch.bincount(rows.places, minlength=len(model.idf)).double()
        idf = torch.log((1 + len(train)) / (1 + documents)) + 1  # as scikit-learn: smoothed, and never zero for a known n-gram
        model.idf.copy_(torch.where(documents > 0, idf, 0.0))
        whole = rows.weighted(model)
        chosen, note = self.strength, "as set"
        if chosen is None:
            chosen, note = self._best_strength(model, whole, train, validation, seed, progress)
        weight, bias, losses = _solve(whole, train.targets, self.outputs or 1, chosen)
        tensors = model.state_dict()
        tensors["weight"] = torch.zeros_like(tensors["weight"]).index_copy_(0, whole.known, weight.float())
        tensors["bias"] = bias.float()
        if progress is not None:
            progress("fit weights", 1, 1)
        return Fitted(tensors, losses, f"C = {chosen:g} ({note}), {len(whole.known):,} n-grams")

    def _best_strength(
        self, model: TextLinear, whole: _Rows, train: Batch, validation: Batch | None, seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> tuple[float, str]:  # fmt: skip
        """Return (the strength with the smallest log loss on held-out texts, what decided)."""
        if validation is None:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            held, rest = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
            fits, checks = (whole.take(rest), train.targets[rest]), (whole.take(held), train.targets[held])
            why = "best on a tenth of the training texts"
        else:
            rows = _Rows.of(model, validation, None).weighted(model, whole.known)
            fits, checks, why = (whole, train.targets), (rows, validation.targets), "best on the validation texts"
        best, start = (float("inf"), _STRENGTHS[0]), None
        for i, strength in enumerate(_STRENGTHS):
            if progress is not None:
                progress("choose the penalty", i, len(_STRENGTHS))
            weight, bias, _ = _solve(*fits, self.outputs or 1, strength, start)
            start = (weight, bias)
            logits = checks[0].matrix @ weight + bias
            loss = float(F.cross_entropy(logits, checks[1]))
            if loss > best[0]:
                break
            best = (loss, strength)
        return best[1], why


@dataclass(frozen=True)
class _Rows:
    """Texts as a sparse matrix: the place and the weight of each n-gram of each text."""

    texts: Tensor
    """Text of each entry, ascending."""
    places: Tensor
    values: Tensor
    """Weights without inverse document frequency and length."""
    count: int
    known: Tensor
    """Places with a column of their own in `matrix`, ascending."""
    matrix: Tensor
    """CSR, texts x known places."""

    @classmethod
    def of(cls, model: TextLinear, batch: Batch, progress: Callable[[str, int, int], None] | None) -> _Rows:
        texts, places, values = [], [], []
        for start in range(0, len(batch), _CHUNK):
            some = batch.rows(start, start + _CHUNK)
            ids_BG, counts_BG = model.counted(some.inputs, some.segments)
            text, at = torch.nonzero(counts_BG, as_tuple=True)
            texts.append(text + start)
            places.append(ids_BG[text, at])
            values.append(model.term(counts_BG[text, at]).double())
            if progress is not None:
                progress("count n-grams", min(start + _CHUNK, len(batch)), len(batch))
        nothing = torch.empty(0)
        return cls(torch.cat(texts), torch.cat(places), torch.cat(values), len(batch), nothing, nothing)

    def weighted(self, model: TextLinear, known: Tensor | None = None) -> _Rows:
        """Return the same with its matrix: rows of length one, a column for each of the `known` places (None: for each that occurs)."""
        weights = self.values * model.idf[self.places].double()
        square = torch.zeros(self.count, dtype=torch.float64).index_add_(0, self.texts, weights**2)
        weights = weights / square.sqrt().clamp(min=1e-12)[self.texts]
        places = self.places.unique() if known is None else known
        column = torch.searchsorted(places, self.places).clamp(max=len(places) - 1)
        kept = places[column] == self.places
        matrix = _csr(self.texts[kept], column[kept], weights[kept], (self.count, len(places)))
        return _Rows(self.texts, self.places, self.values, self.count, places, matrix)

    def take(self, texts: Tensor) -> _Rows:
        """Return some texts, in another order."""
        place = torch.full((self.count,), -1).index_copy_(0, texts, torch.arange(len(texts)))
        start = self.matrix.crow_indices()
        row = torch.repeat_interleave(torch.arange(self.count), start.diff())
        kept = place[row] >= 0
        matrix = _csr(place[row[kept]], self.matrix.col_indices()[kept], self.matrix.values()[kept], (len(texts), self.matrix.shape[1]))
        return _Rows(self.texts, self.places, self.values, len(texts), self.known, matrix)


def _csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a sparse matrix from its entries in any order."""
    order = torch.argsort(row * shape[1] + column)
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(row, minlength=shape[0]).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, column[order], values[order], shape, check_invariants=False)


def _transposed(matrix: Tensor) -> Tensor:
    row = torch.repeat_interleave(torch.arange(matrix.shape[0]), matrix.crow_indices().diff())
    return _csr(matrix.col_indices(), row, matrix.values(), (matrix.shape[1], matrix.shape[0]))


def _solve(
    rows: _Rows, targets: Tensor, classes: int, strength: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, list[float]]:
    """Return (weight, bias, mean log loss of each iteration): minimise sum of log losses + |weight|^2 / (2 strength), as scikit-learn does."""
    X, Xt = rows.matrix, _transposed(rows.matrix)
    n = X.shape[0]
    wanted = F.one_hot(targets, classes).double()
    weight = torch.zeros(X.shape[1], classes, dtype=torch.float64) if start is None else start[0].clone()
    bias = torch.zeros(classes, dtype=torch.float64) if start is None else start[1].clone()
    losses: list[float] = []
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe")

    def closure() -> float:
        logits = X @ weight + bias
        error = logits.softmax(1) - wanted
        log_loss = float(F.cross_entropy(logits, targets))
        weight.grad = Xt @ error / n + weight / (strength * n)
        bias.grad = error.mean(0)
        losses.append(log_loss)
        return log_loss + float(weight.square().sum()) / (2 * strength * n)

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight, bias, losses


class TextLinear(Model):
    """Tokens BT, segments BT (-1 where nothing is) -> logits BC."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only
    modules_to_save = ("weight", "bias")
    idf: Tensor

    def __init__(self, vocab: int, ngrams: int, buckets: int, outputs: int, *, sublinear: bool) -> None:
        super().__init__()
        self.vocab, self.ngrams, self.buckets, self.sublinear = vocab, ngrams, buckets, sublinear
        self.weight = nn.Parameter(torch.empty(vocab + buckets, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("idf", torch.empty(vocab + buckets))

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        ids_BG, counts_BG = self.counted(tokens_BT, segments_BT)
        values_BG = torch.where(counts_BG > 0, self.term(counts_BG) * self.idf[ids_BG], 0.0)
        length_B1 = values_BG.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return F.embedding_bag(ids_BG, self.weight, mode="sum", per_sample_weights=values_BG / length_B1) + self.bias

    def term(self, counts: Tensor) -> Tensor:
        """Weight of an n-gram in its text before its rarity counts."""
        return 1 + counts.clamp(min=1).log() if self.sublinear else counts

    def counted(self, tokens_BT: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (place of each n-gram, ascending, BG; how often it occurs, at its first place, else 0, BG)."""
        there_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if segments_BT is None else segments_BT >= 0
        ids_BG, there_BG = (torch.cat(parts, 1) for parts in zip(*self._ngrams(tokens_BT, there_BT), strict=True))
        ids_BG = torch.where(there_BG, ids_BG, -1).sort(1).values
        first_BG = torch.cat([torch.ones_like(ids_BG[:, :1], dtype=torch.bool), ids_BG[:, 1:] != ids_BG[:, :-1]], 1)
        run_BG = first_BG.long().cumsum(1) - 1
        ones_BG = torch.ones_like(ids_BG, dtype=self.idf.dtype)
        counts_BG = torch.zeros_like(ones_BG).scatter_add(1, run_BG, ones_BG).gather(1, run_BG)
        return ids_BG.clamp(min=0), torch.where(first_BG & (ids_BG >= 0), counts_BG, 0.0)

    def _ngrams(self, tokens_BT: Tensor, there_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (places, whether they are there) of the runs of each length."""
        yield tokens_BT, there_BT
        hashed_BG = tokens_BT
        for n in range(2, min(self.ngrams, tokens_BT.shape[1]) + 1):
            hashed_BG = mixed(hashed_BG[:, :-1] * 0x9E3779B1 + tokens_BT[:, n - 1 :] + n)
            yield self.vocab + hashed_BG % self.buckets, there_BT[:, n - 1 :]

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Zero: every class equally likely."""
        nn.init.zeros_(p)

    def init_buffers(self) -> None:
        self.idf.fill_(1)

    def flops_per_example(self, spec: DataSpec) -> float:
        """Additions of the weights, forward and backward."""
        return 6.0 * (spec.seq_len or 1) * self.ngrams * self.weight.shape[1]

    def activations_per_example(self, spec: DataSpec) -> float:
        """Places, counts and weights of the n-grams."""
        return 6.0 * (spec.seq_len or 1) * self.ngrams
