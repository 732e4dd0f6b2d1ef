"""Which sites take part in a round, as the accountant assumes it: each by a coin of its own (Poisson), or a fixed number without replacement.

A function of a secret key, the round and the name: to a reader of the models, who took part must be as secret as the noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tauon.federated.private.settings import UpdatePrivacy

__all__ = ["choose_sites"]


def choose_sites(names: Sequence[str], privacy: UpdatePrivacy, key: bytes, round: int, attempt: int = 0) -> list[str]:
    """Return the sites of a round, sorted. With Poisson sampling it may be few, or none: then the round's result is noise alone, and it is released
    as it is; another sample instead would be another mechanism.

    Args:
        names: the sites that can be reached, of the N that the settings count. Of a fixed size is the share of these.
        privacy: sampling and rate.
        key: secret, 32 bytes.
        round: number of the round.
        attempt: samples of this round before this one, for a round of which nothing was released.

    >>> p = UpdatePrivacy("central", 1.0, 1.0, sites=4, sampling="fixed-size", rate=0.5)
    >>> len(choose_sites(["a", "b", "c", "d"], p, bytes(32), round=1))
    2
    """

    def draw(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{round}/{attempt}/{name}".encode(), key=key, digest_size=16).digest(), "big")

    if privacy.sampling == "full":
        return sorted(names)
    if privacy.sampling == "poisson":
        return sorted(name for name in names if draw(name) < privacy.rate * 2**128)
    return sorted(sorted(names, key=draw)[: int(privacy.expected(len(names)))])
