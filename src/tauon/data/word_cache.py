"""Tokens of byte-level BPE by a table of words: a text is cut at blanks where every known pattern cuts it, too, and what is between two cuts is encoded
once.

Knows nothing of other tokenizers: `WordCache.of` returns None for what it cannot cut. Words that are new are encoded by `tiktoken` if it is installed and
provably equal (`pip install 'tauon[tokenize]'`), otherwise by the `tokenizers` library; the ids are the same.

Why a cut is safe: in the patterns of GPT-2, GPT-4 and Llama 3 no word continues with a blank after something else than white space, nor with anything else
after a letter or number of ASCII than letters and numbers, or a character that may be one. They look ahead only after white space, and never back. So
such a place is between two words, whatever is on either side. Texts are cut at blanks first; where that gives rare words, as in code, in the second way.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GPT2", "GPT4", "WordCache"]

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MOST, _LONGEST = 1 << 18, 64
"""Words that are kept (then the table starts empty again), and characters of the longest of them."""
_GLUE = "\x01"
"""Stands for a blank at which a text must not be cut."""
_OTHER_SPACE = re.compile(rf"[^\S\n {_GLUE}] ")
_CUT = re.compile(r"(?<=\S) ")
_PART = re.compile(r"[^A-Za-z0-9]*[A-Za-z0-9]+(?:[^\x00-\x7f][^A-Za-z0-9]*[A-Za-z0-9]*)*|[^A-Za-z0-9]+")
"""Marks with the ASCII letters and numbers after them."""
_LINE = re.compile(r"(?<=[A-Za-z0-9])(?=\n)")
_INDENTED = 64
"""Characters per blank after white space, below which a text is cut into `_PART` at once."""
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(b): b for b in _PRINTED} | {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(_PRINTED)))}
"""GPT-2's letters for bytes."""


class WordCache:
    """Encodes texts by a table of words. Give it every text to encode; it grows to about 60 MB."""

    def __init__(self, tokenizer: Any, fast: Any) -> None:
        """`tokenizer`: of the `tokenizers` library; `fast`: the same as an encoding of tiktoken, or None."""
        self._tokenizer, self._fast = tokenizer, fast
        self._parts = _Table(self._encode)
        self._words = _Table(self._word)

    @staticmethod
    def of(tokenizer: Any) -> WordCache | None:
        """Return a table for a tokenizer of the `tokenizers` library; None if cutting at blanks could change its ids."""
        record = json.loads(tokenizer.to_str())
        model = record["model"]
        parts = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        plain = model.get("type") == "BPE" and not any(model.get(part) for part in parts) and record.get("normalizer") is None
        pattern = _pattern(record.get("pre_tokenizer"))
        if not plain or pattern is None or not all(token["special"] for token in record.get("added_tokens", ())):
            return None
        return WordCache(tokenizer, _tiktoken(tokenizer, record, pattern))

    def encode_many(self, texts: Sequence[str], bulk: Callable[[list[str]], list[NDArray[np.uint32]]]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text. `bulk` encodes texts for which a table does not pay, if tiktoken is not installed."""
        out: list[NDArray[np.uint32] | None] = [self._by_words(text) for text in texts]
        left = [i for i, ids in enumerate(out) if ids is None]
        for i, ids in zip(left, self._in_bulk([texts[i] for i in left], bulk), strict=True):
            out[i] = ids
        return [ids for ids in out if ids is not None]

    def _by_words(self, text: str) -> NDArray[np.uint32] | None:
        """Return the ids of a text; None if it has too many blanks at which it must not be cut: rare words, as in indented code."""
        glued = text.replace("  ", " " + _GLUE).replace("\n ", "\n" + _GLUE).replace(_GLUE + " ", _GLUE + _GLUE)
        if _GLUE in text or glued.count(_GLUE) * _INDENTED > len(text):
            return None
        first, *words = _CUT.split(text) if _OTHER_SPACE.search(glued) else glued.split(" ")
        head = b"".join(map(self._parts.__getitem__, _PART.findall(first.replace(_GLUE, " "))))
        return np.frombuffer(head + b"".join(map(self._words.__getitem__, words)), np.uint32)

    def _word(self, word: str) -> bytes:
        """Return the ids of a blank and a word, in which `_GLUE` is a blank."""
        return b"".join(map(self._parts.__getitem__, _PART.findall(" " + word.replace(_GLUE, " "))))

    def _encode(self, text: str) -> bytes:
        if self._fast is not None and text.isascii():  # of other letters the two libraries may know other versions of Unicode
            return array("I", self._fast.encode_ordinary(text)).tobytes()
        return array("I", self._tokenizer.encode(text, add_special_tokens=False).ids).tobytes()

    def _in_bulk(self, texts: list[str], bulk: Callable[[list[str]], list[NDArray[np.uint32]]]) -> list[NDArray[np.uint32]]:
        if self._fast is None:
            return bulk(texts)
        cut = [
            [text] if text.isascii() else ["".join(run) for _, run in itertools.groupby(_LINE.split(text), str.isascii)] for text in texts
        ]
        flat = [piece for mine in cut for piece in mine]
        plain = [piece for piece in flat if piece.isascii()]
        threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1
        ids = iter(self._fast.encode_ordinary_batch(plain, num_threads=threads))
        others = iter(bulk([piece for piece in flat if not piece.isascii()]))
        return [
            np.concatenate(
                [np.array(next(ids), np.uint32) if piece.isascii() else next(others) for piece in mine] or [np.empty(0, np.uint32)]
            )
            for mine in cut
        ]


class _Table(dict[str, bytes]):
    """Word -> ids, made when it is first looked up."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        found = self._encode(word)
        if len(word) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[word] = found
        return found


def _pattern(record: Any) -> str | None:
    """Return the pattern that cuts texts into words, if it is one of those for which cutting at blanks is proven."""
    parts = record.get("pretokenizers", ()) if isinstance(record, dict) and record.get("type") == "Sequence" else [record]
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex") and not parts[0].get("add_prefix_space"):
        return GPT2
    if kinds != ["Split", "ByteLevel"] or parts[1].get("use_regex") or parts[1].get("add_prefix_space"):
        return None
    if parts[0].get("behavior") != "Isolated" or parts[0].get("invert"):
        return None
    found = parts[0].get("pattern", {}).get("Regex")
    return found if found in (GPT2, GPT4, _LLAMA3) else None


def _tiktoken(tokenizer: Any, record: Any, pattern: str) -> Any:
    """Return the same vocabulary as an encoding of tiktoken; None if it is not installed, or would merge otherwise: it takes the id of a pair as its rank,
    and a word that is a token as it is.
    """
    try:
        import tiktoken
    except ImportError:
        return None
    model, special = record["model"], {token["content"] for token in record.get("added_tokens", ())}
    letters = frozenset(_BYTES)
    tokens = {t: i for t, i in model["vocab"].items() if t not in special and letters.issuperset(t)}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    made = [tokens.get(a + b, -1) for a, b in merges]
    ascending = all(a < b for a, b in itertools.pairwise(made)) and min(made, default=0) >= 0
    single = [t for t in tokens if len(t) == 1]
    others = {t for t in tokens if len(t) > 1} - {a + b for a, b in merges}
    if not ascending or len(single) != 256 or others:
        return None
    if not model.get("ignore_merges") and any(len(tokenizer.model.tokenize(t)) != 1 for t in tokens):
        return None
    ranks = {bytes(_BYTES[c] for c in t): i for t, i in tokens.items()}
    return tiktoken.Encoding("tauon", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
