"""The small files that transformers wants beside the weights of a language model: tokenizer.json, tokenizer_config.json with the chat template,
generation_config.json with the tokens that end a text. Without them it does not stop where the model was trained to stop.

What the model that training started from brought along is kept, and changed where training changed it. Writes nothing (`weights.py` does).
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
    """What belongs beside the weights."""

    ids: dict[str, Any] = field(default_factory=dict)
    """`bos_token_id` and `eos_token_id`, for config.json."""
    files: dict[str, str] = field(default_factory=dict)
    """Contents by name."""


def companions(record: Mapping[str, Any], beside: Path | None) -> Companions:
    """Of a checkpoint.

    Args:
        record: what it holds beside weights (`preprocess`).
        beside: the Hugging Face folder that training started from.
    """
    preprocess: Mapping[str, Any] = record.get("preprocess") or {}
    if preprocess.get("tokenizer") is None:
        return Companions()
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    kind = preprocess.get("kind")
    if kind in ("chat", "pairs"):
        ends = [int(preprocess.get("end", tokenizer.eos)), tokenizer.eos]
    elif kind == "tokens" and "mask_token" not in preprocess:
        ends = [tokenizer.eos, tokenizer.bos]  # in training, the next document begins where one ends
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
        return {}  # characters and bytes are no tokenizer of theirs
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config = _json(beside, "tokenizer_config.json") or own | tokenizer.named
    if end is not None and (text := tokenizer.text_of(end)) is not None:
        config["eos_token"] = text
    there = None if beside is None else beside / "tokenizer.json"
    files = {"tokenizer.json": _own_json(tokenizer) if there is None or not there.is_file() else there.read_text(encoding="utf-8")}
    if template is not None:
        config["chat_template"] = template
        files["chat_template.jinja"] = template
    return files | {"tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False)}


def _own_json(tokenizer: SubwordTokenizer) -> str:
    """tokenizer.json; of a tokenizer that Tauon made, with the token that stood before each document in training put before each text."""
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
    found = read_json(folder / name)
    return dict(found) if isinstance(found, dict) else {}
