"""Hugging Face folders in and out: config.json with model.safetensors, or in shards with an index; pytorch_model.bin is read, too.

Reading opens the files and looks at their headers; a tensor, or the slice of it that a process wants, is read when it is asked for. No code
of a folder is run: safetensors and JSON, and `torch.load(weights_only=True)`. Names and sizes are those of `published.py`.
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

from tauon.artifacts import folder_atomically, read_json
from tauon.artifacts.tensor_file import open_tensors
from tauon.config import dump, parse
from tauon.errors import CheckpointError, DataError, RecipeError
from tauon.models.base import ModelConfig
from tauon.models.published import CLASSIFIERS, FAMILIES, HEADS, REQUIRED, At, Family

__all__ = [
    "Folder",
    "family_of",
    "fingerprint_of",
    "is_huggingface",
    "names_of",
    "open_huggingface",
    "open_weights",
    "write_huggingface",
]

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHARD = 4 * 2**30
"""Bytes of a file of weights at most."""
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.txt",
)
"""Small files that are copied along, from the model that training started from."""


@dataclass(frozen=True)
class Folder:
    """A published model on disk."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Any]
    """By our names; read when asked for."""
    raw: dict[str, Any]
    """Its config.json."""
    called: dict[str, str]
    """Our name -> theirs, of every weight that the model has."""
    unknown: list[str]
    """Their names of weights that no table knows."""
    dropped: list[str]
    """Their names of weights of another task's head."""
    fingerprint: str


class View:
    """A weight of ours inside one of theirs: a part of its outputs, transposed. Indexed by slices, it reads what it needs."""

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
        """All of it."""
        return self[tuple(slice(0, n) for n in self.shape)]


def is_huggingface(path: Path) -> bool:
    """Whether a folder looks like one."""
    return (path / "config.json").is_file()


# ---------------------------------------------------------------------------------------------- reading


def open_huggingface(path: Path) -> Folder:
    """Open a folder. Raises `CheckpointError` for an architecture, a size or a file that is not as expected."""
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
    if _tied(config) and "embed.weight" in tensors:
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
    """The architecture that a config.json describes. `CheckpointError` lists all that has no counterpart here."""
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise CheckpointError(f"{where}: model_type is {raw.get('model_type')!r}, and there are: {', '.join(FAMILIES)}. Take one of these.")
    record: dict[str, Any] = {"kind": family.kind}
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
    """The tensors of a file by name: safetensors, or what torch reads as weights alone (also under `state_dict`, as many save them)."""
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
    """sha256 over the architecture, the files' headers and a sample of every tensor's bytes: tells models apart without reading all."""
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


# ---------------------------------------------------------------------------------------------- writing


def family_of(config: ModelConfig) -> Family:
    """The published architecture that a model of ours is. Raises `CheckpointError` where it is none of them."""
    kind = config.kind_
    if kind in ("gpt", "llama", "mistral", "qwen2", "qwen3"):  # by what it computes, whatever it is called
        wrong = []
        if config.peek("mlp") != "swiglu":
            wrong.append("its MLP is relu2 (model.mlp=swiglu)")
        qk_norm, bias, window, scaled = (config.peek(k) for k in ("qk_norm", "qkv_bias", "window", "rope_scaling"))
        if sum(bool(x) for x in (qk_norm, bias, window)) > 1:
            wrong.append("it mixes qk_norm, qkv_bias and window, of which a published one has one at most")
        kind = "qwen3" if qk_norm else "qwen2" if bias else "mistral" if window else "llama"
        if kind == "qwen2" and config.peek("head_size") not in (None, config.peek("width") // config.peek("heads")):
            wrong.append("Qwen 2 has heads of width / heads")
        if kind != "llama" and scaled is not None:
            wrong.append("rope_scaling is Llama's")
        if wrong:
            raise CheckpointError(f"model {config.kind_} has no counterpart among Hugging Face's: {'; '.join(wrong)}.")
    found = next((f for f in FAMILIES.values() if f.kind == kind), None)
    if found is None:
        there = ", ".join(sorted({f.kind for f in FAMILIES.values()} | {"gpt"}))
        raise CheckpointError(f"model {config.kind_} has no counterpart among Hugging Face's. There are: {there}.")
    return found


def names_of(family: Family, config: ModelConfig) -> dict[str, str | At]:
    """Our name -> theirs, block by block, for a model with this head."""
    table = dict(family.names)
    if config.__dict__.get("outputs") is not None:
        table = {k: v for k, v in table.items() if not k.startswith(("transform", "head"))} | CLASSIFIERS[family.model_type]
    out: dict[str, str | At] = {}
    for ours, at in table.items():
        numbers = range(config.peek("layers")) if "{i}" in ours else range(1)
        for i in numbers:
            name = at.name if isinstance(at, At) else at
            theirs = name.replace("{i}", str(i))
            out[ours.replace("{i}", str(i))] = replace(at, name=theirs) if isinstance(at, At) else theirs
    return out


def _tied(config: ModelConfig) -> bool:
    return config.kind_ == "gpt2" or (config.kind_ == "bert" and config.peek("outputs") is None) or bool(config.__dict__.get("tied"))


def write_config(
    family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], labels: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Their config.json of a model of ours."""
    outputs = config.__dict__.get("outputs")
    raw: dict[str, Any] = {
        "architectures": [family.architectures[1 if outputs else 0]],
        "model_type": family.model_type,
        "dtype": "float32",
    }
    sizes: dict[str, Any] = {
        "kv_heads": config.__dict__.get("kv_heads") or config.peek("heads"), "mlp_width": shapes["blocks.0.mlp.up.weight"][0],
        "head_size": config.__dict__.get("head_size") or config.peek("width") // config.peek("heads"),
    }  # fmt: skip
    for key in family.keys:
        raw[key.theirs] = sizes[key.ours] if key.ours in sizes else config.peek(key.ours)
    raw |= {name: allowed[0] for name, allowed in family.fixed.items()}
    if "rope_base" in config.__dict__:
        scaling = config.peek("rope_scaling")
        raw["rope_theta"] = config.peek("rope_base")
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": config.peek("rope_base")}
        if scaling is not None:
            raw["rope_scaling"] = {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.trained_for,
            }  # fmt: skip
            raw["rope_parameters"] |= raw["rope_scaling"]
    if family.kind == "vit":
        channels, height, width = config.peek("input_shape")
        raw |= {"num_channels": channels, "image_size": height if height == width else [height, width]}
    if family.kind in ("bert", "vit"):
        raw["attention_probs_dropout_prob"] = config.peek("dropout")
    if family.kind == "gpt2":
        raw |= {"embd_pdrop": config.peek("dropout"), "attn_pdrop": 0.0, "n_inner": None}
    if outputs:
        names = labels or tuple(f"LABEL_{i}" for i in range(outputs))
        raw |= {
            "num_labels": outputs,
            "id2label": {str(i): n for i, n in enumerate(names)},
            "label2id": {n: i for i, n in enumerate(names)},
        }
    return raw


def write_huggingface(
    to: Path, config: ModelConfig, tensors: Mapping[str, Any], *, ids: Mapping[str, int] | None = None, tokenizer: str | None = None,
    labels: tuple[str, ...] = (), beside: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Write a folder that `transformers` loads; returns its files. All of it, or nothing.

    Args:
        to: the folder, which must not exist.
        config: a resolved config, without adapters.
        tensors: weights by our names, or what reads them.
        ids: `bos_token_id` and the like.
        tokenizer: the text of a tokenizer.json; with `ids`, its special token.
        labels: names of a classifier's classes.
        beside: the folder that training started from, whose small files (tokenizer, chat template) are copied along.

    Raises:
        CheckpointError: the model has no counterpart among theirs.
    """
    import shutil

    from safetensors.torch import save_file

    family = family_of(config)
    names = names_of(family, config)
    skipped = {"head.weight"} if _tied(config) else set()
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
            save_file({n: _joined(theirs[n], tensors, raw) for n in held}, str(folder / file), metadata={"format": "pt"})
            index |= dict.fromkeys(held, file)
        if len(shards) > 1:
            whole = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(whole, indent=2))
        if beside is not None:
            for name in _BESIDE:
                if (beside / name).is_file():
                    shutil.copyfile(beside / name, folder / name)
        elif tokenizer is not None:
            (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(raw, indent=2))
    return sorted(to.iterdir())


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _joined(parts: list[tuple[str, At]], tensors: Mapping[str, Any], raw: Mapping[str, Any]) -> Tensor:
    """Their weight from the parts of ours; `raw`: their config."""
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
