"""Who masks with whom, and how many shares give a secret back (Bell, Bonawitz, Gascón, Lepoint & Raykova 2020, CCS, section 4).

Few sites: every pair. Many: each site has k neighbours on a ring in an order that follows from the keys of all sites, so that no site, and no
coordinator before it has all keys, can choose its neighbours. k is the smallest even number at which, except with the probabilities below,
no site has a threshold of corrupt neighbours, the honest sites stay connected, and every secret can be reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tauon.federated.secagg.session import digest_of, majority

__all__ = ["degree", "neighbours"]

CORRUPT, LOST = 0.2, 0.3
"""Share of the sites that work with the coordinator, and that vanish between the exchange of shares and the unmasking."""
SECURITY, CORRECTNESS = 40, 30
"""Bits: the probability of a failure is below 2 to minus these, for all sites together."""


@lru_cache(maxsize=64)
def degree(sites: int, share: float = 0.5) -> int:
    """Number of neighbours of each site; a share above `share` of them gives its secrets back.

    >>> degree(10), degree(1000)
    (9, 222)
    """
    most = sites - 1
    corrupt, lost = math.floor(CORRUPT * sites), math.ceil(LOST * sites)
    for k in range(2, most, 2):
        threshold = majority(k, share)
        if math.log2(sites) + k / 2 * math.log2(CORRUPT + LOST) > -SECURITY:
            continue
        if _log2_tail(most, corrupt, k, threshold) + math.log2(sites) > -SECURITY:
            continue
        if _log2_tail(most, lost, k, k - threshold + 1) + math.log2(sites) <= -CORRECTNESS:
            return k
    return most


def _log2_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """log2 of the probability that `least` or more of `drawn` sites, without replacement, are among the `marked`."""

    def log_choose(n: int, m: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)

    top = min(marked, drawn)
    low = max(least, drawn - (population - marked), 0)
    if low > top:
        return -math.inf
    logs = [log_choose(marked, j) + log_choose(population - marked, drawn - j) - log_choose(population, drawn) for j in range(low, top + 1)]
    peak = max(logs)
    return (peak + math.log(sum(math.exp(x - peak) for x in logs))) / math.log(2)


def neighbours(names: Sequence[str], k: int, seed: bytes) -> dict[str, tuple[str, ...]]:
    """The neighbours of each site, sorted: all others, or the k / 2 on either side of it on a ring in the order of hashes under `seed`.

    >>> ring = neighbours(["a", "b", "c", "d", "e"], 2, b"seed")
    >>> all(name in ring[other] for name in ring for other in ring[name])
    True
    """
    if k >= len(names) - 1:
        return {name: tuple(sorted(set(names) - {name})) for name in names}
    ring = sorted(names, key=lambda name: digest_of([seed, name]))
    offsets = [o for o in range(-(k // 2), k // 2 + 1) if o]
    return {name: tuple(sorted(ring[(at + o) % len(ring)] for o in offsets)) for at, name in enumerate(ring)}
