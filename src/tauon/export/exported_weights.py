"""`export_weights`: weights for software that knows the architecture, compared with the model in that software where it is installed."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauon import __version__
from tauon.artifacts import find_checkpoint, folder_atomically, read_json
from tauon.artifacts.files import temporary_path
from tauon.errors import CheckpointError, DataError, RunError
from tauon.export.bundle import seal
from tauon.export.companions import companions
from tauon.export.gguf import FILE, gguf_tensors, write_gguf
from tauon.export.gguf_check import GgufModel
from tauon.export.weights import export_checkpoint
from tauon.models import materialize, open_model_folder
from tauon.runtimes.program import quiet

__all__ = ["export_weights"]

_CLOSE = 1e-3
"""Largest difference of outputs, relative to the largest output."""


def export_weights(path: Path, to: Path, *, format: Literal["huggingface", "peft", "gguf"] | str, replace: bool = False) -> dict[str, Any]:
    """Write weights, read them back, and compare what is computed with them.

    Args:
        path: a run's folder, or a checkpoint's.
        to: the folder; it must not exist, unless `replace`.
        format: huggingface, peft or gguf.
        replace: replace an earlier export.

    Returns:
        The record: kind, bytes, verification (figures, or a sentence why there are none), notes.

    Raises:
        DataError: the model has no counterpart there, or the outputs differ. Nothing is left.
    """
    if to.exists() and not replace:
        raise RunError(f"{to}: exists already and is not overwritten. Choose another name or remove it.")
    record: dict[str, Any] = {"kind": format, "tauon": __version__, "script": None, "script_note": ""}
    with _replacing(to):
        try:
            found = _gguf(path, to) if format == "gguf" else _others(path, to, format)
        except CheckpointError as err:
            raise DataError(str(err)) from err
    return record | found | {"bytes": sum(p.stat().st_size for p in to.iterdir())}


@contextlib.contextmanager
def _replacing(to: Path) -> Any:
    """Set an earlier folder aside; put it back if the block fails, else remove it."""
    if not to.exists():
        yield
        return
    aside = temporary_path(to, "old")
    os.rename(to, aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)
        os.rename(aside, to)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _others(path: Path, to: Path, format: Any) -> dict[str, Any]:
    files = export_checkpoint(path, to, format=format)
    notes = ""
    if any(f.name == "generation_config.json" for f in files) and not any(f.name == "tokenizer.json" for f in files):
        notes = "no tokenizer.json was written: transformers has no tokenizer of single characters or bytes. Pass token ids to the model."
    if format == "peft":
        return {"verification": "not verified: PEFT loads these adapters onto their base model", "script_note": notes}
    try:
        verification = _compare_with_transformers(path, to)
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)
        raise
    return {"verification": verification, "script_note": notes}


def _our_model(path: Path) -> tuple[Any, nn.Module]:
    start = open_model_folder(str(path))
    return start.config, materialize(start.config, seed=0, device="cpu", weights=start.tensors).eval()


def _compare_with_transformers(path: Path, to: Path) -> dict[str, Any] | str:
    try:
        import transformers
    except ImportError:
        return "not verified: transformers is not installed"
    name = read_json(to / "config.json")["architectures"][0]
    config, ours = _our_model(path)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        theirs = getattr(transformers, name).from_pretrained(to, dtype=torch.float32).eval()
    g = torch.Generator().manual_seed(0)
    if config.__dict__.get("input_shape"):
        inputs = torch.randn(4, *config.raw_value("input_shape"), generator=g)
    else:
        inputs = torch.randint(0, int(config.raw_value("vocab")), (3, min(int(config.raw_value("seq_len")), 48)), generator=g)
    with torch.no_grad():
        mine = ours(inputs)
        mine = mine if config.__dict__.get("outputs") else ours.logits(mine)  # type: ignore[operator]
        return _figures(mine, theirs(inputs).logits, f"transformers {transformers.__version__}", len(inputs))


def _figures(ours: Tensor, theirs: Tensor, against: str, examples: int) -> dict[str, Any]:
    """Return the record of a comparison. `DataError` if the outputs are not the same."""
    absolute = float((ours - theirs).abs().max())
    relative = absolute / max(float(ours.abs().max()), 1e-30)
    same = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    if not relative <= _CLOSE or same < 0.999:
        raise DataError(
            f"the exported weights do not compute what the model computes (by {against}): outputs differ by up to {relative:.1e} of the largest one, "
            f"{same:.2%} of the largest outputs are the same. Nothing was written"
        )
    return {"examples": examples, "argmax": same, "absolute": absolute, "relative": relative, "against": f"{against}, on random inputs"}


def _gguf(path: Path, to: Path) -> dict[str, Any]:
    start = open_model_folder(str(path))
    state: dict[str, Any] = {} if start.layout == "huggingface" else find_checkpoint(path).state
    preprocess = state.get("preprocess") or {}
    template = companions(state, None).files.get("chat_template.jinja") if preprocess.get("kind") in ("chat", "pairs") else None
    with folder_atomically(to) as folder:
        note = write_gguf(folder, start.config, start.tensors, preprocess, name=path.name, template=template)
        found = GgufModel(folder / FILE)
        expected = dict(gguf_tensors(start.config, start.tensors))
        odd = [
            n
            for n in expected.keys() | found.tensors.keys()
            if n not in found.tensors or n not in expected or not torch.equal(expected[n], found.tensors[n])
        ]
        if odd:
            raise DataError(f"tensors of the GGUF file are not those of the model: {', '.join(odd[:4])}. Nothing was written")
        ours = materialize(start.config, seed=0, device="cpu", weights=start.tensors).eval()
        length = min(int(start.config.raw_value("seq_len")), 48)
        tokens = torch.randint(0, int(start.config.raw_value("vocab")), (3, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mine = ours.logits(ours(tokens))  # type: ignore[operator]
            figures = _figures(
                mine, found.logits(tokens), "a forward pass from the file's own tensors and metadata; llama.cpp was not run", 3
            )
        record = {"format": "tauon-bundle/1", "kind": "gguf", "tauon": __version__, "verification": figures, "note": note}
        seal(folder, record, {})
    return {"verification": figures, "script_note": note}
