"""Tokenizers: text to token ids and back, and how many bytes of text each token stands for.

Characters, bytes, and subwords (by the `tokenizers` library). Special tokens are never recognised inside text: only this
package puts a BOS between documents. How a tokenizer is trained or read is in `tokenizer_config.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tauon.data.files import canonical, decode, read_bytes, sha256_bytes, write_plain_json
from tauon.data.interruptible import interruptible
from tauon.data.text_pieces import pieces
from tauon.data.word_cache import WordCache
from tauon.errors import DataError

__all__ = ["BOS", "KNOWN_BOS", "ByteTokenizer", "CharTokenizer", "SubwordTokenizer", "Tokenizer", "parallel", "read_json"]

_FORMAT = "tauon-tokenizer/1"
BOS = "<|bos|>"
KNOWN_BOS = (BOS, "<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[CLS]", "<|startoftext|>")


class Tokenizer(ABC):
    """Converts text to token ids and back. Equal tokenizers have equal `sha256`."""

    kind: ClassVar[str]
    vocab_size: int
    bos: int
    """Id of the token before each document."""

    @property
    def eos(self) -> int:
        """Id of the token that ends a text."""
        return self.bos

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return token ids of `text`, without BOS."""

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Encode each text; subclasses may use several cores."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """Return the text of the ids (any sequence of integers); special tokens are skipped, broken UTF-8 becomes U+FFFD."""

    @property
    @abstractmethod
    def token_bytes(self) -> NDArray[np.int64]:
        """(V) UTF-8 bytes of text that each token stands for; 0 for special tokens. Used for bits per byte."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return all that `from_json` needs; JSON values only."""

    @staticmethod
    def from_json(data: Any, where: str = "tokenizer") -> Tokenizer:
        """Return the tokenizer that `to_json` described."""
        kinds = {c.kind: c for c in (CharTokenizer, ByteTokenizer, SubwordTokenizer)}
        if not isinstance(data, dict) or data.get("format") != _FORMAT or data.get("kind") not in kinds:
            raise DataError(
                f"{where}: not a tokenizer written by Tauon, expected format {_FORMAT!r}. For a Hugging Face file set data.tokenizer: {{kind: file, path: ...}}"
            )
        try:
            return kinds[data["kind"]]._from_json(data, where)
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"{where}: damaged tokenizer ({err})") from None

    @classmethod
    @abstractmethod
    def _from_json(cls, data: dict[str, Any], where: str) -> Tokenizer: ...

    @cached_property
    def sha256(self) -> str:
        """sha256 over what decides the ids of a text. Names of tokens (`named`) are not part of it."""
        return sha256_bytes(canonical({k: v for k, v in self.to_json().items() if k != "named"}).encode())

    def save(self, path: Path) -> None:
        """Write to one JSON file, atomically."""
        write_plain_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read what `save` wrote."""
        return Tokenizer.from_json(read_json(read_bytes(path), str(path)), str(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


class CharTokenizer(Tokenizer):
    """Id 0 is BOS, id 1 is every character outside the alphabet, the rest are characters in order of code point."""

    kind = "chars"

    def __init__(self, alphabet: str) -> None:
        self.alphabet = "".join(sorted(set(alphabet)))
        self.bos, self.unknown = 0, 1
        self.vocab_size = len(self.alphabet) + 2
        self._codes = np.frombuffer(self.alphabet.encode("utf-32-le"), np.uint32)

    def encode(self, text: str) -> NDArray[np.uint32]:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        if not len(self._codes):
            return np.full(len(codes), self.unknown, np.uint32)
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[at] == codes, at + 2, self.unknown).astype(np.uint32)

    def decode(self, ids: Any) -> str:
        return "".join(self.alphabet[i - 2] if i >= 2 else "�" for i in np.asarray(ids).reshape(-1).tolist() if i != self.bos)

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:  # type: ignore[override]
        return np.array([0, 0, *(len(c.encode()) for c in self.alphabet)], np.int64)

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, "kind": self.kind, "alphabet": self.alphabet}

    @classmethod
    def _from_json(cls, data: dict[str, Any], where: str) -> CharTokenizer:
        return cls(data["alphabet"])


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8, 256 is BOS."""

    kind = "bytes"
    vocab_size, bos = 257, 256

    def encode(self, text: str) -> NDArray[np.uint32]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def decode(self, ids: Any) -> str:
        flat = np.asarray(ids, np.int64).reshape(-1)
        return flat[flat < 256].astype(np.uint8).tobytes().decode(errors="replace")

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:  # type: ignore[override]
        return np.append(np.ones(256, np.int64), 0)

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, "kind": self.kind}

    @classmethod
    def _from_json(cls, data: dict[str, Any], where: str) -> ByteTokenizer:
        return cls()


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library (Hugging Face's tokenizer.json)."""

    kind = "subword"

    def __init__(
        self, json_text: str, bos: str | None = None, where: str = "tokenizer", splittable: bool = False, named: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`bos`: the special token before documents (None: a usual one). `splittable`: a long text may be encoded in pieces cut as in `pieces`,
        with the same result. `named`: `bos_token` and `eos_token` as named by the publisher (None: `bos`, and the one that usually belongs
        to it).
        """
        import tokenizers

        try:
            self._tok = tokenizers.Tokenizer.from_str(json_text)
        except Exception as err:  # the library raises bare Exception
            raise DataError(f"{where}: not a tokenizer.json that the tokenizers library can read ({err})") from None
        self._tok.encode_special_tokens = True  # text that looks like a special token stays plain text
        self._tok.no_truncation()
        self._tok.no_padding()
        said = {k: t for k, t in (named or {}).items() if self._tok.token_to_id(t) is not None}
        self.bos_token, self.bos = _find_bos(self._tok, bos, where, said)
        self.vocab_size = max(self._tok.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.splittable = splittable
        self._usual = {"bos_token": self.bos_token, "eos_token": _partner(self._tok, self.bos_token)}
        if set(said) == {"bos_token"}:
            said["eos_token"] = self._usual["eos_token"]
        self.named = said or self._usual
        """`bos_token` and `eos_token`, if it has them: chat templates write them."""

    @property
    def eos(self) -> int:
        found = self.id_of(self.named.get("eos_token", self._usual["eos_token"]))
        assert found is not None
        return found

    def encode(self, text: str) -> NDArray[np.uint32]:
        return self.encode_many([text])[0]

    @cached_property
    def _words(self) -> WordCache | None:
        return WordCache.of(self._tok)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_words"}  # a table that is made again

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        if sum(map(len, texts)) >= _WORTH and (words := self._words) is not None:
            return words.encode_many(texts, self._encode_all)
        return self._encode_all(texts)

    def _encode_all(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        cut = [pieces(t) if self.splittable else [t] for t in texts]
        flat = [p for ps in cut for p in ps]
        ids: list[NDArray[np.uint32]] = []
        with parallel():
            for batch in _batches(flat):
                encode = partial(self._encoded, batch)
                ids += encode() if sum(map(len, batch)) < _LONG else interruptible(encode)
        done = iter(ids)
        return [np.concatenate([next(done) for _ in ps]) if len(ps) > 1 else next(done) for ps in cut]

    def _encoded(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        return [np.array(e.ids, np.uint32) for e in self._tok.encode_batch_fast(texts, add_special_tokens=False)]

    def added(self, *, special: bool = False) -> dict[str, int]:
        """Tokens added to the learned vocabulary, by their text: all of them, or only the special ones."""
        return {t.content: i for i, t in self._tok.get_added_tokens_decoder().items() if t.special or not special}

    def encode_rendered(self, text: str, *, as_text: bool = False, goes_on: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Return (ids, first and last character of each) of a text. Special tokens are recognised, unless `as_text`. `goes_on`: the text is not
        the start of a document, before which SentencePiece would add a blank: it is encoded as if after a line end, as transformers does.
        """
        tok = self._tok if as_text else self._open
        found = tok.encode(text, add_special_tokens=False)
        if goes_on:
            line, whole = (tok.encode(t, add_special_tokens=False) for t in ("\n", "\n" + text))
            n = len(line.ids)
            if whole.ids[:n] == line.ids:
                return whole.ids[n:], [(max(0, a - 1), b - 1) for a, b in whole.offsets[n:]]
        return found.ids, found.offsets

    @cached_property
    def _open(self) -> Any:
        """The same tokenizer, which recognises special tokens in a text."""
        import tokenizers

        tok = tokenizers.Tokenizer.from_str(self._tok.to_str())
        tok.encode_special_tokens = False
        return tok

    def decode(self, ids: Any) -> str:
        return str(self._tok.decode(np.asarray(ids).reshape(-1).tolist(), skip_special_tokens=True))

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:  # type: ignore[override]
        out = np.zeros(self.vocab_size, np.int64)
        special = {i for i, t in self._tok.get_added_tokens_decoder().items() if t.special}
        byte_level = "ByteLevel" in json.dumps([json.loads(self._tok.to_str()).get(k) for k in ("pre_tokenizer", "decoder")])
        for token, i in self._tok.get_vocab(with_added_tokens=True).items():
            if i not in special:
                out[i] = _stands_for(token, byte_level)
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "bos": self.bos_token,
            "splittable": self.splittable,
            "model": json.loads(self._tok.to_str()),
            **({} if self.named == self._usual else {"named": self.named}),
        }

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text, including special ones; None if there is none."""
        found: int | None = self._tok.token_to_id(token)
        return found

    def text_of(self, i: int) -> str | None:
        """Return the token with this id, as in the vocabulary."""
        found: str | None = self._tok.id_to_token(i)
        return found

    def hugging_face_json(self) -> str:
        """Return the text of a tokenizer.json for the `tokenizers` and `transformers` libraries."""
        return str(self._tok.to_str())

    @classmethod
    def _from_json(cls, data: dict[str, Any], where: str) -> SubwordTokenizer:
        return cls(json.dumps(data["model"]), data["bos"], where, splittable=bool(data["splittable"]), named=data.get("named"))


_BYTE_ALPHABET = frozenset(chr(b) for r in (range(33, 127), range(161, 173), range(174, 256), range(256, 324)) for b in r)
_HEX_BYTE = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")


def _stands_for(token: str, byte_level: bool) -> int:
    """Return the bytes of text of one vocabulary entry: GPT-2's byte alphabet, SentencePiece's U+2581 and <0x0A>, WordPiece's ##."""
    if byte_level and _BYTE_ALPHABET.issuperset(token):
        return len(token)  # each character of the alphabet is one byte
    if _HEX_BYTE.match(token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())


def _find_bos(tok: Any, wanted: str | None, where: str, named: Mapping[str, str]) -> tuple[str, int]:
    """Return the token before documents: `wanted`, a usual one, or else the one that the publisher names."""
    for name in (wanted,) if wanted else (*KNOWN_BOS, *named.values()):
        found = tok.token_to_id(name)
        if found is not None:
            return name, int(found)
    special = sorted(t.content for t in tok.get_added_tokens_decoder().values() if t.special)
    missing = f"has no token {wanted!r}" if wanted else f"has none of {', '.join(KNOWN_BOS)} to put before a document"
    raise DataError(f"{where}: {missing}. Set data.tokenizer.bos to one of its special tokens ({', '.join(special) or 'none'})")


_PARTNERS = {"<s>": "</s>", "<bos>": "<eos>", "<|begin_of_text|>": "<|end_of_text|>", "<|startoftext|>": "<|endoftext|>", "[CLS]": "[SEP]"}


def _partner(tok: Any, bos: str) -> str:
    """Return the token that usually ends a text started by `bos`, if the tokenizer has it; else `bos` itself, as in GPT-2."""
    found = _PARTNERS.get(bos)
    return found if found is not None and tok.token_to_id(found) is not None else bos


@contextlib.contextmanager
def parallel() -> Iterator[None]:
    """Use several cores while encoding; afterwards restore the variable, so that a later fork gets no thread pool by accident."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


_WORTH = 1 << 14
"""Number of characters from which making a table of words, or an encoding of tiktoken, pays."""
_LONG = 1 << 18
"""Number of characters whose encoding takes a noticeable part of a second."""


_AT_ONCE = 1 << 22
"""Characters that are encoded together: the library keeps about 100 bytes for each token until they are read."""


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in groups of about `_AT_ONCE` characters, in order."""
    begin = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= _AT_ONCE or i == len(texts) - 1:
            yield texts[begin : i + 1]
            begin, size = i + 1, 0


def read_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(decode(data, where))
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not valid JSON at line {err.lineno}, column {err.colno} ({err.msg})") from None
