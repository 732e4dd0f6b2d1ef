"""Writes a trained model as a Hugging Face folder, a PEFT adapter, or a checkpoint with its adapters merged.

Weights are written in float32 without rounding; adapters are merged in float64. Existing folders are not touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tauon.artifacts import find_checkpoint, save_checkpoint
from tauon.config import dump
from tauon.errors import CheckpointError, RunError
from tauon.export.companions import Companions, companions
from tauon.models import (
    AdaptConfig,
    ModelConfig,
    PretrainedModel,
    adapt_like,
    from_record,
    merged,
    open_model_folder,
    peft_kind,
    read_peft,
    refuse_misfits,
    write_huggingface,
    write_peft,
)

__all__ = ["export_checkpoint", "merge_adapter"]


def export_checkpoint(path: Path, to: Path, *, format: Literal["huggingface", "peft"]) -> list[Path]:
    """Write a trained model for transformers or PEFT. Adapters are merged into their base for `huggingface`.

    Args:
        path: a run's folder, or a checkpoint's.
        to: the folder to write; it must not exist.
        format: huggingface (config.json and model.safetensors), or peft (the adapters alone).

    Returns:
        The files.

    Raises:
        CheckpointError: the model has no counterpart there.
        RunError: `to` exists.

    >>> export_checkpoint(Path("runs/quickstart"), Path("exported"), format="huggingface")      # doctest: +SKIP
    [PosixPath('exported/config.json'), PosixPath('exported/model.safetensors'), ...]
    """
    if to.exists():
        raise RunError(f"{to}: exists already and is not overwritten. Choose another name or remove it.")
    if format == "peft":
        checkpoint = find_checkpoint(path)
        config, base = from_record(checkpoint.state["model"]), checkpoint.state.get("base") or {}
        if config.adapt is None:
            raise CheckpointError(f"{path} has no adapters. Export the whole model: --to huggingface.")
        text = "tokens" in config.input_kind
        tensors = checkpoint.lazy("model") | (checkpoint.lazy("ema") if "ema" in checkpoint.groups() else {})
        beside = _folder_of(base["path"])
        return write_peft(
            to, config, tensors, base=base["path"], fingerprint=base["fingerprint"], text=text,
            files=_files(checkpoint.state, beside).files | _card(path),
        )  # fmt: skip
    start = open_model_folder(str(path))
    record = {} if start.layout == "huggingface" else find_checkpoint(path).state
    beside = start.path if start.layout == "huggingface" else _folder_of((record.get("base") or {}).get("path"))
    extra = _files(record, beside)
    return write_huggingface(
        to, start.config, start.tensors, ids=extra.ids, labels=start.labels, beside=beside, files=extra.files | _card(path)
    )


def _card(path: Path) -> dict[str, str]:
    """Return the run's model card as README.md, if `tauon explain` has written one."""
    run = path.resolve().parents[1] if path.resolve().parent.name == "checkpoints" else path
    card = run / "card.md"
    return {"README.md": card.read_text(encoding="utf-8")} if card.is_file() else {}


def _folder_of(path: Any) -> Path | None:
    """Return `path` if it is an existing Hugging Face folder with a tokenizer, else None."""
    folder = Path(str(path))
    return folder if path is not None and (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file() else None


def _files(record: dict[str, Any], beside: Path | None) -> Companions:
    input_kind = (record.get("preprocess") or {}).get("kind")
    return companions(record, beside) if input_kind in ("tokens", "chat", "pairs", "labelled-text") else Companions()


def merge_adapter(path: Path, to: Path, *, base: Path | None = None) -> Path:
    """Write a checkpoint to `to` with the adapters merged into the weights, and return its folder.

    Args:
        path: a run or checkpoint with adapters, or a PEFT folder.
        to: a folder that does not exist.
        base: the base model of a PEFT folder; a checkpoint records its own.
    """
    if to.exists():
        raise RunError(f"{to}: exists already and is not overwritten. Choose another name or remove it.")
    if (path / "adapter_config.json").is_file():
        if base is None:
            raise CheckpointError(f"{path} is a PEFT adapter without its base model. Give the base: --base FOLDER.")
        start = open_model_folder(str(base))
        tensors, record = _with_peft(path, start)
    else:
        checkpoint = find_checkpoint(path)
        if from_record(checkpoint.state["model"]).adapt is None:
            raise CheckpointError(f"{path} has no adapters, so there is nothing to merge.")
        if base is not None:
            raise CheckpointError(f"{path} records its own base model. Remove --base, which is for PEFT folders.")
        start = open_model_folder(str(path))
        tensors = dict(start.tensors)
        record = {k: checkpoint.state[k] for k in ("task", "spec", "preprocess", "precision", "base") if k in checkpoint.state}
    config = start.config.model_copy(update={"from_": None, "adapt": None})
    model = config.build_on_meta()
    refuse_misfits(model, tensors, where=str(path))
    weights = {name: tensors[name].read() if not hasattr(tensors[name], "numel") else tensors[name] for name in model.state_dict()}
    return save_checkpoint(to, 0, {"model": weights}, {"model": dump(config), "merged": str(path), **record}).path


def _with_peft(path: Path, start: PretrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the base's weights with a PEFT adapter merged, the record of the base)."""
    kind: type[AdaptConfig] = peft_kind(path)
    adapt = adapt_like(kind(from_=str(path)), start.config)
    config: ModelConfig = start.config.model_copy(update={"adapt": adapt})
    adapters = read_peft(path, config, config.build_on_meta(), start.fingerprint)
    record = {"base": start.reference}
    if start.layout == "tauon":
        state = find_checkpoint(start.path).state
        record |= {k: state[k] for k in ("task", "spec", "preprocess", "precision") if k in state}
    return merged(start.tensors, adapters, adapt.scale), record
