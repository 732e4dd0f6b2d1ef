"""Byte-level BPE by tiktoken (`pip install 'tauon[tokenize]'`), with the ids of the `tokenizers` library.

Only for vocabularies for which both provably merge alike, and only for characters that both put in the same class (`text_pieces.py`): stretches with others
are left to the `tokenizers` library, from a cut before them to a cut behind them. Does not train, and recognises no special tokens.

Why it is fast: the pattern is written so that tiktoken's matcher tries all alternatives but two at once, by one automaton, instead of one after another;
many stretches are one call, between marks that a stretch cannot contain; and calls work in threads, as tiktoken releases Python's lock.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.text_pieces import NOT_SETTLED, pieces

__all__ = ["TiktokenBpe"]

Ids = NDArray[np.uint32]

_MARK = "\x01"
"""Between stretches that are encoded in one call."""
_AT_ONCE = 1 << 18
"""Characters of a call."""
_NEAR = 64
"""Characters between two stretches that are left to the `tokenizers` library, up to which they are one."""
_MOST_BLANKS = 1 << 18
"""White space in a row, from which tiktoken's matcher could exceed its stack (a million)."""
_CUT = re.compile(r"[A-Za-z0-9](?=[ \n])")
_SPACE = re.compile(r"\s+")
_AHEAD = r"|\s+(?!\S)|\s+"
"""The end of every pattern: the only part that looks ahead, which an automaton cannot."""
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = np.zeros(324, np.uint8)
"""Byte that a letter of GPT-2's alphabet stands for, by code point."""
_BYTE_OF[_PRINTED] = _PRINTED
_BYTE_OF[256:] = sorted(set(range(256)) - set(_PRINTED))
_LETTERS = frozenset(map(chr, [*_PRINTED, *range(256, 324)]))


class TiktokenBpe:
    """A vocabulary and pattern as tiktoken's encoding."""

    def __init__(self, ranks: dict[bytes, int], pattern: str) -> None:
        """`ranks`: bytes of a token -> id; `pattern`: one that ends in `_AHEAD`."""
        self._mark = max(ranks.values()) + 1
        self._parts: dict[str, Any] = {"pat_str": _grouped(pattern), "mergeable_ranks": ranks, "special_tokens": {_MARK: self._mark}}
        self._idle: list[Any] = []
        """Encodings that no thread uses. Each thread has one of its own: the matcher of one keeps its working memory behind locks."""

    @staticmethod
    def of(tokenizer: Any, record: Any, pattern: str) -> TiktokenBpe | None:
        """Return the encoding of a BPE of the `tokenizers` library, `record` being its JSON; None if tiktoken is not installed, or would merge otherwise:
        it takes the id of a pair as its rank, and a word that is a token as it is.
        """
        try:
            import tiktoken  # noqa: F401
        except ImportError:
            return None
        model, special = record["model"], {token["content"] for token in record.get("added_tokens", ())}
        tokens = {t: i for t, i in model["vocab"].items() if t not in special and _LETTERS.issuperset(t)}
        merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        pairs = [a + b for a, b in merges]
        made = [tokens.get(pair, -1) for pair in pairs]
        ascending = min(made, default=0) >= 0 and all(map(int.__lt__, made, made[1:]))
        single = [t for t in tokens if len(t) == 1]
        others = {t for t in tokens if len(t) > 1}.difference(pairs)
        if not ascending or len(single) != 256 or others:
            return None
        if not model.get("ignore_merges") and any(len(found) != 1 for found in map(tokenizer.model.tokenize, tokens)):
            return None
        return TiktokenBpe(dict(zip(_as_bytes(list(tokens)), tokens.values(), strict=True)), pattern)

    def encode_many(self, texts: Sequence[str], others: Callable[[list[str]], list[Ids]]) -> list[Ids]:
        """Return the ids of each text. `others` encodes stretches in which the two libraries could see different classes of characters."""
        cut = [list(_stretches(text)) for text in texts]
        groups = _groups([text for mine in cut for text, settled in mine if settled])
        threads = min(_threads(), len(groups))
        if threads > 1:
            with ThreadPoolExecutor(threads, "tokenize") as pool:
                made = list(pool.map(self._encode, groups))
        else:
            made = [self._encode(group) for group in groups]
        mine, rest = itertools.chain.from_iterable(made), [text for mine in cut for text, settled in mine if not settled]
        theirs = iter(others(rest) if rest else ())
        return [_joined([next(mine if settled else theirs) for _, settled in stretches]) for stretches in cut]

    def _encode(self, stretches: list[str]) -> list[Ids]:
        """Return the ids of each stretch: one call for all, as tiktoken cuts at special tokens before anything else."""
        import tiktoken

        try:
            encoding = self._idle.pop()
        except IndexError:
            encoding = tiktoken.Encoding("tauon", **self._parts)
        ids = encoding.encode_to_numpy(_MARK.join(stretches), allowed_special={_MARK}, disallowed_special=())
        self._idle.append(encoding)
        marks = np.flatnonzero(ids == self._mark).tolist()
        assert len(marks) == len(stretches) - 1
        return [ids[a + 1 : b] for a, b in itertools.pairwise([-1, *marks, len(ids)])]


def _grouped(pattern: str) -> str:
    """Return a pattern with the same matches, whose alternatives but the last two are one automaton. Possessive repetition is only a hint in all of them: what
    follows it never begins with what it takes.
    """
    body = pattern.removesuffix(_AHEAD).replace("++", "+").replace("?+", "?")
    return f"(?:{body}){_AHEAD}"


def _as_bytes(tokens: list[str]) -> list[bytes]:
    """Return the bytes that tokens, written in GPT-2's alphabet, stand for."""
    flat = _BYTE_OF[np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)].tobytes()
    return [flat[a:b] for a, b in itertools.pairwise(itertools.accumulate(map(len, tokens), initial=0))]


def _stretches(text: str) -> Iterator[tuple[str, bool]]:
    """Yield a text in stretches that can be encoded by themselves, and whether tiktoken may do so."""
    if text.isascii() and _MARK not in text:
        yield from _in_pieces(text)
        return
    begin = done = 0  # of the stretch that is open, and where it may end
    while (found := NOT_SETTLED.search(text, done)) is not None:
        start = _cut_before(text, done, found.start())
        if start - done > _NEAR or begin == done == 0:
            if done > begin:
                yield text[begin:done], False
            yield from _in_pieces(text[done:start])
            begin = start
        end = _CUT.search(text, found.end())
        done = len(text) if end is None else end.end()
    if done > begin:
        yield text[begin:done], False
    yield from _in_pieces(text[done:])


def _cut_before(text: str, start: int, at: int) -> int:
    """Return the last place in (start, at] before a blank that follows an ASCII letter or number, or else `start`."""
    end = at
    while (found := text.rfind(" ", start + 1, end)) > 0:
        if text[found - 1].isascii() and text[found - 1].isalnum():
            return found
        end = found
    return start


def _in_pieces(text: str) -> Iterator[tuple[str, bool]]:
    if len(text) < _MOST_BLANKS:
        if text:
            yield text, True
        return
    for piece in pieces(text):
        yield piece, len(piece) < _MOST_BLANKS or all(m.end() - m.start() < _MOST_BLANKS for m in _SPACE.finditer(piece))


def _groups(stretches: list[str]) -> list[list[str]]:
    """Return the stretches, in order, in groups of about `_AT_ONCE` characters."""
    groups: list[list[str]] = []
    size = _AT_ONCE
    for stretch in stretches:
        if size >= _AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(stretch)
        size += len(stretch)
    return groups


def _joined(parts: list[Ids]) -> Ids:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def _threads() -> int:
    """Return how many threads to use: what the variables of the `tokenizers` library say, or else as many as this process may use cores."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("", "off", "false", "f", "no", "n", "0"):
        return 1
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
