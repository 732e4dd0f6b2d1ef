"""The tokenizer of a trained model: what its checkpoint recorded, or the tokenizer.json in its Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tauon.artifacts import find_checkpoint
from tauon.config import register
from tauon.data.files import read_bytes
from tauon.data.tokenizer import SubwordTokenizer, Tokenizer, read_json
from tauon.data.tokenizer_config import TokenizerConfig
from tauon.errors import CheckpointError, DataError

__all__ = ["FromModelConfig", "has_tokenizer", "tokenizer_of"]


@register("from-model")
class FromModelConfig(TokenizerConfig):
    """The tokenizer of a trained model. What is meant where `model.from` is given and no tokenizer is."""

    path: str | None = None
    """A run, a checkpoint, or a Hugging Face folder. Left out: `model.from`."""

    def files(self) -> list[tuple[Path, str]]:
        path = self._folder()
        if _is_huggingface(path):
            return [(path / "tokenizer.json", "tokenizer.json"), (path / "config.json", "config.json")]
        return [(find_checkpoint(path).path / "state.json", "state.json")]

    def build(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        return tokenizer_of(self._folder())

    def _folder(self) -> Path:
        if self.path is None:
            raise DataError("tokenizer from-model: of which model? Set model.from, or the tokenizer's path.")
        return Path(self.path).expanduser()


def _is_huggingface(path: Path) -> bool:
    return (path / "config.json").is_file()


def has_tokenizer(path: Path) -> bool:
    """Whether a trained model comes with its tokenizer."""
    if _is_huggingface(path):
        return (path / "tokenizer.json").is_file()
    try:
        return "tokenizer" in (find_checkpoint(path).state.get("preprocess") or {})
    except CheckpointError:
        return False


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer beside a trained model. Raises `DataError` where there is none, or its ids do not fit the model."""
    if not _is_huggingface(path):
        record = (find_checkpoint(path).state.get("preprocess") or {}).get("tokenizer")
        if record is None:
            raise DataError(f"{path}: was not trained on text, so it has no tokenizer. Give data.tokenizer.")
        return Tokenizer.from_json(record, str(path))
    file = path / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{file}: missing. Download it beside the weights, or give data.tokenizer: {{kind: file, path: ...}}.")
    config = read_json(read_bytes(path / "config.json"), str(path / "config.json"))
    text = read_bytes(file).decode()
    record = read_json(text.encode(), str(file))
    tokenizer = SubwordTokenizer(text, _bos(record, config, path), str(file))
    vocab = config.get("vocab_size")
    if isinstance(vocab, int) and tokenizer.vocab_size > vocab:
        raise DataError(f"{file}: {tokenizer.vocab_size:,} token ids, and the model beside it has {vocab:,}. They do not belong together.")
    return tokenizer


def _bos(tokenizer: dict[str, Any], config: dict[str, Any], path: Path) -> str | None:
    """The token that the model was trained to see before a document: what its config says by number, or its tokenizer by name."""
    said = config.get("bos_token_id")
    for token in tokenizer.get("added_tokens") or ():
        if token.get("id") == said and said is not None:
            return str(token["content"])
    beside = path / "tokenizer_config.json"
    if beside.is_file():
        named = read_json(read_bytes(beside), str(beside))
        for key in ("bos_token", "cls_token"):
            value = named.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
    return None
