"""Loads pretrained models: from a run or checkpoint of Tauon, a Hugging Face folder, or a name on its hub.

`open_model_folder` finds and opens a model; `resolved` turns a recipe's `model` section into the checkpoint's architecture and refuses
contradictions; `initial_weights` matches tensors and parameters. Tensors are read lazily, by slices.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauon.artifacts import Checkpoint, find_checkpoint, read_json
from tauon.artifacts.tensor_file import open_tensors
from tauon.config import Fraction, register
from tauon.distributed import fill
from tauon.errors import CheckpointError, MissingExtra, Problem, RecipeError
from tauon.models.adapters import is_adapter, merged, saved_weights
from tauon.models.base import Model, ModelConfig, Size, from_record
from tauon.models.pretrained.huggingface import fingerprint_of, is_huggingface, open_huggingface, open_weights
from tauon.models.pretrained.peft import read_peft
from tauon.types import DataSpec

__all__ = [
    "CheckpointConfig",
    "LoadReport",
    "PretrainedModel",
    "frozen_base_weights",
    "initial_weights",
    "is_checkpoint",
    "load_weights",
    "match_weights",
    "open_model_folder",
    "open_pretrained",
    "refuse_misfits",
    "resolved",
]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
_FILES = (".safetensors", ".pt", ".pth", ".th", ".bin")
"""Suffixes of files of weights."""
_FREE = ("from_", "adapt", "dropout", "input_dropout", "seq_len", "outputs", "drop_path")
"""Fields that may differ from the checkpoint's, or that follow from shapes."""


@register("checkpoint")
class CheckpointConfig(ModelConfig):
    """The model of a checkpoint (`from`); the default if `from` is set and no kind."""

    input_kind = ("tokens", "masked-tokens", "labelled-text", "chat", "pairs", "arrays", "series", "signals")

    dropout: Fraction | None = None
    """Share of activations dropped in training. Left out: the checkpoint's."""
    seq_len: Size | None = None
    """Longest sequence in tokens, for models with rotary positions. Left out: the checkpoint's."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("from_") is None:
            yield (
                "from",
                "is missing: kind checkpoint takes its architecture from it. Set model.from to a run or a folder, or use another kind.",
            )


@dataclass(frozen=True)
class PretrainedModel:
    """A pretrained model on disk."""

    path: Path
    layout: str
    """`tauon`, `huggingface`, or `weights` (a file of weights only)."""
    config: ModelConfig
    """Its architecture, without adapters."""
    tensors: Mapping[str, Any]
    """Weights by our names, read lazily."""
    fingerprint: str
    """Hash that identifies its weights."""
    labels: tuple[str, ...]
    """Names of its classes, if it records them."""
    called: Mapping[str, str]
    """Our name of a weight -> its name in the file."""
    unknown: tuple[str, ...] = ()
    """Weights in the file that have no counterpart here."""
    dropped: tuple[str, ...] = ()
    """Weights in the file that belong to another task's head."""
    sparse: tuple[str, ...] = ()
    """Layers that were made sparse: their zeros stay zero."""

    @property
    def reference(self) -> dict[str, str]:
        """The reference to the base model that a checkpoint of adapters stores."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}


def open_model_folder(ref: str) -> PretrainedModel:
    """Open the model that `model.from` names. Raises `CheckpointError` if it does not exist or cannot be read."""
    path = _found(ref)
    if path.is_file():
        raise CheckpointError(f"model.from: {ref} is a file of weights without the architecture. Set model.kind and its sizes.")
    if is_huggingface(path):
        f = open_huggingface(path)
        labels = tuple(str(v) for _, v in sorted((f.raw.get("id2label") or {}).items(), key=lambda kv: int(kv[0])))
        return PretrainedModel(
            path, "huggingface", f.config, f.tensors, f.fingerprint, labels, f.called, tuple(f.unknown), tuple(f.dropped)
        )
    if (compressed := _compressed_folder(path)) is not None:
        return _open_compressed(compressed)
    checkpoint = find_checkpoint(path)
    record = checkpoint.state.get("model")
    if record is None:
        raise CheckpointError(f"{checkpoint.path}: does not record its model. Use the checkpoint of a run.")
    config = from_record(record)
    labels = tuple((checkpoint.state.get("spec") or {}).get("labels") or ())
    tensors = weights_of(checkpoint)
    if config.adapt is None:
        sparse = tuple(checkpoint.state.get("sparse") or ())
        return PretrainedModel(path, "tauon", config, tensors, checkpoint.hash, labels, {n: n for n in tensors}, sparse=sparse)
    base = base_of(checkpoint)
    tensors = merged(base.tensors, tensors, config.adapt.scale, rounded=config.adapt.quantize == "nf4")
    config = config.model_copy(update={"from_": None, "adapt": None})
    return PretrainedModel(path, "tauon", config, tensors, checkpoint.hash, labels, {n: n for n in tensors})


def _compressed_folder(path: Path) -> Path | None:
    """Return the folder of a model that `compress` wrote, if `path` is it or contains it."""
    return next((p for p in (path, path / "model") if (p / "compressed.json").is_file()), None)


def _open_compressed(path: Path) -> PretrainedModel:
    about = read_json(path / "compressed.json")
    kinds = {layer["kind"] for layer in about["layers"]}
    rounded = sorted(k for k in kinds if k.startswith(("int", "bf16")))
    if rounded or about.get("graph") is not None:
        what = ", ".join(rounded) or "quantised layers"
        raise CheckpointError(
            f"model.from: {path} has weights in fewer bits ({what}), which cannot be trained. Start from the run itself, with `qat`, and compress again."
        )
    plain = {k: v for k, v in about["model"].items() if k != "from"}
    config = from_record({"kind": "compressed", "model": plain, "layers": about["layers"]} if about["layers"] else plain)
    tensors: dict[str, Any] = dict(open_tensors(path / "model.safetensors", about["tied"]))
    sparse = tuple(layer for fact in about["facts"] if "zeros" in fact for layer in fact["layers"])
    return PretrainedModel(
        path, "compressed", config, tensors, about["sha256"]["model.safetensors"], (), {n: n for n in tensors}, sparse=sparse
    )


def is_weights(ref: str) -> bool:
    """Return whether `model.from` names a file of weights only."""
    path = Path(ref).expanduser()
    return path.is_file() and path.suffix in _FILES


def is_checkpoint(ref: str) -> bool:
    """Return whether `model.from` names an existing run or checkpoint of Tauon."""
    path = Path(ref).expanduser()
    return path.is_dir() and not is_huggingface(path) and _compressed_folder(path) is None


def open_pretrained(config: ModelConfig) -> PretrainedModel | None:
    """Open the pretrained model of a recipe's `model` section; None if it has none."""
    if config.from_ is None:
        return None
    if not is_weights(config.from_) or isinstance(config, CheckpointConfig):
        return open_model_folder(config.from_)
    path = _found(config.from_)
    tensors = dict(config.convert_state_dict(open_weights(path)))
    return PretrainedModel(path, "weights", config, tensors, fingerprint_of([path]), (), {n: n for n in tensors})


def weights_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the weights of a checkpoint that are evaluated: the average if there is one."""
    tensors: dict[str, Any] = dict(checkpoint.lazy("model"))
    if "ema" in checkpoint.groups():
        tensors |= checkpoint.lazy("ema")
        tensors |= {name: tensors[kept] for name, kept in checkpoint.manifest["aliases"].get("model", {}).items()}
    return tensors


def base_of(checkpoint: Checkpoint) -> PretrainedModel:
    """Open the base model of a checkpoint's adapters. `CheckpointError` if it is missing or was replaced."""
    base = checkpoint.state.get("base") or {}
    pretrained = open_pretrained(from_record(checkpoint.state["model"]).model_copy(update={"from_": str(base.get("path"))}))
    assert pretrained is not None
    if pretrained.fingerprint != base.get("fingerprint"):
        raise CheckpointError(
            f"{checkpoint.path} has adapters for another base: {base['path']} had fingerprint {str(base.get('fingerprint'))[:12]} when they "
            f"were trained, and now has {pretrained.fingerprint[:12]}. Restore that base model."
        )
    return pretrained


def _found(ref: str) -> Path:
    path = Path(ref).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file() and path.suffix in _FILES:
        return path.resolve()
    if path.exists():
        kinds = ", ".join(_FILES)
        raise CheckpointError(
            f"model.from: {ref} is a file. Give a folder: a run, a checkpoint, one with a config.json; or weights ({kinds})."
        )
    if _HUB.fullmatch(ref) is None:
        raise CheckpointError(
            f"model.from: there is no folder {ref}. Give a run, a checkpoint, a Hugging Face folder, or org/name on the hub."
        )
    return _from_hub(ref)


def _from_hub(ref: str) -> Path:
    """Download `org/name` or `org/name@revision`, or find it in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as err:
        raise MissingExtra(f"model.from: there is no folder {ref}, and reading it from the Hugging Face hub", "hub") from err
    name, _, revision = ref.partition("@")
    patterns = ["*.json", "*.safetensors", "*.jinja", "vocab.txt"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as err:  # it raises many types: offline, not found, no permission
        raise CheckpointError(
            f"model.from: there is no folder {ref}, and it could not be downloaded from the Hugging Face hub "
            f"({type(err).__name__}: {str(err).splitlines()[0]}). "
            "Check the name and the network, or give a folder."
        ) from None


# ---------------------------------------------------------------------------------------------- architecture


def resolved(config: ModelConfig, spec: DataSpec) -> ModelConfig:
    """The config with sizes from the checkpoint that it starts from, then from the data. `RecipeError` lists contradictions."""
    if config.from_ is None or (is_weights(config.from_) and not isinstance(config, CheckpointConfig)):
        return config.resolve(spec)
    pretrained = open_model_folder(config.from_)
    base = pretrained.config
    if isinstance(config, CheckpointConfig):
        given = {n for n in ("dropout", "seq_len") if getattr(config, n) is not None}
    elif type(config) is not type(base):
        message = f"{config.kind_}, but {config.from_} holds a {base.kind_}. Leave it out: the checkpoint says what it is."
        raise RecipeError([Problem("model.kind", message)])
    else:
        given = config.model_fields_set - {"from_", "adapt"}
    wrong = []
    changed: dict[str, Any] = {"from_": config.from_, "adapt": None}
    for name in sorted(given):
        value = getattr(config, name)
        if name not in type(base).model_fields:
            wrong.append(Problem(f"model.{name}", f"a {base.kind_} has none. Drop it."))
        elif name in _FREE:
            changed[name] = value
        elif value != base.raw_value(name):
            wrong.append(
                Problem(f"model.{name}", f"{value}, but {config.from_} has {base.raw_value(name)}. Leave it out: the checkpoint decides.")
            )
    if wrong:
        raise RecipeError(wrong)
    if "outputs" in type(base).model_fields and "outputs" not in given:
        changed["outputs"] = None  # the data's: another number of classes gets a new head
    return base.model_copy(update=changed).resolve(spec)


# ---------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class LoadReport:
    """Result of matching a checkpoint's weights with a model."""

    taken: dict[str, Any]
    """Weights of the model that the checkpoint has."""
    fresh: tuple[str, ...]
    """Weights of the model's head that are initialised from scratch: other classes, another task, or no head in the checkpoint."""
    dropped: tuple[str, ...]
    """Weights of the checkpoint's head that the model does not use."""

    def describe(self) -> str:
        """Return a description for the log."""
        parts = [f"{len(self.taken):,} tensors"]
        if self.fresh:
            parts.append(f"initialised from scratch: {', '.join(self.fresh)}")
        if self.dropped:
            parts.append(f"not loaded: {', '.join(self.dropped)}")
        return "; ".join(parts)


def match_weights(model: Model, pretrained: PretrainedModel) -> LoadReport:
    """Match names and shapes. Missing, unexpected and misshaped weights raise a `CheckpointError` that lists them all."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items() if not is_adapter(name)}
    tensors = dict(pretrained.tensors)

    def heads(name: str) -> list[str]:
        return [p for p in model.modules_to_save if fnmatch.fnmatchcase(name, p)]

    reinitialised: set[str] = set()
    wrong: list[str] = []
    for name, shape in own.items():
        saved_shape = tuple(tensors[name].shape) if name in tensors else None
        called = pretrained.called.get(name, name)
        if saved_shape is None:
            reinitialised.update(heads(name))
            wrong += [] if heads(name) else [f"missing {called} {shape}"]
        elif saved_shape != shape:
            resized = bool(heads(name)) and saved_shape[1:] == shape[1:]
            reinitialised.update(heads(name) if resized else ())
            wrong += [] if resized else [f"{called} has shape {saved_shape}, the model's is {shape}"]
    fresh = [n for n in own if any(fnmatch.fnmatchcase(n, p) for p in reinitialised)]
    over = [n for n in tensors if n not in own]
    dropped = [n for n in over if n.partition(".")[0] in ("head", "pooler", "transform", "transform_norm")]
    wrong += [f"left over {pretrained.called.get(n, n)} {tuple(tensors[n].shape)}" for n in over if n not in dropped]
    wrong += [f"left over {n}" for n in pretrained.unknown]
    if wrong:
        more = f" (and {len(wrong) - 12} more)" if len(wrong) > 12 else ""
        raise CheckpointError(f"{pretrained.path} is not what its config says, or of another architecture: {'; '.join(wrong[:12])}{more}.")
    tied = {n: t for n, t in tensors.items() if n in own and n not in fresh}
    return LoadReport(tied, tuple(fresh), (*dropped, *pretrained.dropped))


def frozen_base_weights(config: ModelConfig, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the frozen base weights of a checkpoint of adapters."""
    return match_weights(config.build_on_meta(), base_of(checkpoint)).taken


def initial_weights(config: ModelConfig, model: Model) -> Mapping[str, Any]:
    """Return the pretrained weights for `materialize`; empty if the config has no `from`."""
    if config.from_ is None:
        return {}
    pretrained = open_pretrained(config)
    assert pretrained is not None
    weights = match_weights(model, pretrained).taken
    if config.adapt is not None and config.adapt.from_ is not None:
        weights |= read_peft(Path(config.adapt.from_), config, model, pretrained.fingerprint)
    return weights


def load_weights(model: nn.Module, tensors: Mapping[str, Any], *, where: str = "checkpoint", partial: bool = False) -> None:
    """Copy tensors into the model by name. Missing, unexpected or misshaped weights raise a `CheckpointError` that lists them.

    `tensors`: tensors, or lazy readers (`Checkpoint.lazy`): with a sharded model, each process reads its shards.
    For a model with adapters: the adapters and other trainable weights, because the frozen base is not in a checkpoint.
    `partial`: the model is one pipeline stage, so weights of other stages are allowed.
    """
    refuse_misfits(model, tensors, where=where, partial=partial)
    with torch.no_grad():
        for k, t in saved_weights(model).items():
            fill(t, tensors[k])


def refuse_misfits(model: nn.Module, tensors: Mapping[str, Any], *, where: str = "checkpoint", partial: bool = False) -> None:
    """Raise `CheckpointError` that lists missing, unexpected and misshaped weights."""
    own = saved_weights(model)
    wrong = [f"missing {k} {tuple(v.shape)}" for k, v in own.items() if k not in tensors]
    wrong += [f"left over {k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own and not partial]
    wrong += [
        f"{k} has shape {tuple(v.shape)}, the model's is {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and tuple(v.shape) != tuple(own[k].shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise CheckpointError(
            f"{where} is of another architecture: " + "; ".join(wrong[:8]) + more + ". Use the recipe it was trained with."
        )
