"""The tokenizer of a trained model: recorded in its checkpoint, or the tokenizer.json in its Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tauon.artifacts import find_checkpoint, run_of_compressed
from tauon.config import register
from tauon.data.files import read_bytes
from tauon.data.tokenizer import SubwordTokenizer, Tokenizer, read_json
from tauon.data.tokenizer_config import TokenizerConfig, named_tokens, wordpiece_json
from tauon.errors import CheckpointError, DataError

__all__ = ["FromModelConfig", "has_tokenizer", "tokenizer_of"]


@register("from-model")
class FromModelConfig(TokenizerConfig):
    """The tokenizer of a trained model. Default if `model.from` is set and `data.tokenizer` is not."""

    path: str | None = None
    """A run, a checkpoint, or a Hugging Face folder. Default: `model.from`."""

    def files(self) -> list[tuple[Path, str]]:
        path = self._folder()
        if _is_huggingface(path):
            return [(file, file.name) for file in (_file(path), path / "config.json")]
        return [(find_checkpoint(run_of_compressed(path)).path / "state.json", "state.json")]

    def beside(self) -> list[Path]:
        path = self._folder()
        return [p for p in (path / "tokenizer_config.json",) if _is_huggingface(path) and p.is_file()]

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        return tokenizer_of(self._folder())

    def _folder(self) -> Path:
        if self.path is None:
            raise DataError("data.tokenizer from-model has no model. Set model.from, or data.tokenizer.path.")
        return Path(self.path).expanduser()


def _is_huggingface(path: Path) -> bool:
    return (path / "config.json").is_file()


def has_tokenizer(path: Path) -> bool:
    """Return whether a trained model includes its tokenizer."""
    if _is_huggingface(path):
        return any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    try:
        return "tokenizer" in (find_checkpoint(run_of_compressed(path)).state.get("preprocess") or {})
    except CheckpointError:
        return False


def tokenizer_of(path: Path) -> Tokenizer:
    """Return the tokenizer of a trained model. `DataError` if there is none, or its ids do not match the model."""
    if not _is_huggingface(path):
        record = (find_checkpoint(run_of_compressed(path)).state.get("preprocess") or {}).get("tokenizer")
        if record is None:
            raise DataError(f"{path}: was not trained on text, so it has no tokenizer. Set data.tokenizer.")
        return Tokenizer.from_json(record, str(path))
    file = _file(path)
    config = read_json(read_bytes(path / "config.json"), str(path / "config.json"))
    text = wordpiece_json(file) if file.name == "vocab.txt" else read_bytes(file).decode()
    read_json(text.encode(), str(file))  # a better message than the library's for invalid JSON
    bos = _bos(text, config, path)
    tokenizer = SubwordTokenizer(text, bos, str(file), named=_named(text, config, path))
    vocab = config.get("vocab_size")
    if isinstance(vocab, int) and tokenizer.vocab_size > vocab:
        raise DataError(
            f"{file}: {tokenizer.vocab_size:,} token ids, but the model beside it has {vocab:,}. Use the tokenizer of this model."
        )
    return tokenizer


def _file(path: Path) -> Path:
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).is_file():
            return path / name
    missing = path / "tokenizer.json"
    raise DataError(f"{missing}: missing. Download it to the folder of the weights, or set data.tokenizer: {{kind: file, path: ...}}.")


def _bos(text: str, config: dict[str, Any], path: Path) -> str | None:
    """Return the token before documents in the model's training: by id in its config, or by name in its tokenizer."""
    import tokenizers

    said = config.get("bos_token_id")
    if isinstance(said, int):
        try:
            name = tokenizers.Tokenizer.from_str(text).id_to_token(said)
        except Exception:  # not a tokenizer at all: the caller reports it better
            return None
        if name is None:
            raise DataError(
                f"{path}: config.json has bos_token_id={said}, but the tokenizer beside it has no such token. Use the tokenizer of this model."
            )
        return str(name)
    beside = path / "tokenizer_config.json"
    if beside.is_file():
        named = read_json(read_bytes(beside), str(beside))
        for key in ("bos_token", "cls_token"):
            value = named.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
    return None


def _named(text: str, config: dict[str, Any], path: Path) -> dict[str, str] | None:
    """Return `bos_token` and `eos_token` as the publisher names them: in tokenizer_config.json, else by id in config.json."""
    import tokenizers

    said = named_tokens(path) or {}
    if "eos_token" not in said:
        ids = config.get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        name = tokenizers.Tokenizer.from_str(text).id_to_token(first) if isinstance(first, int) else None
        if name is None:
            return None
        if not said and (bos := _bos(text, config, path)) is not None:
            said = {"bos_token": bos}
        said = said | {"eos_token": str(name)}
    return said
