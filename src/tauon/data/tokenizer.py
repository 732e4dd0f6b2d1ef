"""Tokenizers: text to token ids and back, and how many bytes of text each token stands for.

Four kinds: byte-level BPE trained on the training part (Sennrich et al. 2016, arXiv:1508.07909; GPT-2's byte alphabet),
single characters, single bytes, and files of published tokenizers. The BPE work is done by the `tokenizers` library.
Special tokens are never recognised inside text: only the data room puts a BOS between documents.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Bytes, Count, Registered, register
from tauon.data.files import canonical, decode, read_bytes, sha256_bytes, write_json
from tauon.errors import DataError

__all__ = [
    "BpeConfig",
    "ByteTokenizer",
    "BytesConfig",
    "CharTokenizer",
    "CharsConfig",
    "FileConfig",
    "SubwordTokenizer",
    "Tokenizer",
    "TokenizerConfig",
]

_FORMAT = "tauon-tokenizer/1"
_BOS = "<|bos|>"
_KNOWN_BOS = (_BOS, "<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[CLS]", "<|startoftext|>")


class Tokenizer(ABC):
    """Text to ids and back. Equal tokenizers have equal `sha256`."""

    kind: ClassVar[str]
    vocab_size: int
    bos: int
    """Id of the token that stands before each document."""

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.uint32]:
        """Token ids of `text`, without BOS."""

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode` of each; subclasses may use several cores."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """Text of the ids (any sequence of integers); special tokens are left out, broken UTF-8 becomes U+FFFD."""

    @property
    @abstractmethod
    def token_bytes(self) -> NDArray[np.int64]:
        """(V) UTF-8 bytes of text that each token stands for; 0 for special tokens. Divides loss into bits per byte."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs; JSON values only."""

    @staticmethod
    def from_json(data: Any, where: str = "tokenizer") -> Tokenizer:
        """The tokenizer that `to_json` described."""
        kinds = {c.kind: c for c in (CharTokenizer, ByteTokenizer, SubwordTokenizer)}
        if not isinstance(data, dict) or data.get("format") != _FORMAT or data.get("kind") not in kinds:
            raise DataError(
                f"{where}: not a tokenizer written by Tauon, expected format {_FORMAT!r}. A Hugging Face file is read with kind: file"
            )
        try:
            return kinds[data["kind"]]._from_json(data)
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"{where}: damaged tokenizer ({err})") from None

    @classmethod
    @abstractmethod
    def _from_json(cls, data: dict[str, Any]) -> Tokenizer: ...

    @cached_property
    def sha256(self) -> str:
        return sha256_bytes(canonical(self.to_json()).encode())

    def save(self, path: Path) -> None:
        """Write to one JSON file, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read what `save` wrote."""
        return Tokenizer.from_json(_json(read_bytes(path), str(path)), str(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


class CharTokenizer(Tokenizer):
    """Id 0 is BOS, id 1 stands for every character outside the alphabet, the rest are characters in order of code point."""

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
    def _from_json(cls, data: dict[str, Any]) -> CharTokenizer:
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
    def _from_json(cls, data: dict[str, Any]) -> ByteTokenizer:
        return cls()


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library (Hugging Face's tokenizer.json)."""

    kind = "subword"

    def __init__(self, json_text: str, bos: str | None = None, where: str = "tokenizer", splittable: bool = False) -> None:
        """`bos` names the special token to put before documents (None: a usual one). `splittable`: a long text may be
        encoded in pieces cut before a blank that follows a letter, with the same result.
        """
        import tokenizers

        try:
            self._tok = tokenizers.Tokenizer.from_str(json_text)
        except Exception as err:  # the library raises bare Exception
            raise DataError(f"{where}: not a tokenizer.json that the tokenizers library can read ({err})") from None
        self._tok.encode_special_tokens = True  # text that looks like a special token stays text
        self._tok.no_truncation()
        self._tok.no_padding()
        self.bos_token, self.bos = _find_bos(self._tok, bos, where)
        self.vocab_size = max(self._tok.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.splittable = splittable

    def encode(self, text: str) -> NDArray[np.uint32]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        pieces = [_pieces(t) if self.splittable else [t] for t in texts]
        with _parallel():
            done = iter(self._tok.encode_batch_fast([p for ps in pieces for p in ps], add_special_tokens=False))
        return [np.concatenate([np.array(next(done).ids, np.uint32) for _ in ps]) for ps in pieces]

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
        }

    def hugging_face_json(self) -> str:
        """The text of a tokenizer.json that the `tokenizers` and `transformers` libraries read."""
        return str(self._tok.to_str())

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> SubwordTokenizer:
        return cls(json.dumps(data["model"]), data["bos"], splittable=bool(data["splittable"]))


_BYTE_ALPHABET = frozenset(chr(b) for r in (range(33, 127), range(161, 173), range(174, 256), range(256, 324)) for b in r)
_HEX_BYTE = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")


def _stands_for(token: str, byte_level: bool) -> int:
    """Bytes of text behind one vocabulary entry: GPT-2's byte alphabet, SentencePiece's U+2581 and <0x0A>, WordPiece's ##."""
    if byte_level and _BYTE_ALPHABET.issuperset(token):
        return len(token)  # each character of the alphabet is one byte
    if _HEX_BYTE.match(token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())


def _find_bos(tok: Any, wanted: str | None, where: str) -> tuple[str, int]:
    for name in (wanted,) if wanted else _KNOWN_BOS:
        found = tok.token_to_id(name)
        if found is not None:
            return name, int(found)
    special = sorted(t.content for t in tok.get_added_tokens_decoder().values() if t.special)
    missing = f"has no token {wanted!r}" if wanted else f"has none of {', '.join(_KNOWN_BOS)} to put before a document"
    raise DataError(f"{where}: {missing}. Name one with bos: (its special tokens: {', '.join(special) or 'none'})")


@contextlib.contextmanager
def _parallel() -> Iterator[None]:
    """Several cores while we encode; afterwards the variable is as before, so that a later fork gets no thread pool unasked."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


_PIECE = 1 << 17


def _pieces(text: str) -> list[str]:
    """A long text cut before blanks that follow an ASCII letter: no pattern below joins the two sides, so that the tokens are
    those of the whole text, while every core has work and memory stays small.
    """
    if len(text) <= 2 * _PIECE:
        return [text]
    cuts, at = [0], _PIECE
    while at < len(text) - _PIECE:
        found = _CUT.search(text, at)
        if found is None:
            break
        cuts.append(found.end())
        at = found.end() + _PIECE
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


_CUT = re.compile(r"[A-Za-z](?=[ \n])")


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(decode(data, where))
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not JSON at line {err.lineno}, column {err.colno} ({err.msg})") from None


class TokenizerConfig(Registered, family="tokenizer"):
    """How text becomes tokens."""

    def files(self) -> list[tuple[Path, str]]:
        """(path, name) of what it reads: their content is part of the fingerprint."""
        return []

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """The tokenizer. `texts()` gives the training part, a document at a time; held-out text is never seen."""
        raise NotImplementedError


_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
}


@register("bpe")
class BpeConfig(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training part: any text can be written, nothing is unknown."""

    vocab: Count = Field(default=4096, ge=257, le=2**31)
    """Number of tokens, the 256 bytes and BOS included. A small text may give fewer."""
    pattern: Literal["gpt2", "gpt4"] = "gpt4"
    """How text is cut into words before pairs are joined; `gpt4` (cl100k) keeps line ends with the indent and caps numbers at
    three digits."""
    sample: Bytes = Field(default=16 * 2**20, ge=1)
    """Train on about this much text, spread evenly over the training part."""
    min_count: Count = Field(default=2, ge=1)
    """Join a pair only if it occurs this often."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tok = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[self.pattern]), behavior="isolated")
        tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab, min_frequency=self.min_count, special_tokens=[_BOS], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
        with _parallel():
            tok.train_from_iterator(_sample(texts, self.sample), trainer=trainer)
        return SubwordTokenizer(tok.to_str(), _BOS, splittable=True)


def _sample(texts: Callable[[], Iterator[str]], size: int) -> Iterator[str]:
    """About `size` bytes in pieces, each k-th piece of the whole."""
    total = sum(len(t) for t in texts())
    every = max(1, -(-total // size))
    n = 0
    for text in texts():
        for piece in _pieces(text):
            if n % every == 0:
                yield piece
            n += 1


@register("chars")
class CharsConfig(TokenizerConfig):
    """One token a character of the training part, as in nanoGPT's Shakespeare; a character seen only in held-out text is unknown."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        alphabet: set[str] = set()
        for text in texts():
            alphabet.update(text)
        return CharTokenizer("".join(alphabet))


@register("bytes")
class BytesConfig(TokenizerConfig):
    """One token a byte of UTF-8: nothing to train."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        return ByteTokenizer()


@register("file")
class FileConfig(TokenizerConfig):
    """A published tokenizer: Hugging Face's tokenizer.json, or GPT-2's encoder.json with vocab.bpe (plain or packed)."""

    path: str
    """The tokenizer.json, or a folder with it or with encoder.json and vocab.bpe (also vocab.json and merges.txt)."""
    bos: str | None = None
    """The special token to put before each document. None: <|endoftext|>, <s> or another usual name."""

    def files(self) -> list[tuple[Path, str]]:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return [(path, "tokenizer.json")]
        for names in (("tokenizer.json",), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            found = [_packed(path / name) for name in names]
            if all(found):
                return [(p, n) for p, n in zip(found, names, strict=True) if p is not None]
        raise DataError(f"{path}: the folder has no tokenizer.json, no encoder.json with vocab.bpe, and no vocab.json with merges.txt")

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        listed = self.files()
        where = str(listed[0][0])
        if len(listed) == 1:
            _json(read_bytes(listed[0][0]), where)  # a better message than the library's where it is not even JSON
            return SubwordTokenizer(read_bytes(listed[0][0]).decode(), self.bos, where)
        return SubwordTokenizer(_gpt2_json(listed[0][0], listed[1][0]), self.bos, where)


def _packed(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz"), path.with_name(path.name + ".zst")) if p.is_file()), None)


def _gpt2_json(vocab_at: Path, merges_at: Path) -> str:
    """tokenizer.json from GPT-2's two files (Radford et al. 2019): ids by token, and pairs in order of joining."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _json(read_bytes(vocab_at), str(vocab_at))
    if not isinstance(vocab, dict) or not all(isinstance(v, int) for v in vocab.values()):
        raise DataError(f"{vocab_at}: expected a JSON object of token to id")
    lines = decode(read_bytes(merges_at), str(merges_at)).splitlines()
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise DataError(f"{merges_at}: line {number} is {line!r}, expected two tokens with a blank between")
        merges.append((pair[0], pair[1]))
    try:
        tok = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as err:  # the library raises bare Exception
        raise DataError(f"{merges_at}: does not fit {vocab_at} ({err})") from None
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([t for t in _KNOWN_BOS if t in vocab])
    return str(tok.to_str())
