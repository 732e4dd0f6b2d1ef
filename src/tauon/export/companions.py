"""The small files that transformers needs with a language model: tokenizer.json, tokenizer_config.json with the chat template,
generation_config.json with the tokens that end a text. Without them, generation does not stop where the model was trained to stop.

Files of the pretrained model are kept, and changed only where training changed them. This file writes nothing (`weights.py` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tauon.artifacts import read_json
from tauon.data import Tokenizer, jinja_of
from tauon.data.tokenizer import SubwordTokenizer

__all__ = ["Companions", "companions"]


@dataclass(frozen=True)
class Companions:
    """The files and ids that are exported with the weights."""

    ids: dict[str, Any] = field(default_factory=dict)
    """`bos_token_id` and `eos_token_id`, for config.json."""
    files: dict[str, str] = field(default_factory=dict)
    """File name -> content."""


def companions(record: Mapping[str, Any], beside: Path | None) -> Companions:
    """Return the companion files of a checkpoint.

    Args:
        record: the checkpoint's state (`preprocess`).
        beside: the Hugging Face folder of the pretrained model, if there is one.
    """
    preprocess: Mapping[str, Any] = record.get("preprocess") or {}
    if preprocess.get("tokenizer") is None:
        return Companions()
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    kind = preprocess.get("kind")
    if kind in ("chat", "pairs"):
        ends = [int(preprocess.get("end", tokenizer.eos)), tokenizer.eos]
    elif kind == "tokens" and "mask_token" not in preprocess:
        ends = [tokenizer.eos, tokenizer.bos]  # in training, the next document follows directly
    else:
        return Companions({"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}, _tokenizer_files(tokenizer, None, None, beside))
    ends = list(dict.fromkeys(ends))
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    template = jinja_of(preprocess) if kind != "tokens" else None
    files = _tokenizer_files(tokenizer, ends[0], template, beside)
    generation = _json(beside, "generation_config.json") | ids
    return Companions(ids, files | {"generation_config.json": json.dumps(generation, indent=2)})


def _tokenizer_files(tokenizer: Tokenizer, end: int | None, template: str | None, beside: Path | None) -> dict[str, str]:
    if not isinstance(tokenizer, SubwordTokenizer):
        return {}  # transformers has no tokenizer of characters or bytes
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config = _json(beside, "tokenizer_config.json") or own | tokenizer.named
    if end is not None and (text := tokenizer.text_of(end)) is not None:
        config["eos_token"] = text
    original = None if beside is None else beside / "tokenizer.json"
    has_original = original is not None and original.is_file()
    files = {"tokenizer.json": original.read_text(encoding="utf-8") if original is not None and has_original else _own_json(tokenizer)}
    if template is not None:
        config["chat_template"] = template
        files["chat_template.jinja"] = template
    return files | {"tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False)}


def _own_json(tokenizer: SubwordTokenizer) -> str:
    """Return tokenizer.json. A tokenizer trained by Tauon adds its beginning-of-document token before each text, as in training."""
    if not tokenizer.splittable:
        return tokenizer.hugging_face_json()
    import tokenizers
    from tokenizers import processors

    tok, bos = tokenizers.Tokenizer.from_str(tokenizer.hugging_face_json()), tokenizer.bos_token
    tok.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, tokenizer.bos)]
    )
    return str(tok.to_str())


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None or not (folder / name).is_file():
        return {}
    content = read_json(folder / name)
    return dict(content) if isinstance(content, dict) else {}
