"""Bookkeeping of the paged KV cache (Kwon et al. 2023, arXiv:2309.06180): which block belongs to whom, and which prompts it can be reused for.

A block holds the keys and values of `block_size` tokens. Blocks are counted: several answers may share one, which is then read only. A full block
is known by the hash of all tokens from the start of the text to its end; it stays in the pool when no answer uses it any more, and is taken
for other tokens when it is the one least recently used. Contains no tensor.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from numpy import asarray, uint32

__all__ = ["BlockPool", "chain_hashes"]


def chain_hashes(tokens: Sequence[int], block_size: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """Hashes of the full blocks of `tokens`: of each block's tokens and the hash before it. `known`: the first of them, computed before.

    128 bits of BLAKE2b: a text written to collide with another's would read that text's keys and values.
    """
    hashes = list(known)
    for at in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
        before = hashes[-1] if hashes else b""
        ids = asarray(tokens[at : at + block_size], dtype=uint32).tobytes()
        hashes.append(hashlib.blake2b(before + ids, digest_size=16).digest())
    return hashes


class BlockPool:
    """Blocks 1 to `total`; block 0 is never given out: what is not used points to it.

    >>> pool = BlockPool(3)
    >>> a = pool.take()
    >>> pool.register(a, b"start"); pool.release(a)
    >>> pool.find(b"start") == a, pool.used, pool.cached
    (True, 1, 0)
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total, 0, -1))
        self._references = [0] * (total + 1)
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # known by a hash, in no table; least recently used first

    @property
    def available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free) + len(self._unused)

    @property
    def used(self) -> int:
        """Blocks in some table."""
        return self.total - self.available

    @property
    def cached(self) -> int:
        """Blocks in no table, kept for texts that begin alike."""
        return len(self._unused)

    def references(self, block: int) -> int:
        """Return how many tables hold a block."""
        return self._references[block]

    def take(self) -> int:
        """Return a block for new tokens, of which the caller is the only owner. Raises `IndexError` if none is available."""
        if self._free:
            block = self._free.pop()
        elif self._unused:
            block, _ = self._unused.popitem(last=False)
            del self._by_hash[self._hash_of.pop(block)]
        else:
            raise IndexError("no block of the KV cache is available")
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one more owner of a block that is in some table."""
        assert self._references[block] > 0
        self._references[block] += 1

    def find(self, digest: bytes) -> int | None:
        """Return the block of these tokens, with one more owner; None if the pool does not have it."""
        block = self._by_hash.get(digest)
        if block is not None:
            self._unused.pop(block, None)
            self._references[block] += 1
        return block

    def register(self, block: int, digest: bytes) -> None:
        """Make a full block known by its hash, unless another block has the same tokens."""
        if digest not in self._by_hash and block not in self._hash_of:
            self._by_hash[digest], self._hash_of[block] = block, digest

    def release(self, block: int) -> None:
        """Count one owner less."""
        self._references[block] -= 1
        assert self._references[block] >= 0
        if self._references[block] == 0:
            if block in self._hash_of:
                self._unused[block] = None
            else:
                self._free.append(block)

    def forget(self) -> None:
        """Forget all hashes: the model has changed, and with it all keys and values."""
        self._free += self._unused
        self._unused.clear()
        self._by_hash.clear()
        self._hash_of.clear()
