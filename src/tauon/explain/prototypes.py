"""Prototypes and criticisms of a set of examples: those that summarize it, and those that the prototypes describe worst (MMD-critic: Kim, Khanna
& Koyejo 2016, NeurIPS 29).

Works on an embedding (N, D): a model's last hidden layer, or standardised columns. Prototypes are chosen greedily so that their maximum mean
discrepancy (MMD) to all examples is smallest; criticisms where the witness function is largest, apart from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.metrics.intervals import generator

__all__ = ["Prototypes", "find_prototypes", "kernel_matrix", "mmd_squared"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Prototypes:
    """Row numbers, the most telling first."""

    prototypes: tuple[int, ...]
    criticisms: tuple[int, ...]
    nearest: tuple[int, ...]
    """How many examples are nearest to each prototype."""
    mmd: tuple[float, ...]
    """Squared discrepancy after each prototype; 0 is a perfect summary."""
    random_mmd: float
    """Mean of as many rows drawn at random: what the prototypes must beat."""
    gamma: float
    rows_used: int

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def kernel_matrix(embedding_ND: Matrix, gamma: float | None = None) -> tuple[Matrix, float]:
    """Return exp(-gamma |x - y|^2), (N, N), and gamma; by default 1 / the median squared distance between different rows."""
    squares = (embedding_ND**2).sum(1)
    distance_NN = np.maximum(squares[:, None] + squares[None] - 2 * embedding_ND @ embedding_ND.T, 0)
    np.fill_diagonal(distance_NN, 0)
    if gamma is None:
        apart = distance_NN[distance_NN > 1e-12 * max(float(squares.max(initial=0.0)), 1e-300)]
        gamma = 1 / float(np.median(apart)) if len(apart) else 1.0
    kernel: Matrix = np.exp(-gamma * distance_NN)
    return kernel, gamma


def mmd_squared(kernel_NN: Matrix, chosen: NDArray[np.int64]) -> float:
    """Return the squared maximum mean discrepancy between all rows and the chosen ones."""
    return float(kernel_NN.mean() - 2 * kernel_NN[:, chosen].mean() + kernel_NN[np.ix_(chosen, chosen)].mean())


def find_prototypes(
    embedding_ND: Matrix, count: int = 5, criticisms: int = 5, *, gamma: float | None = None, most_rows: int = 4000, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Prototypes:  # fmt: skip
    """Choose `count` prototypes and as many criticisms as asked for; fewer where there are fewer rows.

    The kernel needs N^2 numbers: of more than `most_rows` rows a sample of that size is used. DataError for no row, or numbers that are not
    finite.
    """
    embedding_ND = np.asarray(embedding_ND, np.float64)
    if embedding_ND.ndim != 2 or not len(embedding_ND):
        raise DataError(f"the embedding has shape {embedding_ND.shape}, expected (rows, size) with at least one row")
    if not np.isfinite(embedding_ND).all():
        raise DataError(f"the embedding of row {int(np.flatnonzero(~np.isfinite(embedding_ND).all(1))[0])} is not finite")
    rows = np.arange(len(embedding_ND))
    if len(rows) > most_rows:
        rows = np.sort(generator(seed, "rows of prototypes").permutation(len(rows))[:most_rows])
    kernel_NN, gamma = kernel_matrix(embedding_ND[rows], gamma)
    chosen, path = _greedy(kernel_NN, min(count, len(rows)), progress)
    rng = generator(seed, "random prototypes")
    random = [mmd_squared(kernel_NN, rng.permutation(len(rows))[: len(chosen)]) for _ in range(20)]
    critics = _criticisms(kernel_NN, chosen, min(criticisms, len(rows) - len(chosen)))
    nearest = np.bincount(kernel_NN[:, chosen].argmax(1), minlength=len(chosen)).tolist() if chosen else []
    return Prototypes(
        tuple(int(rows[i]) for i in chosen), tuple(int(rows[i]) for i in critics), tuple(nearest), tuple(path),
        float(np.mean(random)) if chosen else 0.0, gamma, len(rows),
    )  # fmt: skip


def _greedy(kernel_NN: Matrix, count: int, progress: Callable[[int, int], None] | None) -> tuple[list[int], list[float]]:
    """Add the row that makes the discrepancy smallest, again and again. (Only the terms that depend on it are computed.)"""
    mean_N, diagonal_N, all_mean = kernel_NN.mean(1), kernel_NN.diagonal(), float(kernel_NN.mean())
    inside_N = np.zeros(len(kernel_NN))  # sum of the kernel to the chosen rows
    chosen: list[int] = []
    path: list[float] = []
    to_all, among = 0.0, 0.0
    for size in range(1, count + 1):
        score_N = -2 * (to_all + mean_N) / size + (among + 2 * inside_N + diagonal_N) / size**2
        score_N[chosen] = np.inf
        best = int(score_N.argmin())
        to_all, among = to_all + float(mean_N[best]), among + float(2 * inside_N[best] + diagonal_N[best])
        inside_N = inside_N + kernel_NN[:, best]
        chosen.append(best)
        path.append(max(0.0, all_mean + float(score_N[best])))
        if progress is not None:
            progress(size, count)
    return chosen, path


def _criticisms(kernel_NN: Matrix, chosen: list[int], count: int) -> list[int]:
    """Rows with the largest |witness|, greedily, plus the log determinant of their kernel, which keeps them apart."""
    if not chosen or count <= 0:
        return []
    witness_N = np.abs(kernel_NN.mean(1) - kernel_NN[:, chosen].mean(1))
    left_N = kernel_NN.diagonal().copy()  # what the chosen criticisms do not explain: a Cholesky decomposition, one column at a time
    columns = np.zeros((len(kernel_NN), 0))
    critics: list[int] = []
    for _ in range(count):
        score_N = witness_N + np.log(np.maximum(left_N, 1e-12))
        score_N[chosen + critics] = -np.inf
        best = int(score_N.argmax())
        column = (kernel_NN[:, best] - columns @ columns[best]) / np.sqrt(max(left_N[best], 1e-12))
        columns = np.concatenate([columns, column[:, None]], axis=1)
        left_N = left_N - column**2
        critics.append(best)
    return critics
