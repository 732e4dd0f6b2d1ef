"""Shamir's secret sharing of 32-byte secrets, with pycryptodome's `Crypto.Protocol.SecretSharing` (Shamir 1979).

The library shares 16 bytes, an element of GF(2^128) modulo 1 + x + x^2 + x^7 + x^128. A secret is two such halves, each with a polynomial of its
own, whose coefficients are drawn independently: fewer than `threshold` shares of both halves are uniformly random, whatever the secret is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations

from tauon.federated.secagg.session import SecureAggregationError

__all__ = ["combine", "recover", "split"]

HALF = 16
TRIES = 64
"""Subsets of the shares that are drawn, if some are wrong and there are too many subsets for all."""


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return `count` shares of 32 bytes, of which any `threshold` give the secret back. Share i belongs to point i + 1.

    >>> shares = split(bytes(range(32)), 2, 3)
    >>> combine({1: shares[0], 3: shares[2]}) == bytes(range(32))
    True
    """
    from Crypto.Protocol.SecretSharing import Shamir

    if len(secret) != 2 * HALF or not 1 <= threshold <= count:
        raise ValueError(f"a secret of {len(secret)} bytes in {count} shares with threshold {threshold}")
    halves: Sequence[list[tuple[int, bytes]]] = [Shamir.split(threshold, count, part, False) for part in (secret[:HALF], secret[HALF:])]
    return [first + second for (_, first), (_, second) in zip(*halves, strict=True)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of exactly `threshold` shares, by their points. Fewer, or wrong ones, give another secret: see `recover`."""
    from Crypto.Protocol.SecretSharing import Shamir

    return b"".join(
        bytes(Shamir.combine([(point, share[half : half + HALF]) for point, share in shares.items()], False)) for half in (0, HALF)
    )


def _subsets(points: Sequence[int], threshold: int) -> Iterable[Sequence[int]]:
    """Subsets to try: all of few. Of many, those without a piece of the points in turn, so that one wrong share never counts in each, then some by chance."""
    if math.comb(len(points), threshold) <= TRIES:
        return combinations(points, threshold)
    ring, draw = [*points, *points], random.Random(0)
    pieces = (ring[at : at + threshold] for at in range(len(points)))
    return chain(pieces, (draw.sample(points, threshold) for _ in range(TRIES)))


def recover(shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool], whose: str) -> bytes:
    """Return the secret for which `is_right` holds, from subsets of the shares: a site may have sent a wrong one.

    Raises `SecureAggregationError` if no subset that was tried gives it.
    """
    for subset in _subsets(sorted(shares), threshold):
        secret = combine({point: shares[point] for point in subset})
        if is_right(secret):
            return secret
    raise SecureAggregationError(f"the shares of a secret of {whose} do not give it back ({len(shares)} shares, threshold {threshold})")
