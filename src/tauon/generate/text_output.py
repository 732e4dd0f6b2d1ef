"""Text of a stream of tokens: bytes of each token, characters only when they are complete, stop strings that never leak.

>>> from tauon.data.tokenizer import ByteTokenizer
>>> texts, out = token_texts(ByteTokenizer()), TextOutput(("stop",))
>>> [out.add(texts[b]) for b in "é st".encode()], out.add(b"art"), out.add(b"stopped"), out.stopped_by
(['', 'é', ' ', '', ''], 'start', '', 'stop')
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence

from tauon.data import Tokenizer
from tauon.data.tokenizer import ByteTokenizer, CharTokenizer, SubwordTokenizer

__all__ = ["TextOutput", "special_ids", "token_texts"]


class TextOutput:
    """Collects the bytes of an answer; what could still change, or become a stop string, waits."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._waiting = ""
        self.stopped_by: str | None = None
        """The stop string that was found; nothing after its start is returned."""

    def add(self, data: bytes, *, last: bool = False) -> str:
        """Return the text that is certain now. `last`: nothing follows; a character that is not complete becomes U+FFFD."""
        if self.stopped_by is not None:
            return ""
        self._waiting += self._decoder.decode(data, last)
        found = [(at, -len(s), s) for s in self._stop if (at := self._waiting.find(s)) >= 0]
        if found:
            at, _, self.stopped_by = min(found)
            text, self._waiting = self._waiting[:at], ""
            return text
        keep = 0 if last else self._start_of_stop()
        text, self._waiting = self._waiting[: len(self._waiting) - keep], self._waiting[len(self._waiting) - keep :]
        return text

    def _start_of_stop(self) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = min(max((len(s) for s in self._stop), default=1) - 1, len(self._waiting))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._waiting[-n:]) for s in self._stop)), 0)


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of text of each token; empty for special tokens, which are not part of a text."""
    if isinstance(tokenizer, ByteTokenizer):
        return [*(bytes([i]) for i in range(256)), b""]
    if isinstance(tokenizer, CharTokenizer):
        return [b"", "�".encode(), *(c.encode() for c in tokenizer.alphabet)]
    if not isinstance(tokenizer, SubwordTokenizer):
        return [b"" if i in special_ids(tokenizer) else tokenizer.decode([i]).encode() for i in range(tokenizer.vocab_size)]
    settings = json.loads(tokenizer.hugging_face_json())
    byte_level = "ByteLevel" in json.dumps([settings.get(k) for k in ("pre_tokenizer", "decoder")])
    texts = [b""] * tokenizer.vocab_size
    added = tokenizer.added()
    special = tokenizer.added(special=True)
    for i in range(tokenizer.vocab_size):
        token = tokenizer.text_of(i)
        if token is not None and token not in special:
            texts[i] = token.encode() if token in added else _bytes_of(token, byte_level)
    return texts


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand for no text: begin and end of text, and what else the tokenizer calls special."""
    special = set(tokenizer.added(special=True).values()) if isinstance(tokenizer, SubwordTokenizer) else set()
    unknown = {tokenizer.unknown} if isinstance(tokenizer, CharTokenizer) else set()
    return {tokenizer.bos, tokenizer.eos} | special | unknown


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _bytes_of(token: str, byte_level: bool) -> bytes:
    """Bytes of one entry of a vocabulary: byte-level BPE, or SentencePiece's U+2581 and <0x0A>."""
    if byte_level and all(c in _BYTES for c in token):
        return bytes(_BYTES[c] for c in token)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
