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

__all__ = ["WordHashes", "mixed", "ngrams", "windows", "words_of"]

_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u3190-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, and the characters of Chinese and Japanese."""
_WORD = re.compile(rf"[{_NO_BLANKS}]|[^\W{_NO_BLANKS}]+")
_ASCII = str.maketrans({chr(c): " " for c in range(128) if not (chr(c).isalnum() or chr(c) == "_")})
_SLICE = 1 << 20
"""Characters of a text whose words are in memory at once."""
_CUT = re.compile(r"[ \n](?=[A-Za-z0-9])")
_BLOCK = 1 << 18
"""Bytes whose words are hashed at once."""
_REUSED = 1 << 24
"""Bytes of a mapped array that is made and freed once, untouched: glibc then takes arrays up to this size from its heap, and keeps twice as much there
(mallopt(3), M_MMAP_THRESHOLD), so that each block of texts uses the memory of the last. New pages for each cost a third of the time."""
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

    def __init__(self) -> None:
        np.empty(_REUSED, np.uint8)

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return (hashes of the words of all texts in a row, words of each text). A text without words has one, made of its characters."""
        hashes: list[NDArray[np.uint64]] = []
        sizes: list[NDArray[np.int64]] = []  # words of each piece
        owners: list[int] = []
        block: list[str] = []
        size = 0
        for i, text in enumerate(texts):
            for piece in _slices(text) if len(text) > 2 * _SLICE else (text,):
                size += len(piece) + 1
                if size > _BLOCK and block:
                    _block(block, hashes, sizes)
                    block, size = [], len(piece) + 1
                block.append(piece if piece.isascii() else " ".join(words_of(piece)))
                owners.append(i)
        if not owners:
            return np.empty(0, np.uint64), np.zeros(0, np.int64)
        _block(block, hashes, sizes)
        whole, counts = np.concatenate(hashes), np.zeros(len(texts), np.int64)
        np.add.at(counts, owners, np.concatenate(sizes))
        bare = np.flatnonzero(counts == 0)
        if len(bare):
            own = [
                hashlib.blake2b(b"\0" + texts[i].strip().encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in bare.tolist()
            ]
            whole = np.insert(whole, (np.cumsum(counts) - counts)[bare], np.frombuffer(b"".join(own), "<u8").astype(np.uint64))
            counts[bare] = 1
        return whole, counts


def _block(pieces: Sequence[str], to: list[NDArray[np.uint64]], counts: list[NDArray[np.int64]]) -> None:
    """Append the hashes of the words of all pieces in a row, and the words of each piece."""
    ascii_ = all(map(str.isascii, pieces))
    if ascii_:
        joined = " ".join(("", *pieces, " " * 16)).encode()
        sizes = list(map(len, pieces))
    else:
        raw = [piece.encode("utf-8", "surrogatepass") for piece in pieces]
        joined = b" ".join((b"", *raw, b" " * 16))
        sizes = list(map(len, raw))
    data, blank = _lower(joined, ascii_)
    blanks = np.flatnonzero(blank[:-15])
    starts = blanks[:-1] + 1
    lengths = blanks[1:] - starts
    hashes = _hashed(data, starts, lengths)
    edges = np.searchsorted(blanks, np.cumsum(np.array([0, *sizes]) + 1) - 1)
    real = np.flatnonzero(lengths > 0)
    if len(real) < len(lengths):  # nothing is between two blanks in a row
        hashes, edges = hashes.take(real), np.searchsorted(real, edges)
    to.append(hashes)
    counts.append(np.diff(edges))


def _lower(joined: bytes, ascii_: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return (the bytes, ASCII letters in lower case; which are in no word: ASCII that is no letter, digit or underscore). Others are as they were."""
    raw = np.frombuffer(joined, np.uint8)
    data = raw | np.uint8(32)
    blank = (data - np.uint8(97)) >= np.uint8(26)
    blank &= (raw - np.uint8(48)) >= np.uint8(10)
    if b"_" in joined:
        under = raw == np.uint8(95)
        blank &= ~under
        data[under] = 95
    if not ascii_:
        above = raw >= np.uint8(128)
        blank &= ~above
        data[above] = raw[above]
    return data, blank


def _hashed(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of each word: eight bytes at a time are mixed in.

    Args:
        data: bytes, of which at least sixteen follow the last word.
        starts: where each word begins.
        lengths: bytes of each word.
    """
    eights = data[: len(data) // 8 * 8].view("<u8")
    out = _eight(eights, starts, lengths)
    out += lengths.view(np.uint64) * _ODD
    mixed(out)
    left = np.flatnonzero(lengths > 8)
    at, more = starts.take(left), lengths.take(left)
    while len(left):
        at += 8
        more -= 8
        state = out.take(left)
        state *= _ODD
        state += _eight(eights, at, more)
        out[left] = mixed(state)
        longer = np.flatnonzero(more > 8)
        left, at, more = left.take(longer), at.take(longer), more.take(longer)
    return out


def _eight(eights: NDArray[np.uint64], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the first eight bytes of each word as a number, without those past its end. `mode="clip"` spares `take` a check of the places."""
    place = starts >> 3
    shift = starts.view(np.uint64) << np.uint64(3)
    shift &= np.uint64(63)
    out = eights.take(place, mode="clip")
    out >>= shift
    place += 1
    np.subtract(np.uint64(64), shift, out=shift)
    above = eights.take(place, mode="clip")
    above <<= shift  # by 64 gives 0
    out |= above
    out &= _MASKS.take(lengths, mode="clip")
    return out


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


def windows(words: NDArray[np.uint64], counts: NDArray[np.int64], n: int) -> NDArray[np.uint64]:
    """Return the hash of the sequence of n words from each word on, whose high bits are the best mixed. A text of fewer words has one, of all its
    words, at its first word. At the last n - 1 words of a text, but for that one, the value has no meaning.

    Args:
        words: hashes of the words of all texts in a row.
        counts: words of each text, at least 1.
        n: words per sequence.
    """
    factors = _factors(n)
    whole = np.zeros_like(words)
    out = whole[: max(len(words) - n + 1, 0)]
    np.multiply(words[: len(out)], factors[0], out=out)
    term = np.empty_like(out)
    for place in range(1, n):
        out += np.multiply(words[place : place + len(out)], factors[place], out=term)
    few = np.flatnonzero(counts < n)
    if len(few):
        sizes = counts[few]
        starts = (np.cumsum(counts) - counts)[few]
        within = _within(sizes)
        sums = np.add.reduceat(words[np.repeat(starts, sizes) + within] * factors[within], np.cumsum(sizes) - sizes)
        whole[starts] = mixed(sums + sizes.astype(np.uint64))
    return whole


def _within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... up to each size, in a row."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def ngrams(words: NDArray[np.uint64], counts: NDArray[np.int64], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return (hash of each sequence of n words, as `windows` gives them; text of each), in order. A text of fewer words gives one, of all its words."""
    sizes = np.maximum(counts - n + 1, 1)
    at = np.repeat(np.cumsum(counts) - counts, sizes) + _within(sizes)
    return windows(words, counts, n)[at], np.repeat(np.arange(len(counts)), sizes)
