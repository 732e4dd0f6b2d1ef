"""A compressed model on disk: `model.safetensors` and `compressed.json`, nothing else: no pickle, no code.

`load_compressed` builds the config's model, makes the layers that differ, and reads the weights: its outputs are bit-equal to those before saving.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tauon.artifacts import folder_atomically, read_json, sha256_file, write_json
from tauon.artifacts.tensor_file import lay_out, open_tensors, pieces, write_tensors
from tauon.compress.compress import Compressed
from tauon.compress.graph import GraphInt8
from tauon.compress.rebuild import differences, replace_layers
from tauon.errors import CheckpointError, ChecksumError, DataError
from tauon.models import Model, from_record, record

__all__ = ["FORMAT", "load_compressed", "open_compressed", "save_compressed"]

FORMAT = 1
"""Version of the layout of the folder."""


def save_compressed(folder: Path | str, compressed: Compressed) -> None:
    """Write the model into a new folder. Raises `DataError` if it has no config to be built from."""
    if compressed.config is None:
        raise DataError("this model has no config, so that it could not be built again: give `config` to compress_model")
    graph = compressed.model.to_json() if isinstance(compressed.model, GraphInt8) else None
    layers = differences(compressed.model.weights if isinstance(compressed.model, GraphInt8) else compressed.model, compressed.config)
    tensors = {k: v.detach() for k, v in compressed.model.state_dict(keep_vars=True).items()}
    layout = lay_out(tensors, "model")
    with folder_atomically(Path(folder)) as temporary:
        digest, size = write_tensors(temporary / "model.safetensors", layout, pieces(layout, tensors))
        write_json(
            temporary / "compressed.json",
            {
                "format": FORMAT, "model": record(compressed.config), "layers": layers, "tied": layout.aliases,
                "sha256": {"model.safetensors": digest}, "bytes": size, "steps": list(compressed.steps), "facts": list(compressed.facts),
                "graph": graph,
            },
        )  # fmt: skip


def load_compressed(folder: Path | str) -> nn.Module:
    """Return the model that `save_compressed` wrote, in evaluation mode, on the CPU.

    Raises:
        ChecksumError: the weights are not those that were written.
        CheckpointError: a part is missing, or of another model.
    """
    return open_compressed(folder).model


def open_compressed(folder: Path | str) -> Compressed:
    """Like `load_compressed`, with the config, the steps and their facts."""
    folder = Path(folder)
    about = _record(folder)
    weights = folder / "model.safetensors"
    if sha256_file(weights) != about["sha256"]["model.safetensors"]:
        raise ChecksumError(f"{weights}: its SHA-256 is not the one in compressed.json: the file was changed or damaged. Compress again.")
    config = from_record(about["model"])
    model = config.build_on_meta()
    replace_layers(model, about["layers"])
    read = {name: tensor.read().clone() for name, tensor in open_tensors(weights, {}).items()}
    tied = {name: read[first] for name, first in about["tied"].items()}
    _fill(model, read | tied)
    model.eval()
    whole: nn.Module = model if about.get("graph") is None else GraphInt8.from_parts(model, about["graph"])
    return Compressed(whole.eval(), config, tuple(about["steps"]), tuple(about["facts"]))


def _fill(model: Model, tensors: dict[str, torch.Tensor]) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = sorted({name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)})
    if wrong:
        raise CheckpointError(f"the weights are of another model: {', '.join(wrong[:3])}. Compress again.")
    model.load_state_dict(tensors, assign=True)
    for module in model.modules():  # buffers that are computed, not stored
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    with torch.no_grad():
        kept = {name: t.clone() for name, t in model.state_dict().items()}
        for module in model.modules():
            if isinstance(module, Model):
                module.init_buffers()
        for name, t in model.state_dict().items():  # those that are stored were not to be started again
            t.copy_(kept[name])
    model.requires_grad_(False)


def _record(folder: Path) -> dict[str, Any]:
    about = read_json(folder / "compressed.json")
    expected = {"format": int, "model": dict, "layers": list, "tied": dict, "sha256": dict, "steps": list, "facts": list}
    if not isinstance(about, dict) or any(not isinstance(about.get(k), kind) for k, kind in expected.items()):
        raise CheckpointError(f"{folder / 'compressed.json'}: is not the record of a compressed model")
    if about["format"] > FORMAT:
        raise CheckpointError(f"{folder}: format {about['format']}, this version reads up to {FORMAT}. Upgrade Tauon.")
    return about
