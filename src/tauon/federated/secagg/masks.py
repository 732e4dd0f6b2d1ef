"""Masks: the ChaCha20 keystream (RFC 8439) under a 256-bit key, as uint32, added modulo 2^32.

Every number of a mask depends on all 256 bits of its key. A key is used for one mask, so the nonce and the first counter are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Words", "add_mask", "keystream"]

Words = NDArray[np.uint32]

PIECE = 1 << 17
"""Bytes of the stream made at once: they stay in the processor's cache until they are added."""
_ZEROS = bytes(PIECE)


def keystream(key: bytes, count: int) -> Words:
    """Return `count` words of the stream, little-endian.

    >>> [hex(word) for word in keystream(bytes(32), 2)]
    ['0xade0b876', '0x903df1a0']
    """
    words = np.zeros(count, dtype="<u4")
    add_mask(words, key)
    return words


def add_mask(vector: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add the mask of `key` to `vector` in place, or subtract it."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    if len(key) != 32:
        raise ValueError(f"the key of a mask has {len(key)} bytes, expected 32")
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    stream = bytearray(PIECE)
    words = np.frombuffer(stream, dtype="<u4")
    combine = np.subtract if subtract else np.add
    for at in range(0, len(vector), len(words)):
        part = vector[at : at + len(words)]
        encryptor.update_into(_ZEROS, stream)
        combine(part, words[: len(part)], out=part)
