"""GGUF: a language model shaped like Llama in one file, for llama.cpp and what is built on it (Ollama, LM Studio).

Weights in float32, unquantised. Names and metadata are those of the `gguf` package; queries and keys of the architecture `llama` are permuted,
because llama.cpp rotates neighbouring pairs of numbers there and the model rotates halves. `gguf_check.py` reads the file back and computes
with it. llama.cpp itself is not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tauon.data import Tokenizer
from tauon.data.tokenizer import SubwordTokenizer
from tauon.errors import DataError, MissingExtra
from tauon.models import ModelConfig
from tauon.models.families.transformer import rope_frequencies

__all__ = ["architecture_of", "gguf_library", "gguf_tensors", "permuted", "write_gguf"]

FILE = "model.gguf"
_BLOCK = {
    "attention_norm": "attn_norm", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v", "attention.out": "attn_output",
    "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm", "mlp_norm": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}  # fmt: skip
_WHOLE = {"embed": "token_embd", "norm": "output_norm", "head": "output"}


def gguf_library() -> Any:
    """Return the module `gguf`. Raises `MissingExtra`."""
    try:
        import gguf
    except ImportError as err:
        raise MissingExtra("writing GGUF", "gguf") from err
    return gguf


def architecture_of(config: ModelConfig) -> str:
    """Return the architecture of llama.cpp with this shape: llama, qwen2 or qwen3.

    Raises:
        DataError: there is none; names what it lacks.
    """
    kind, get = config.kind_, config.__dict__.get
    lacks, window = "", get("window")
    if kind not in ("gpt", "llama", "mistral", "qwen2", "qwen3"):
        lacks = "it is not shaped like Llama"
    elif get("mlp") != "swiglu":
        lacks = f"the MLP is {get('mlp')}, and Llama's is swiglu (model.mlp)"
    elif window is not None and window < (get("seq_len") or 0):
        lacks = f"llama.cpp would not apply the sliding window of {get('window')} tokens"
    elif get("qk_norm") and get("qkv_bias"):
        lacks = "no architecture has both QK-norm and biases of queries"
    elif get("rope_scaling") is not None and (get("qk_norm") or get("qkv_bias")):
        lacks = "rope_scaling is only written for Llama's own architecture"
    if lacks:
        raise DataError(f"this model cannot be written as GGUF: {lacks}. Take another format: --to onnx")
    return "qwen3" if get("qk_norm") else "qwen2" if get("qkv_bias") else "llama"


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix so that the pairs (k, k + K/2) that are rotated become neighbours.

    >>> import torch
    >>> permuted(torch.arange(8.0)[:, None], 2).flatten().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    out: Tensor = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)
    return out


def gguf_tensors(config: ModelConfig, tensors: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the file, weight in float32) of every tensor."""
    architecture = architecture_of(config)
    heads = int(config.raw_value("heads"))
    kv_heads = int(config.__dict__.get("kv_heads") or heads)
    for name, held in tensors.items():
        weight = (held if isinstance(held, Tensor) else held.read()).detach().float()
        if name == "head.weight" and config.__dict__.get("tied"):
            continue
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            part, _, leaf = rest.rpartition(".")
            if architecture == "llama" and part in ("attention.q", "attention.k"):
                weight = permuted(weight, heads if part.endswith("q") else kv_heads)
            yield f"blk.{i}.{_BLOCK[part]}.{leaf}", weight
        else:
            part, _, leaf = name.rpartition(".")
            yield f"{_WHOLE[part]}.{leaf}", weight
    scaling = config.__dict__.get("rope_scaling")
    if scaling is not None:  # llama.cpp divides each angle by its factor
        size, base = _head_size(config), float(config.raw_value("rope_base"))
        yield "rope_freqs.weight", (rope_frequencies(size, base) / rope_frequencies(size, base, scaling)).float()


def write_gguf(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Any], preprocess: Mapping[str, Any], *, name: str, template: str | None = None
) -> str:  # fmt: skip
    """Write `model.gguf` into an existing folder and return a note about its tokenizer.

    Raises:
        DataError: the model is not shaped like Llama.
        MissingExtra: the package `gguf` is not installed.
    """
    gguf = gguf_library()
    writer = gguf.GGUFWriter(None, architecture_of(config))
    get = config.__dict__.get
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(int(config.raw_value("layers")))
    writer.add_context_length(int(config.raw_value("seq_len")))
    writer.add_embedding_length(int(config.raw_value("width")))
    writer.add_feed_forward_length(int(tensors["blocks.0.mlp.up.weight"].shape[0]))
    writer.add_head_count(int(config.raw_value("heads")))
    writer.add_head_count_kv(int(get("kv_heads") or config.raw_value("heads")))
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(float(config.raw_value("norm_eps")))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float(config.raw_value("rope_base")))
    writer.add_vocab_size(int(config.raw_value("vocab")))
    note = _add_tokenizer(writer, gguf, preprocess, int(config.raw_value("vocab")))
    if template is not None and not note:
        writer.add_chat_template(template)
    for label, weight in gguf_tensors(config, tensors):
        writer.add_tensor(label, np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file(folder / FILE)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return note


def _head_size(config: ModelConfig) -> int:
    return int(config.__dict__.get("head_size") or config.raw_value("width") // config.raw_value("heads"))


def _add_tokenizer(writer: Any, gguf: Any, preprocess: Mapping[str, Any], vocab: int) -> str:
    """Write the tokenizer with its merges; return why it could not be written, or ""."""
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"]) if preprocess.get("tokenizer") else None
    reason = "" if isinstance(tokenizer, SubwordTokenizer) else "the tokenizer has no subwords"
    if isinstance(tokenizer, SubwordTokenizer):
        whole = json.loads(tokenizer.hugging_face_json())
        model, before = whole["model"], json.dumps(whole.get("pre_tokenizer"))
        if model["type"] != "BPE" or model.get("byte_fallback") or "ByteLevel" not in before:
            reason = f"the tokenizer is not a byte-level BPE ({model['type']})"
    if reason:
        writer.add_tokenizer_model("no_vocab")
        return f"{reason}, which the file cannot describe: give llama.cpp token ids"
    assert isinstance(tokenizer, SubwordTokenizer)
    added = {t["id"]: t["content"] for t in whole.get("added_tokens", [])}
    names = {i: text for text, i in model["vocab"].items()} | added
    types = [gguf.TokenType.CONTROL if i in added else gguf.TokenType.NORMAL if i in names else gguf.TokenType.UNUSED for i in range(vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if "{1,3}" in before else "qwen2" if "\\\\p{N}" in before else "gpt-2")
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(vocab)])
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(int(preprocess.get("end", tokenizer.eos)))
    writer.add_add_bos_token(True)
    return ""
