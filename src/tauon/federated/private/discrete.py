"""The discrete Gaussian: integers k with probability proportional to exp(-k^2 / (2 sigma^2)) (Canonne, Kamath & Steinke 2020, arXiv:2004.00010).

Algorithm 3 there (rejection from the discrete Laplace distribution of algorithm 2), for many numbers at once, from ChaCha20 under a new 256-bit key. A coin of
probability exp(-gamma) compares 63 random bits with a float64: all probabilities are correct to a relative 2^-44, in the tails, too, as large gammas
are products of coins. So an adversary's odds change by at most a factor of exp(d 2^-43) for d numbers (`sampler_slack`); no low bits of a floating-point
number leave the site (Mironov 2012).
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from tauon.federated.secagg.masks import keystream

__all__ = ["discrete_gaussian", "sampler_slack"]

Integers = NDArray[np.int64]
Bits = NDArray[np.uint64]

ONE_IN_E = np.uint64(round(math.exp(-1) * 2**63))
LARGEST = 2.0**40
"""Standard deviation at most, so that squares of integers are exact enough in float64."""
CHUNK = 1 << 18


def sampler_slack(numbers: int) -> float:
    """How much the sampler's rounding adds to epsilon at most, for so many numbers."""
    return numbers * 2.0**-43


class _Bits:
    """Random 64-bit words from ChaCha20."""

    def __init__(self, key: bytes) -> None:
        self._key, self._used = key, 0

    def draw(self, count: int) -> Bits:
        """A stream of its own for each call: the key is hashed with a counter."""
        import hashlib

        key = hashlib.blake2b(self._used.to_bytes(8, "little"), key=self._key, digest_size=32).digest()
        self._used += 1
        return keystream(key, 2 * count).view("<u8")


def discrete_gaussian(sigma: float, count: int, *, key: bytes | None = None) -> Integers:
    """Return `count` numbers with parameter `sigma`.

    Args:
        sigma: above 0. The standard deviation is at most this, and nearly equal from 1 on.
        count: how many.
        key: 32 bytes, for tests; None: from the operating system.

    >>> discrete_gaussian(2.5, 3, key=bytes(32)).dtype
    dtype('int64')
    """
    if not 0 < sigma <= LARGEST:
        raise ValueError(f"got sigma {sigma:g}, expected above 0 and at most {LARGEST:g}")
    bits = _Bits(os.urandom(32) if key is None else key)
    out = np.empty(count, dtype=np.int64)
    for at in range(0, count, CHUNK):
        _fill(out[at : at + CHUNK], sigma, bits)
    return out


def _fill(out: Integers, sigma: float, bits: _Bits) -> None:
    done = 0
    power = max(0, round(math.log2(sigma)))  # scale t of the Laplace distribution: any gives the same result, near sigma the fastest
    while done < len(out):
        z = _discrete_laplace(power, int(1.45 * (len(out) - done)) + 64, bits)
        gamma = (np.abs(z).astype(np.float64) - sigma**2 / 2**power) ** 2 / (2 * sigma**2)
        z = z[_coins(gamma, bits)]
        took = min(len(z), len(out) - done)
        out[done : done + took] = z[:took]
        done += took


def _discrete_laplace(power: int, about: int, bits: _Bits) -> Integers:
    """About `about` numbers with probability proportional to exp(-|k| / t), t = 2^power (algorithm 2, with s = 1)."""
    tries = int(about / 0.62) + 16
    u = (bits.draw(tries) & np.uint64(2**power - 1)).astype(np.int64)
    u = u[_coins(u / 2.0**power, bits)]
    v = np.zeros(len(u), dtype=np.int64)
    going = np.arange(len(u))
    while len(going):
        going = going[(bits.draw(len(going)) >> np.uint64(1)) < ONE_IN_E]
        v[going] += 1
    x = u + (v << power)
    minus = (bits.draw(len(x)) & np.uint64(1)).astype(bool)
    keep = ~(minus & (x == 0))
    signed: Integers = np.where(minus, -x, x)[keep]
    return signed


def _coins(gamma: NDArray[np.float64], bits: _Bits) -> NDArray[np.bool_]:
    """Which coins of probability exp(-gamma) fall on heads: one for the fraction, and one of 1/e for each whole."""
    whole = np.floor(gamma)
    limit = (np.exp(whole - gamma) * 2.0**63).astype(np.uint64)
    heads = (bits.draw(len(gamma)) >> np.uint64(1)) < limit
    left = np.flatnonzero(heads & (whole >= 1))
    turns = whole[left]
    while len(left):
        good = (bits.draw(len(left)) >> np.uint64(1)) < ONE_IN_E
        heads[left[~good]] = False
        turns = turns - 1
        keep = good & (turns >= 1)
        left, turns = left[keep], turns[keep]
    return heads
