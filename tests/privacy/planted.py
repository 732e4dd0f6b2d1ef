"""A private mechanism of thirty lines, written for these tests alone, and what can be wrong with it: no noise, noise for half the sensitivity,
the same noise in every step, clipping the mean instead of each example. Everything here is plain numpy.

Logistic regression of canaries that lie each in a coordinate of their own, so that their gradients go the whole way: clipped, summed,
noised, averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Bug = Literal["", "no-noise", "half-sensitivity", "reused-noise", "clipped-mean"]
BUGS: tuple[Bug, ...] = ("no-noise", "half-sensitivity", "reused-noise", "clipped-mean")


@dataclass
class Mechanism:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133): Poisson sampling at `rate`, clipping to `norm`, noise of `sigma` norms."""

    sigma: float
    rate: float
    steps: int
    norm: float = 1.0
    lr: float = 0.5
    bug: Bug = ""

    def train(self, x_NF: np.ndarray, y_N: np.ndarray, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """(weights F, the noised sum of every step): what whoever sees the model, or every update, sees."""
        rng, noise_rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
        weights, seen = np.zeros(x_NF.shape[1]), []
        expected = self.rate * len(x_NF)
        once = noise_rng.normal(size=len(weights))
        for _ in range(self.steps):
            there = rng.random(len(x_NF)) < self.rate
            x, y = x_NF[there], y_N[there]
            g_BF = (1 / (1 + np.exp(-x @ weights)) - y)[:, None] * x
            if self.bug == "clipped-mean":
                mean = g_BF.sum(0) / expected
                total = mean * min(1.0, self.norm / max(np.linalg.norm(mean), 1e-12)) * expected
            else:
                total = (g_BF * np.minimum(1, self.norm / np.maximum(np.linalg.norm(g_BF, axis=1), 1e-12))[:, None]).sum(0)
            z = once if self.bug == "reused-noise" else noise_rng.normal(size=len(weights))
            scale = {"no-noise": 0.0, "half-sensitivity": 0.5}.get(self.bug, 1.0)
            noised = total + z * scale * self.sigma * self.norm
            weights = weights - self.lr * noised / expected
            seen.append(noised)
        return weights, seen


def canaries(m: int, included: np.ndarray, background: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a data set: `background` examples in 10 coordinates in front, then each canary, 100 long, in its own. One that is not included is a
    row of nothing, whose gradient is zero: the same number of rows, rate and divisor in both worlds of its coin.
    """
    rng = np.random.default_rng([seed, 3])
    x = np.zeros((background + m, 10 + m))
    x[:background, :10] = rng.normal(size=(background, 10))
    there = np.flatnonzero(included)
    x[background + there, 10 + there] = 100.0
    y = np.concatenate([(x[:background, 0] > 0).astype(float), np.zeros(len(x) - background)])
    return x, y


def white_box(seen: list[np.ndarray], m: int) -> dict[str, np.ndarray]:
    """Scores of each canary from every update, as `GradientCanaries` keeps them."""
    at = np.stack(seen)[:, -m:]
    return {"sum": at.sum(0), "change": (np.diff(at, axis=0) ** 2).sum(0)}
