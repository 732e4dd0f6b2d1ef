"""Writes Hugging Face folders: config.json, model.safetensors (in shards with an index if it is large), and other files that transformers expects
with them. `huggingface.py` reads them; names and sizes are those of `formats.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.artifacts import folder_atomically
from tauon.errors import CheckpointError
from tauon.models.base import ModelConfig
from tauon.models.pretrained.formats import At, Family
from tauon.models.pretrained.huggingface import family_of, is_tied, names_of

__all__ = ["joined", "write_huggingface"]

_SHARD = 4 * 2**30
"""Largest size in bytes of a file of weights."""
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.txt",
)
"""Small files that are copied from the folder of the pretrained model."""


def write_config(
    family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], labels: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return Hugging Face's config.json for a model."""
    outputs = config.__dict__.get("outputs")
    raw: dict[str, Any] = {
        "architectures": [family.architectures[1 if outputs else 0]],
        "model_type": family.model_type,
        "dtype": "float32",
    }
    sizes: dict[str, Any] = {
        "kv_heads": config.__dict__.get("kv_heads") or config.raw_value("heads"), "mlp_width": shapes["blocks.0.mlp.up.weight"][0],
        "head_size": config.__dict__.get("head_size") or config.raw_value("width") // config.raw_value("heads"),
    }  # fmt: skip
    for key in family.keys:
        raw[key.theirs] = sizes[key.ours] if key.ours in sizes else config.raw_value(key.ours)
    raw |= {name: allowed[0] for name, allowed in family.fixed.items()}
    if "rope_base" in config.__dict__:
        scaling = config.raw_value("rope_scaling")
        raw["rope_theta"] = config.raw_value("rope_base")
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": config.raw_value("rope_base")}
        if scaling is not None:
            raw["rope_scaling"] = {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.trained_for,
            }  # fmt: skip
            raw["rope_parameters"] |= raw["rope_scaling"]
    if family.kind == "vit":
        channels, height, width = config.raw_value("input_shape")
        raw |= {"num_channels": channels, "image_size": height if height == width else [height, width]}
    if family.kind in ("bert", "vit"):
        raw["attention_probs_dropout_prob"] = config.raw_value("dropout")
    if family.kind == "gpt2":
        raw |= {"embd_pdrop": config.raw_value("dropout"), "attn_pdrop": 0.0, "n_inner": None}
    if outputs:
        names = labels or tuple(f"LABEL_{i}" for i in range(outputs))
        raw |= {
            "num_labels": outputs,
            "id2label": {str(i): n for i, n in enumerate(names)},
            "label2id": {n: i for i, n in enumerate(names)},
        }
    return raw


def write_huggingface(
    to: Path, config: ModelConfig, tensors: Mapping[str, Any], *, ids: Mapping[str, Any] | None = None, labels: tuple[str, ...] = (),
    beside: Path | None = None, files: Mapping[str, str] | None = None,
) -> list[Path]:  # fmt: skip
    """Write a folder that `transformers` loads, atomically; return its files.

    Args:
        to: the folder, which must not exist.
        config: a resolved config, without adapters.
        tensors: weights by our names, or what reads them.
        ids: `bos_token_id` and the like, for config.json.
        labels: names of a classifier's classes.
        beside: the folder that training started from, whose small files (tokenizer, chat template) are copied along.
        files: contents of small files by name; they come before those of `beside`.

    Raises:
        CheckpointError: the model has no counterpart among theirs.
    """
    import shutil

    from safetensors.torch import save_file

    family = family_of(config)
    names = names_of(family, config)
    skipped = {"head.weight"} if is_tied(config) else set()
    unknown = [n for n in tensors if n not in names and n not in skipped]
    if unknown:
        raise CheckpointError(f"no name in Hugging Face's {family.model_type} for: {', '.join(unknown[:8])}.")
    theirs: dict[str, list[tuple[str, At]]] = {}
    for ours, at in names.items():
        if ours in tensors and ours not in skipped:
            at = at if isinstance(at, At) else At(at)
            theirs.setdefault(at.name, []).append((ours, at))
    shards: list[list[str]] = [[]]
    sizes = {name: sum(4 * _elements(tensors[o].shape) for o, _ in parts) for name, parts in theirs.items()}
    for name in theirs:
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + sizes[name] > _SHARD:
            shards.append([])
        shards[-1].append(name)
    raw = write_config(family, config, {n: tuple(t.shape) for n, t in tensors.items()}, labels) | dict(ids or {})
    with folder_atomically(to) as folder:
        index: dict[str, str] = {}
        for k, held in enumerate(shards):
            file = "model.safetensors" if len(shards) == 1 else f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file({n: joined(theirs[n], tensors, raw) for n in held}, str(folder / file), metadata={"format": "pt"})
            index |= dict.fromkeys(held, file)
        if len(shards) > 1:
            whole = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(whole, indent=2))
        if beside is not None:
            for name in _BESIDE:
                if (beside / name).is_file():
                    shutil.copyfile(beside / name, folder / name)
        for name, content in (files or {}).items():
            (folder / name).write_text(content, encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(raw, indent=2))
    return sorted(to.iterdir())


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def joined(parts: list[tuple[str, At]], tensors: Mapping[str, Any], raw: Mapping[str, Any]) -> Tensor:
    """Return a Hugging Face tensor from our weights. `raw`: the Hugging Face config."""
    ordered = sorted(parts, key=lambda item: item[1].part or (0, 1))
    pieces = []
    for name, at in ordered:
        t = tensors[name]
        t = t if isinstance(t, Tensor) else t.read()
        if at.shape == "first":
            t = t[None]
        elif at.shape == "flat":
            t = t.view(len(t), raw["num_channels"], raw["patch_size"], raw["patch_size"])
        pieces.append(t.t() if at.transposed else t)
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1 if ordered[0][1].transposed else 0)
    return whole.detach().float().contiguous().clone()
