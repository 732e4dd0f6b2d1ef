"""Texts as words, and sequences of n words as 64-bit numbers: what shingles and n-grams are made of.

Words are compared in lower case, without punctuation, after NFKC. In scripts that write no blanks each character is a word. The numbers are the
same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["WordHashes", "mixed", "ngrams", "words_of"]

_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u3190-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, and the characters of Chinese and Japanese."""
_WORD = re.compile(rf"[{_NO_BLANKS}]|[^\W{_NO_BLANKS}]+")
_ASCII = str.maketrans({chr(c): " " for c in range(128) if not (chr(c).isalnum() or chr(c) == "_")})
_SLICE = 1 << 20
"""Characters of a text whose words are in memory at once."""
_CUT = re.compile(r"[ \n](?=[A-Za-z0-9])")
_LOWER = bytes(c + 32 if 65 <= c <= 90 else c if c >= 128 or chr(c).isalnum() or c == 95 else 0 for c in range(256))
"""ASCII in lower case; what is not in a word becomes 0."""
_BLOCK = 1 << 16
"""Bytes whose words are hashed at once."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)
"""Of eight bytes, the first n."""


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared.

    >>> words_of("Hello, World! 你好")
    ['hello', 'world', '你', '好']
    """
    if text.isascii():
        return text.lower().translate(_ASCII).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _slices(text: str) -> Iterator[str]:
    """Yield a long text in slices that are cut between words."""
    at = 0
    while len(text) - at > 2 * _SLICE:
        found = _CUT.search(text, at + _SLICE)
        if found is None:
            break
        yield text[at : found.start()]
        at = found.start()
    yield text[at:]


class WordHashes:
    """Texts to the 64-bit hashes of their words, which are made eight bytes at a time, all words of a block at once."""

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return (hashes of the words of all texts in a row, words of each text). A text without words has one, made of its characters."""
        hashes: list[NDArray[np.uint64]] = []
        counts = np.zeros(len(texts), np.int64)
        block: list[bytes] = []
        owners: list[int] = []
        size = 0
        for i, text in enumerate(texts):
            for piece in _slices(text) if len(text) > 2 * _SLICE else (text,):
                raw = piece.encode() if piece.isascii() else " ".join(words_of(piece)).encode("utf-8", "surrogatepass")
                if size + len(raw) + 1 > _BLOCK:
                    self._flush(block, owners, hashes, counts)
                    size = 0
                block.append(raw)
                owners.append(i)
                size += len(raw) + 1
        self._flush(block, owners, hashes, counts)
        whole = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        bare = np.flatnonzero(counts == 0)
        if len(bare):
            own = [
                hashlib.blake2b(b"\0" + texts[i].strip().encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in bare.tolist()
            ]
            whole = np.insert(whole, (np.cumsum(counts) - counts)[bare], np.frombuffer(b"".join(own), "<u8").astype(np.uint64))
            counts[bare] = 1
        return whole, counts

    def _flush(self, block: list[bytes], owners: list[int], hashes: list[NDArray[np.uint64]], counts: NDArray[np.int64]) -> None:
        """Hash the words of a block of texts, and empty it."""
        if not block:
            return
        lengths = np.array([len(raw) + 1 for raw in block])
        data = np.frombuffer((b" ".join(block) + b" " * 8).translate(_LOWER), np.uint8)
        block.clear()
        inside = data != 0
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if inside[0]:
            edges = np.append(0, edges)
        starts, ends = edges[::2], edges[1::2]  # the end is blank
        hashes.append(_hashed(data, starts, ends - starts))
        found = np.diff(np.searchsorted(starts, np.append(0, np.cumsum(lengths))))
        np.add.at(counts, np.array(owners), found)
        owners.clear()


def _hashed(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of each word: eight bytes at a time are mixed in. Seven bytes follow the last word."""
    eights = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    out = mixed((eights[starts] & _MASKS[np.minimum(lengths, 8)]) + lengths.astype(np.uint64) * _ODD)
    left = np.flatnonzero(lengths > 8)
    for done in range(8, 1 << 30, 8):
        if not len(left):
            return out
        out[left] = mixed((eights[starts[left] + done] & _MASKS[np.minimum(lengths[left] - done, 8)]) + out[left] * _ODD)
        left = left[lengths[left] > done + 8]
    raise AssertionError


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values with all bits mixed (splitmix64's last steps), a bijection. Changes `values` in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _factors(n: int) -> NDArray[np.uint64]:
    """Return n odd numbers, one for each place of an n-gram."""
    return mixed(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def ngrams(words: NDArray[np.uint64], counts: NDArray[np.int64], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return (hash of each sequence of n words, whose high bits are the best mixed; text of each). A text of fewer words gives one, of all its words.

    Args:
        words: hashes of the words of all texts in a row.
        counts: words of each text, at least 1.
        n: words per n-gram.
    """
    factors = _factors(n)
    ends = np.cumsum(counts)
    starts = ends - counts
    out: NDArray[np.uint64] = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for place in range(n):
        out += words[place : place + len(out)] * factors[place]
    long = counts >= n
    fits = np.ones(len(words), bool)
    for shift in range(1, n):  # n-grams that begin in the last words of a text would reach into the next
        at = ends - shift
        fits[at[at >= starts]] = False
    at = np.flatnonzero(fits[: len(out)])
    whose = np.repeat(np.arange(len(counts)), np.where(long, counts - n + 1, 0))
    values = out[at]
    few = np.flatnonzero(~long)
    if not len(few):
        return values, whose
    within = np.concatenate([np.arange(c) for c in counts[few].tolist()])
    flat = np.repeat(starts[few], counts[few]) + within
    sums = np.add.reduceat(words[flat] * factors[within], np.cumsum(counts[few]) - counts[few])
    values = np.concatenate([values, mixed(sums + counts[few].astype(np.uint64))])
    whose = np.concatenate([whose, few])
    order = np.argsort(whose, kind="stable")
    return values[order], whose[order]
