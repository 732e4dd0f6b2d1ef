"""Counter-based random bits: every draw is a pure function of (seed, purpose, numbers), so nothing has a state to save.

The mixing function is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators"). Good enough for data order and augmentation; not for cryptography: privacy noise must not come from here.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["bits", "key", "normal", "uniform"]

_GAMMA, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def key(seed: int, *parts: int | str) -> int:
    """Return 64 bits that stand for (seed, parts); another order or another word gives unrelated bits."""
    state = _mix(seed & _MASK)
    for part in parts:
        number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little") if isinstance(part, str) else part
        state = _mix(state ^ _mix(number & _MASK))
    return state


def _mix(z: int) -> int:
    z = (z + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _M1) & _MASK
    z = ((z ^ (z >> 27)) * _M2) & _MASK
    return z ^ (z >> 31)


def bits(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each counter (uint64, any shape but 0-d: numpy warns when scalars wrap)."""
    z = mix(counter ^ np.uint64(_mix(key)))  # mixed first: keys that differ in one bit must not visit the same numbers
    return mix(z)  # twice: counters are small consecutive numbers, and one pass leaves weak correlations


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of the 64-bit numbers."""
    z = z + np.uint64(_GAMMA)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_M1)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_M2)
    z ^= z >> np.uint64(31)
    return z


def uniform(key: int, counter: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Uniform in [0, 1) with 24 bits, so that float32 never rounds up to 1."""
    drawn: NDArray[np.float32] = (bits(key, counter) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return drawn


def normal(key: int, counter: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Standard normal (Box & Muller 1958), one 64-bit draw each: 32 bits for the radius, 32 for the angle."""
    z = bits(key, counter)
    radius = np.sqrt(-2.0 * np.log(((z >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)))
    angle = (z & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2**-32)
    drawn: NDArray[np.float32] = radius * np.cos(angle)
    return drawn
