"""Tokens of byte-level BPE by a table of words: a text is cut at blanks where every known pattern cuts it, too, and what is between two cuts is encoded
once.

Knows nothing of other tokenizers: `WordCache.of` returns None for what it cannot cut. New words are encoded by the `tokenizers` library. Where tiktoken is
installed and merges alike (`tiktoken_bpe.py`), it encodes everything, as it is faster than a table; the ids are the same.

Why a cut is safe: in the patterns of GPT-2, GPT-4 and Llama 3 no word continues with a blank after something else than white space, nor with anything else
after a letter or number of ASCII than letters and numbers, or a character that may be one. They look ahead only after white space, and never back. So
such a place is between two words, whatever is on either side. Texts are cut at blanks first; where that gives rare words, as in code, in the second way.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.text_pieces import pieces
from tauon.data.tiktoken_bpe import TiktokenBpe

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
_INDENTED = 64
"""Characters per blank after white space, below which a text is cut into `_PART` at once."""


class WordCache:
    """Encodes texts by a table of words. Give it every text to encode; it grows to about 60 MB."""

    def __init__(self, tokenizer: Any, fast: TiktokenBpe | None) -> None:
        """`tokenizer`: of the `tokenizers` library; `fast`: the same by tiktoken, which leaves the table empty, or None."""
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
        return WordCache(tokenizer, TiktokenBpe.of(tokenizer, record, pattern))

    def encode_many(self, texts: Sequence[str], bulk: Callable[[list[str]], list[NDArray[np.uint32]]]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text. `bulk` encodes texts for which a table does not pay, and what tiktoken could cut otherwise."""
        if self._fast is not None:
            return self._fast.encode_many(texts, bulk)
        cut = [pieces(text) for text in texts]  # the words of a text take several times its memory
        flat = [piece for mine in cut for piece in mine]
        out: list[NDArray[np.uint32] | None] = [self._by_words(piece) for piece in flat]
        left = [i for i, ids in enumerate(out) if ids is None]
        for i, ids in zip(left, bulk([flat[i] for i in left]), strict=True):
            out[i] = ids
        done = iter([ids for ids in out if ids is not None])
        return [np.concatenate([next(done) for _ in mine]) if len(mine) != 1 else next(done) for mine in cut]

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
        return array("I", self._tokenizer.encode(text, add_special_tokens=False).ids).tobytes()


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
