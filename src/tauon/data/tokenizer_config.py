"""Configs of tokenizers: trained byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; GPT-2's byte alphabet), characters,
bytes, or a published file. Training uses the training part only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from tauon.config import Bytes, Count, Registered, register
from tauon.data.files import decode, read_bytes
from tauon.data.interruptible import interruptible
from tauon.data.progress import report
from tauon.data.text_pieces import FAR, pieces
from tauon.data.tokenizer import BOS, KNOWN_BOS, ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer, parallel, read_json
from tauon.data.word_cache import GPT2, GPT4
from tauon.errors import DataError

__all__ = ["BpeConfig", "BytesConfig", "CharsConfig", "FileConfig", "TokenizerConfig", "named_tokens", "wordpiece_json"]


class TokenizerConfig(Registered, family="tokenizer", default="bpe"):
    """Base class of tokenizer configs."""

    def files(self) -> list[tuple[Path, str]]:
        """(path, name) of the files that it reads: their content is part of the fingerprint."""
        return []

    def beside(self) -> list[Path]:
        """Files that name its tokens without affecting the ids of a text."""
        return []

    def names(self) -> dict[str, str]:
        """Settings of that kind."""
        return {}

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """Return the tokenizer. `texts()` yields the training part, one document at a time; held-out text is never used."""
        raise NotImplementedError


_PATTERNS = {"gpt2": GPT2, "gpt4": GPT4}


@register("bpe")
class BpeConfig(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training part: any text can be encoded, no token is unknown."""

    vocab: Count = Field(default=4096, ge=257, le=2**31)
    """Number of tokens, including the 256 bytes and BOS. A small text may give fewer."""
    pattern: Literal["gpt2", "gpt4"] = "gpt4"
    """How text is split into words before merges; `gpt4` (cl100k) keeps line ends with the indent and limits numbers to
    three digits."""
    sample: Bytes = Field(default=8 * 2**20, ge=1)
    """Train on about this much text (bytes of UTF-8), sampled evenly over the training part."""
    min_count: Count = Field(default=2, ge=1)
    """Merge a pair only if it occurs this often."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tok = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[self.pattern]), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.FixedLength(length=_LONGEST_WORD), letters])
        tok.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab, min_frequency=self.min_count, special_tokens=[BOS], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
        chosen = list(_sample(texts, self.sample))
        report("merge pairs of tokens", 0)
        with parallel():
            interruptible(lambda: tok.train_from_iterator(chosen, trainer=trainer))
        tok.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
        return SubwordTokenizer(tok.to_str(), BOS, splittable=True)


_LONGEST_WORD = 256
"""Characters. Longer words (scripts without blanks, base64) are cut in training: each merge visits all of every word that contains the
pair, so the time would grow with the square of their length. Encoding does not cut: its time grows with n log n."""
_SAMPLED = 1 << 12


def _sample(texts: Callable[[], Iterator[str]], size: int) -> Iterator[str]:
    """Yield about `size` bytes in pieces, evenly spaced: each k-th piece of the whole."""
    total = sum(_bytes(t) for t in texts())
    every = max(1, -(-total // size))
    n = done = 0
    for text in texts():
        for piece in pieces(text, _SAMPLED):
            step = _SAMPLED if len(piece) > FAR else len(piece)  # a text that could not be cut
            for at in range(0, len(piece), step or 1):
                if n % every == 0:
                    yield piece[at : at + step]
                n += 1
        done += _bytes(text)
        report("tokenizer", done, total)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@register("chars")
class CharsConfig(TokenizerConfig):
    """One token per character of the training part, as in nanoGPT's Shakespeare; a character that occurs only in held-out text is unknown."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        alphabet: set[str] = set()
        for text in texts():
            alphabet.update(text)
        return CharTokenizer("".join(alphabet))


@register("bytes")
class BytesConfig(TokenizerConfig):
    """One token per byte of UTF-8, without training."""

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        return ByteTokenizer()


@register("file")
class FileConfig(TokenizerConfig):
    """A published tokenizer: Hugging Face's tokenizer.json, GPT-2's encoder.json with vocab.bpe, or BERT's vocab.txt (plain or compressed)."""

    path: str
    """The tokenizer.json, or a folder with it, with encoder.json and vocab.bpe (also vocab.json and merges.txt), or with BERT's vocab.txt."""
    bos: str | None = None
    """The special token before each document. None: <|endoftext|>, <s> or another usual name."""
    eos: str | None = None
    """The special token that ends a text. None: from tokenizer_config.json beside the file, or the one that belongs to `bos`."""

    def files(self) -> list[tuple[Path, str]]:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return [(path, "tokenizer.json")]
        for names in (("tokenizer.json",), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"), ("vocab.txt",)):
            found = [_packed(path / name) for name in names]
            if all(found):
                return [(p, n) for p, n in zip(found, names, strict=True) if p is not None]
        raise DataError(
            f"{path}: the folder has no tokenizer.json, no encoder.json with vocab.bpe, no vocab.json with merges.txt, and no vocab.txt"
        )

    def names(self) -> dict[str, str]:
        return {} if self.eos is None else {"eos": self.eos}

    def beside(self) -> list[Path]:
        return [p for p in (self.files()[0][0].with_name(CONFIG),) if p.is_file()]

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        listed = self.files()
        where = str(listed[0][0])
        if listed[0][1] == "vocab.txt":
            text = wordpiece_json(listed[0][0])
        elif len(listed) == 1:
            read_json(read_bytes(listed[0][0]), where)  # a better message than the library's for invalid JSON
            text = read_bytes(listed[0][0]).decode()
        else:
            text = _gpt2_json(listed[0][0], listed[1][0])
        found = named_tokens(listed[0][0].parent)
        named = {"bos_token": SubwordTokenizer(text, self.bos, where).bos_token} if found is None else found
        named |= {k: v for k, v in (("bos_token", self.bos), ("eos_token", self.eos)) if v is not None}
        made = SubwordTokenizer(text, self.bos, where, named=named)
        if self.eos is not None and made.id_of(self.eos) is None:
            raise DataError(
                f"{where}: has no token {self.eos!r}. Set data.tokenizer.eos to one of its special tokens ({', '.join(made.added()) or 'none'})"
            )
        return made


CONFIG = "tokenizer_config.json"


def named_tokens(folder: Path) -> dict[str, str] | None:
    """Return `bos_token` and `eos_token` from a folder's tokenizer_config.json; None if there is no file, or it names neither."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    said = read_json(read_bytes(file), str(file))
    found = {}
    for key in ("bos_token", "eos_token"):
        value = said.get(key) if isinstance(said, dict) else None
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[key] = value
    return found or None


def _packed(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz"), path.with_name(path.name + ".zst")) if p.is_file()), None)


def _lines(path: Path) -> list[str]:
    r"""Split at \n only: other line separators of Unicode may be tokens."""
    text = decode(read_bytes(path), str(path)).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def wordpiece_json(vocab_at: Path) -> str:
    """Convert BERT's vocab.txt (one token per line) to tokenizer.json: WordPiece, in lower case if no token has a capital (A to Z)."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    lines = _lines(vocab_at)
    special = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in lines]
    if len(special) < 5 or len(set(lines)) < len(lines):
        raise DataError(f"{vocab_at}: expected one token per line, no duplicates, including [PAD], [UNK], [CLS], [SEP] and [MASK]")
    lower = not any("A" <= c <= "Z" for t in lines if not t.startswith("[") for c in t)
    tok = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(lines)}, unk_token="[UNK]"))  # noqa: S106 - not a password
    tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(special)
    return str(tok.to_str())


def _gpt2_json(vocab_at: Path, merges_at: Path) -> str:
    """Convert GPT-2's two files (Radford et al. 2019) to tokenizer.json: ids by token, and pairs in order of merging."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = read_json(read_bytes(vocab_at), str(vocab_at))
    if not isinstance(vocab, dict) or not all(isinstance(v, int) for v in vocab.values()):
        raise DataError(f"{vocab_at}: expected a JSON object of token to id")
    lines = _lines(merges_at)
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise DataError(f"{merges_at}: line {number} is {line!r}, expected two tokens separated by a blank")
        merges.append((pair[0], pair[1]))
    try:
        tok = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as err:  # the library raises bare Exception
        raise DataError(f"{merges_at}: does not match {vocab_at} ({err}). Use two files of the same tokenizer") from None
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([t for t in KNOWN_BOS if t in vocab])
    return str(tok.to_str())
