"""Composition of thousands of different steps: the distribution of the summed privacy loss, from its characteristic function.

dp-accounting composes different steps two at a time; with 10,000 that takes minutes. Here each step's loss is put on a lattice whose
spacing widens away from zero by connecting the dots (Doroshenko et al. 2022, arXiv:2207.04380): an interval's mass goes to its ends so
that the mass under both neighbours is kept, which only ever raises delta. The product of characteristic functions is then needed at those
few low frequencies where it is not zero yet (the Fourier accountant, Koskela et al. 2020, arXiv:1906.03049), a matrix product over all
steps at once, and one inverse transform gives the composed loss, wrapped in dp-accounting's own type. The mass of the tails beyond the
range is bounded by Chernoff and counted as delta.

Shapes: G different steps, K lattice points, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.privacy.accounting.release import Release

__all__ = ["compose_poisson", "spacing", "strength"]

Array = NDArray[np.float64]
WIDENING = 24
"""A lattice interval at distance d from zero is at most d / WIDENING wide: it adds below 0.03% to the loss's second moment."""
SLACK = 1e-3
"""How much the lattice may add to the summed variance of the loss, relative; epsilon grows by about half of it."""
TAIL = 1e-16
"""Mass that may lie outside the range on either side; it is counted as delta."""
SILENT = 1e-19
"""Magnitude of a characteristic function that counts as zero."""
CHUNK = 1024
"""Steps computed at once: limits memory to tens of MiB."""


def strength(z: Array, q: Array) -> Array:
    """About the standard deviation of one step's privacy loss: q sqrt(e^(1/z^2) - 1), never above that of the step without sampling."""
    return np.asarray(np.minimum(q * np.sqrt(np.expm1(np.minimum(1 / z**2, 300.0))), 1 / z + 0.5 / z**2), dtype=np.float64)


def spacing(z: Array, q: Array, count: Array, *, besides: float = 0.0, most: float = 1e-2, slack: float = SLACK) -> float:
    """Lattice spacing: the widest, up to `most`, at which connecting the dots adds at most `slack` to the summed variance of the loss.
    `besides`: variance of the loss of the other releases in the composition.
    """
    s = strength(z, q)
    whole = float(count @ s**2) + besides

    def added(h: float) -> float:
        return float(count @ np.minimum(0.8 * s * h, h * h / 6))

    low, high = 1e-9, most
    if added(high) <= slack * whole:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if added(middle) <= slack * whole else (low, middle)
    return low


def compose_poisson(releases: Sequence[Release], h: float | None = None) -> Any:
    """Composed privacy loss of Poisson-sampled Gaussian steps, all of rate below 1, as dp-accounting's `PrivacyLossDistribution`; an upper
    bound, for neighbors that differ by one example more or less. `h`: lattice spacing; default: chosen.
    """
    from dp_accounting.pld.pld_pmf import DensePLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    z = np.array([r.noise_multiplier for r in releases], dtype=np.float64)
    q = np.array([r.rate for r in releases], dtype=np.float64)
    count = np.array([r.count for r in releases], dtype=np.float64)
    h = spacing(z, q, count) if h is None else h
    lattice = _lattice(z, q, h)
    sides = [_composed(_Side(z, q, count, lattice, h, adds)) for adds in (False, True)]
    remove, add = (DensePLDPmf(h, lower, probabilities, infinite, True) for lower, probabilities, infinite in sides)
    return PrivacyLossDistribution(remove, add)


def _lattice(z: Array, q: Array, h: float) -> NDArray[np.int64]:
    """Lattice points in units of h: dense near zero, then wider, from the smallest loss to one exceeded by only 1e-20 of the mass."""
    x = 1 + 9.5 * z
    top = float(np.max(np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * z**2))))
    bottom = float(np.log1p(-q.max()))

    def out(limit: int) -> list[int]:
        points = [0]
        while points[-1] < limit:
            points.append(points[-1] + max(1, points[-1] // WIDENING))
        return points

    up, down = out(math.ceil(top / h)), out(math.ceil(-bottom / h) + 1)
    return np.array([-k for k in reversed(down[1:])] + up, dtype=np.int64)


@dataclass
class _Side:
    """All steps from the view of one neighbor: `adds` if the other one has the example, otherwise this one has."""

    z: Array
    q: Array
    count: Array
    lattice_K: NDArray[np.int64]
    h: float
    adds: bool

    def __post_init__(self) -> None:
        self.points_K = -self.lattice_K[::-1] if self.adds else self.lattice_K
        self.loss_K: Array = (self.lattice_K * self.h).astype(np.float64)
        self._kept: dict[int, tuple[Array, Array]] = {}

    def chunks(self) -> range:
        return range(0, len(self.z), CHUNK)

    def masses(self, start: int) -> tuple[Array, Array]:
        """(mass at each lattice point GK, mass of infinite loss G) of steps `start` to `start + CHUNK`."""
        if start not in self._kept:
            stop = start + CHUNK
            self._kept[start] = connect_dots(self.z[start:stop], self.q[start:stop], self.loss_K, adds=self.adds)
        return self._kept[start]

    def characteristic(self, frequencies_F: Array) -> NDArray[np.complex128]:
        """Characteristic function of the summed loss: the product over all steps; `frequencies_F` in radians per lattice unit."""
        angle_KF = np.outer(self.points_K, frequencies_F)
        cos_KF, sin_KF = np.cos(angle_KF), np.sin(angle_KF)
        total = np.ones(len(frequencies_F), dtype=np.complex128)
        for start in self.chunks():
            p_GK, _ = self.masses(start)
            value_GF = (p_GK @ cos_KF).astype(np.complex128)
            value_GF.imag = p_GK @ sin_KF
            n = self.count[start : start + CHUNK]
            once = n == 1
            total *= np.multiply.reduce(value_GF[once], axis=0)  # underflow to 0 is fine
            if not once.all():
                value_GF = value_GF[~once]
                total *= np.exp(n[~once] @ np.log(np.where(value_GF == 0, 1e-300, value_GF)))
        return total

    def log_moments(self, orders: Array) -> Array:
        """Sum over all steps of log E[e^(order loss)], for each order (per unit of loss)."""
        weight = np.exp(np.minimum(np.outer(self.points_K * self.h, orders), 700.0))
        total = np.zeros(len(orders))
        for start in self.chunks():
            p_GK, _ = self.masses(start)
            with np.errstate(divide="ignore", over="ignore"):
                total += self.count[start : start + CHUNK] @ np.log(p_GK @ weight)
        return total

    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the summed loss."""
        mean = variance = 0.0
        loss = self.points_K * self.h
        for start in self.chunks():
            p_GK, _ = self.masses(start)
            n = self.count[start : start + CHUNK]
            first = p_GK @ loss
            mean += float(n @ first)
            variance += float(n @ (p_GK @ loss**2 - first**2))
        return mean, math.sqrt(max(variance, 1e-300))

    def infinite(self) -> float:
        """Probability that the loss of some step is infinite."""
        return float(
            -np.expm1(sum(float(self.count[s : s + CHUNK] @ np.log1p(-np.minimum(self.masses(s)[1], 0.5))) for s in self.chunks()))
        )


def connect_dots(z: Array, q: Array, loss_K: Array, *, adds: bool) -> tuple[Array, Array]:
    """One Poisson-sampled Gaussian step on a lattice of losses: (masses GK, infinite mass G).

    With phi_0 = N(0, z^2), phi_1 = N(1, z^2): the neighbor with the example sees (1-q) phi_0 + q phi_1, the one without phi_0, and at x the
    loss is l(x) = log(1 - q + q e^((2x-1)/(2z^2))). `loss_K` rises; of `adds`, the lattice is its mirror image.
    """
    from scipy.special import log_ndtr, ndtr

    z_G1, q_G1 = z[:, None], q[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        # x at which l(x) is a lattice point: log((e^l - (1 - q)) / q), without cancellation for small l
        inside = (np.expm1(loss_K)[None, :] + q_G1) / q_G1
        x_GK = np.where(inside > 0, z_G1**2 * np.log(np.maximum(inside, 1e-300)) + 0.5, -np.inf)
    s0, s1 = ndtr(-x_GK / z_G1), ndtr((1 - x_GK) / z_G1)  # mass above: exact to its last digit in the tail that counts
    m0, m1 = s0[:, :-1] - s0[:, 1:], s1[:, :-1] - s1[:, 1:]
    mixed = (1 - q_G1) * m0 + q_G1 * m1
    low, high = loss_K[:-1], loss_K[1:]
    width = -np.expm1(low - high)
    p_GK = np.zeros_like(x_GK)
    if not adds:
        upper = np.clip((mixed - m0 * np.exp(low)) / width, 0.0, mixed)
        p_GK[:, 1:] += upper
        p_GK[:, :-1] += mixed - upper
        top = (1 - q) * s0[:, -1] + q * s1[:, -1]
        with np.errstate(over="ignore"):
            kept = np.minimum(top, np.exp(loss_K[-1] + log_ndtr(-x_GK[:, -1] / z)))
        p_GK[:, -1] += kept
        p_GK[:, 0] += ((1 - q_G1) * (1 - s0[:, :1]) + q_G1 * (1 - s1[:, :1]))[:, 0]  # below the lowest point: raised to it
        return p_GK, top - kept
    upper = np.clip((m0 - mixed * np.exp(-high)) / width, 0.0, m0)  # towards -low, the greater loss of this side
    p_GK[:, :-1] += upper
    p_GK[:, 1:] += m0 - upper
    p_GK[:, -1] += s0[:, -1]  # losses below -loss_K[-1]: raised to it
    p_GK[:, 0] += 1 - s0[:, 0]  # none: l(x) is never below the lowest point
    return p_GK[:, ::-1], np.zeros(len(z))


def _composed(side: _Side) -> tuple[int, Array, float]:
    """(lowest loss in lattice units, masses from there on, infinite mass) of the sum over all steps."""
    from scipy.fft import irfft, next_fast_len

    mean, std = side.spread()
    h = side.h
    orders = np.geomspace(0.05, 60, 32) / std
    log_tail = math.log(TAIL)
    most = float(np.min((side.log_moments(orders) - log_tail) / orders))
    least = float(np.max((log_tail - side.log_moments(-orders)) / orders))
    count = side.count.sum()
    lower = max(math.floor(min(least, mean - std) / h), int(side.points_K[0] * count))
    upper = min(math.ceil(max(most, mean + std) / h), int(side.points_K[-1] * count))
    size = next_fast_len(upper - lower + 1, real=True)
    phi = _low_frequencies(side, size)
    spectrum = np.zeros(size // 2 + 1, dtype=np.complex128)
    spectrum[: len(phi)] = phi * np.exp(-2j * np.pi * lower / size * np.arange(len(phi)))  # shifted: entry 0 is the lowest loss
    masses = irfft(np.conj(spectrum), size)
    return lower, np.maximum(masses, 0.0), min(1.0, side.infinite() + 2 * TAIL)


def _low_frequencies(side: _Side, size: int) -> NDArray[np.complex128]:
    """Characteristic function of the summed loss at frequencies 0, 1, ... of a transform of `size`, up to where it vanishes; higher frequencies
    are sampled, and all are computed if they do not vanish.
    """
    last, block = size // 2, 48
    parts: list[NDArray[np.complex128]] = []
    done = 0
    while done <= last:
        j = np.arange(done, min(last + 1, done + block))
        parts.append(side.characteristic(2 * np.pi * j / size))
        done += len(j)
        if done <= last and np.abs(parts[-1][-8:]).max() < SILENT:
            beyond = np.unique(np.geomspace(done, last, 24).astype(np.int64))
            if np.abs(side.characteristic(2 * np.pi * beyond / size)).max() < SILENT:
                break
        block = min(2 * block, 4096) if done > 500 else block
    return np.concatenate(parts)
