"""Reads Hugging Face folders: config.json with model.safetensors, or in shards with an index, or pytorch_model.bin. `huggingface_write.py` writes them.

Reading opens the files and looks at their headers; a tensor, or the slice of it that a process wants, is read when it is asked for. No code
of a folder is run: safetensors and JSON, and `torch.load(weights_only=True)`. Names and sizes are those of `formats.py`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.artifacts import read_json
from tauon.artifacts.tensor_file import open_tensors
from tauon.config import dump, parse
from tauon.errors import CheckpointError, DataError, RecipeError
from tauon.models.base import ModelConfig
from tauon.models.families.gpt import GPTConfig
from tauon.models.pretrained.formats import CLASSIFIERS, FAMILIES, HEADS, REQUIRED, At, Family

__all__ = [
    "Folder",
    "family_of",
    "fingerprint_of",
    "is_huggingface",
    "is_tied",
    "names_of",
    "open_huggingface",
    "open_weights",
]

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Folder:
    """A published model on disk."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Any]
    """Weights by our names, read lazily."""
    raw: dict[str, Any]
    """Its config.json."""
    called: dict[str, str]
    """Our name -> Hugging Face's name of every weight of the model."""
    unknown: list[str]
    """Hugging Face names of weights that have no counterpart here."""
    dropped: list[str]
    """Hugging Face names of weights of another task's head."""
    fingerprint: str


class View:
    """One of our weights inside a Hugging Face tensor: a part of its outputs, maybe transposed. Slices read only what they need."""

    def __init__(self, source: Any, at: At) -> None:
        self.source, self.at = source, at
        shape = list(source.shape)
        self.outputs = len(shape) - 1 if at.transposed else 0
        if at.shape == "first":
            shape = shape[1:]
        elif at.shape == "flat":
            shape = [shape[0], math.prod(shape[1:])]
        i, n = at.part or (0, 1)
        each = shape[self.outputs] // n
        self.first = i * each
        shape[self.outputs] = each
        self.shape = tuple(reversed(shape)) if at.transposed else tuple(shape)

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        theirs = list(reversed(where)) if self.at.transposed else list(where)
        cut = theirs[self.outputs]
        theirs[self.outputs] = slice(self.first + cut.start, self.first + cut.stop)
        if self.at.shape == "first":
            inner: Tensor = self.source[(slice(0, 1), *theirs)][0]
            return inner
        if self.at.shape == "flat":
            rows: Tensor = self.source[(theirs[0], *(slice(0, n) for n in self.source.shape[1:]))].flatten(1)
            return rows[:, theirs[1]]
        part: Tensor = self.source[tuple(theirs)]
        return part.t() if self.at.transposed else part

    def read(self) -> Tensor:
        """Return the whole weight."""
        return self[tuple(slice(0, n) for n in self.shape)]


def is_huggingface(path: Path) -> bool:
    """Return whether a folder looks like a Hugging Face model."""
    return (path / "config.json").is_file()


# ---------------------------------------------------------------------------------------------- reading


def open_huggingface(path: Path) -> Folder:
    """Open a folder. Raises `CheckpointError` for an unknown architecture, an unexpected size or a damaged file."""
    raw = _json(path / "config.json")
    family, config = read_config(raw, str(path / "config.json"))
    files = list(_weight_files(path))
    found = {_today(name, family): source for file in files for name, source in open_weights(file).items()}
    names = names_of(family, config)
    tensors: dict[str, Any] = {}
    called: dict[str, str] = {}
    used: set[str] = set()
    for ours, at in names.items():
        at = at if isinstance(at, At) else At(at)
        called[ours] = at.name
        name = next((n for n in (at.name, at.name.removeprefix(family.prefix)) if n in found), None)
        if name is not None:
            used.add(name)
            whole = found[name]
            tensors[ours] = View(whole, at) if at.transposed or at.part or at.shape else whole
    if is_tied(config) and "embed.weight" in tensors:
        tensors["head.weight"] = tensors["embed.weight"]
        called["head.weight"] = called["embed.weight"]
        used.add("lm_head.weight")
    left = [n for n in found if n not in used and not any(fnmatch.fnmatchcase(n, p) for p in family.ignored)]
    dropped = [n for n in left if n.startswith(HEADS)]
    unknown = [n for n in left if n not in dropped]
    return Folder(path, config, tensors, raw, called, unknown, dropped, fingerprint_of(files, config))


def _today(name: str, family: Family) -> str:
    old = next((end for end in family.renamed if name.endswith(end)), None)
    return name if old is None else name.removesuffix(old) + family.renamed[old]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except DataError as err:
        raise CheckpointError(str(err)) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}. Download it again.")
    return found


def read_config(raw: Mapping[str, Any], where: str) -> tuple[Family, ModelConfig]:
    """Return the architecture that a config.json describes. `CheckpointError` lists everything that has no counterpart here."""
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise CheckpointError(f"{where}: model_type is {raw.get('model_type')!r}, and there are: {', '.join(FAMILIES)}. Take one of these.")
    record: dict[str, Any] = {"kind": family.kind, **family.settings}
    wrong: list[str] = []
    for key in family.keys:
        value = raw.get(key.theirs, key.default)
        if value is REQUIRED:
            wrong.append(f"{key.theirs} is missing")
        elif value is not None:
            record[key.ours] = value
    for name, allowed in family.fixed.items():
        value = raw.get(name)
        if value is not None and value not in allowed:
            wrong.append(f"{name} is {value!r}, expected {' or '.join(map(repr, allowed))}")
    if family.kind == "gpt2" and raw.get("n_inner") not in (None, 4 * raw.get("n_embd", 0)):
        wrong.append(f"n_inner is {raw['n_inner']!r}, expected four times n_embd")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        wrong.append("layer_types names other layers than full_attention")
    if any(key.ours == "norm_eps" and key.theirs == "rms_norm_eps" for key in family.keys):
        record |= _rope(raw, wrong)
    if family.kind == "vit":
        size = raw.get("image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        record["input_shape"] = [raw.get("num_channels", 3), height, width]
    architectures = raw.get("architectures") or []
    if family.architectures[1] and family.architectures[1] in architectures:
        record["outputs"] = len(raw.get("id2label") or ()) or raw.get("num_labels") or 2
    if wrong:
        raise CheckpointError(f"{where}: this {family.model_type} cannot be built here: {'; '.join(wrong)}. Take another checkpoint.")
    try:
        return family, parse(ModelConfig, record)
    except RecipeError as err:
        raise CheckpointError(f"{where}: {err}") from None


def _rope(raw: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    now = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or now
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    found: dict[str, Any] = {"rope_base": float(now.get("rope_theta", raw.get("rope_theta", 10_000.0)))}
    if now.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        wrong.append("partial_rotary_factor is not 1")
    if kind == "llama3":
        try:
            found["rope_scaling"] = {
                "factor": scaling["factor"], "low": scaling["low_freq_factor"], "high": scaling["high_freq_factor"],
                "trained_for": scaling["original_max_position_embeddings"],
            }  # fmt: skip
        except KeyError as err:
            wrong.append(f"its rope scaling lacks {err}")
    elif kind != "default":
        wrong.append(f"rope_type is {kind!r}, expected default or llama3")
    return found


def _weight_files(path: Path) -> Iterator[Path]:
    for single, index in (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (path / index).is_file():
            listed = _json(path / index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(n, str) and _PLAIN.fullmatch(n) for n in listed.values()):
                raise CheckpointError(f"{path / index}: expected a weight_map of names to plain file names. Download it again.")
            for name in sorted(set(listed.values())):
                if not (path / name).is_file():
                    raise CheckpointError(f"{path / name}: missing, and {index} names it. Download it, too.")
                yield path / name
            return
        if (path / single).is_file():
            yield path / single
            return
    raise CheckpointError(f"{path}: no model.safetensors, no index of shards, no pytorch_model.bin. Download the weights, too.")


def open_weights(file: Path) -> Mapping[str, Any]:
    """Return the tensors of a file by name: safetensors, or a torch file of weights only (also under the key `state_dict`)."""
    if file.suffix == ".safetensors":
        return open_tensors(file, {})
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as err:  # whatever the unpickler says of bytes that are no tensors
        raise CheckpointError(
            f"{file}: cannot be read as weights alone ({str(err).splitlines()[0]}). Take the safetensors files."
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise CheckpointError(f"{file}: expected tensors by name. Take the safetensors files.")
    return found


def fingerprint_of(files: list[Path], config: ModelConfig | None = None) -> str:
    """Return the sha256 of the architecture, the files' headers and a sample of every tensor's bytes, without reading all of them."""
    digest = hashlib.sha256(b"" if config is None else json.dumps(dump(config), sort_keys=True).encode())
    for file in files:
        with file.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            ranges: list[tuple[int, int]] = [(0, size)]
            if file.suffix == ".safetensors":
                length = int.from_bytes(f.read(8), "little")
                header = f.read(length)
                digest.update(header)
                ranges = [
                    (8 + length + v["data_offsets"][0], 8 + length + v["data_offsets"][1])
                    for k, v in json.loads(header).items()
                    if k != "__metadata__"
                ]
            for start, stop in ranges:
                for k in range(4):
                    digest.update(os.pread(f.fileno(), 64, start + (stop - start) * k // 4))
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- names


def family_of(config: ModelConfig) -> Family:
    """Return the published architecture of a model. Raises `CheckpointError` if it has none."""
    kind = config.kind_
    if isinstance(config, GPTConfig):  # by what it computes, whatever it is called
        return _causal_family(config)
    if kind not in FAMILIES:
        there = ", ".join(sorted({f.kind for f in FAMILIES.values()}))
        raise CheckpointError(f"model {kind} has no counterpart among Hugging Face's. Available: {there}.")
    return FAMILIES[kind]


def _causal_family(config: GPTConfig) -> Family:
    squared = config.raw_value("mlp") == "relu2"
    qk_norm, bias, window, scaled = (config.raw_value(k) for k in ("qk_norm", "qkv_bias", "window", "rope_scaling"))
    wrong = []
    if squared:
        model_type = "apertus" if qk_norm else "arcee"
        if bias:
            wrong.append("with a squared ReLU, a published one has no biases (model.qkv_bias=false, or model.mlp=swiglu)")
        if window:
            wrong.append("with a squared ReLU, a published one has no sliding window (leave model.window out, or model.mlp=swiglu)")
    else:
        model_type = "qwen3" if qk_norm else "qwen2" if bias else "mistral" if window else "llama"
        if sum(bool(x) for x in (qk_norm, bias, window)) > 1:
            wrong.append("it mixes qk_norm, qkv_bias and window, of which a published one has one at most")
        if model_type == "qwen2" and config.raw_value("head_size") not in (None, config.raw_value("width") // config.raw_value("heads")):
            wrong.append("Qwen 2 has heads of width / heads")
        if model_type != "llama" and scaled is not None:
            wrong.append("rope_scaling is Llama's")
    if wrong:
        raise CheckpointError(f"model {config.kind_} has no counterpart among Hugging Face's: {'; '.join(wrong)}.")
    return FAMILIES[model_type]


def names_of(family: Family, config: ModelConfig) -> dict[str, str | At]:
    """Return our name -> Hugging Face's name, block by block, for a model with this head."""
    table = dict(family.names)
    if config.__dict__.get("outputs") is not None:
        table = {k: v for k, v in table.items() if not k.startswith(("transform", "head"))} | CLASSIFIERS[family.model_type]
    out: dict[str, str | At] = {}
    for ours, at in table.items():
        numbers = range(config.raw_value("layers")) if "{i}" in ours else range(1)
        for i in numbers:
            name = at.name if isinstance(at, At) else at
            theirs = name.replace("{i}", str(i))
            out[ours.replace("{i}", str(i))] = replace(at, name=theirs) if isinstance(at, At) else theirs
    return out


def is_tied(config: ModelConfig) -> bool:
    """Return whether a model's output head is its embedding."""
    return config.kind_ == "gpt2" or (config.kind_ == "bert" and config.raw_value("outputs") is None) or bool(config.__dict__.get("tied"))
