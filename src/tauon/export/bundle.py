"""A bundle: a folder with a trained model as a program for another runtime, and everything that predicting needs beside it.

    bundle.json     how the program is called, how inputs are prepared, names of the outputs, verification, lineage, sha256 of every file
    SHA256SUMS      the same hashes and that of bundle.json, for `sha256sum -c` and for a signature
    recipe.yaml, README.md (the model card), predict.py (prediction with the runtime alone), and the program

It is written at once or not at all, after the program was loaded in its runtime and agreed with the model on real examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tauon.artifacts import folder_atomically, read_json, sha256_file
from tauon.config import dump, parse
from tauon.data import SourceConfig
from tauon.errors import DataError, RunError
from tauon.export.latency import latency_of
from tauon.export.script import script_of
from tauon.runtimes import FORMATS, Program, RuntimeModule, Signature, agreement, format_called, trace
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["BUNDLE", "Bundle", "ExportSubject", "is_bundle", "open_bundle", "seal", "write_bundle"]

BUNDLE, SUMS, FORMAT = "bundle.json", "SHA256SUMS", "tauon-bundle/1"
MACHINE_CODE = "TAUON_LOAD_MACHINE_CODE"
"""Environment variable that permits machine code from a bundle."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportSubject:
    """A trained model, and what has to be beside it."""

    model: nn.Module
    """In evaluation mode, on the CPU."""
    task: Task
    preprocess: Mapping[str, Any]
    spec: Mapping[str, Any]
    source: SourceConfig
    precision: str = "fp32"
    """Of the weights in the program."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Contents of recipe.yaml and README.md."""
    private: bool = False
    """Figures that depend on the data stay out of the bundle."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every file of which has the hash that was recorded."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def task(self) -> Task:
        return parse(Task, self.record["task"])

    @property
    def source(self) -> SourceConfig:
        """Source of the training data: how such files are read."""
        return parse(SourceConfig, self.record["source"])

    def load(self) -> RuntimeModule:
        """Load the program. `DataError` for weights without a program, and for machine code, unless TAUON_LOAD_MACHINE_CODE is 1."""
        name = str(self.record.get("kind"))
        if "signature" not in self.record:
            raise DataError(
                f"{self.folder}: a bundle of kind {name!r} has weights and no program. Use it with the software that it was made for"
            )
        if name == "aoti" and os.environ.get(MACHINE_CODE) != "1":
            raise DataError(
                f"{self.folder}: this bundle is machine code, and loading it runs it. If you compiled it yourself, set {MACHINE_CODE}=1"
            )
        return format_called(name, FORMATS).load(self.folder, Signature.from_json(self.record["signature"]))


def is_bundle(folder: Path) -> bool:
    """Return whether a folder says that it is a bundle."""
    return (folder / BUNDLE).is_file()


def open_bundle(folder: Path | str) -> Bundle:
    """Open a bundle.

    Raises:
        RunError: it is none, a file is missing or was changed, or a recorded name is not the name of a file in the folder.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise RunError(f"{folder} is not a bundle: it has no {BUNDLE}. `tauon export RUN --to onnx` writes one.")
    try:
        record = read_json(folder / BUNDLE)
        lines = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
        sums = {name: digest for digest, name in lines}
        files = dict(record["files"])
        known = record["format"]
    except (OSError, ValueError, KeyError, TypeError, DataError) as err:
        raise RunError(f"{folder}: its {BUNDLE} or {SUMS} cannot be read ({err}). Export it again.") from None
    if known != FORMAT:
        raise RunError(f"{folder}: a bundle of format {known!r}, but this version of Tauon reads {FORMAT!r}.")
    for name, digest in (files | {BUNDLE: sums.get(BUNDLE)}).items():
        path = folder / str(name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)) or path.is_symlink():
            raise RunError(f"{folder}: {name!r} is not the name of a file of a bundle. Do not use it.")
        if not path.is_file():
            raise RunError(f"{folder}: {name} is missing. Export it again.")
        if sha256_file(path) != digest or sums.get(str(name)) != digest:
            raise RunError(f"{folder}: {name} was changed since the export (its sha256 differs). Do not use it; export it again.")
    return Bundle(folder, record)


def write_bundle(
    subject: ExportSubject, to: Path, kind: str, batches: Sequence[Batch], *, reference: nn.Module | None = None,
    program: Program | None = None, latency: bool = True, replace: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Trace, write, load in the runtime, compare, and keep the folder only if the program agrees with the model.

    Args:
        subject: the model and what belongs to it.
        to: the folder; it must not exist, unless `replace`.
        kind: onnx, openvino, executorch or aoti.
        batches: real held-out examples in batches of several sizes and lengths; the largest is traced.
        reference: what to compare with; default: the model. Of a quantised program, the quantised model.
        program: an already traced program; default: `trace` of the model.
        latency: measure the time of a batch of 1 and of 64.
        replace: replace an earlier export, at once.

    Returns:
        The record of the bundle, with all figures.

    Raises:
        DataError: the model cannot be traced, an operation is missing in the runtime, or the outputs differ. Nothing is left.
        RunError: `to` exists, or the disk is full.
    """
    form = format_called(kind, FORMATS)
    program = program or trace(subject.task, subject.model, max(batches, key=len))
    with folder_atomically(to, replace=replace) as folder:
        form.write(program, folder)
        module = form.load(folder, program.signature)
        found = agreement(subject.task, reference or subject.model, module, batches)
        # A quantised reference and its program may round apart by one step.
        problem = found.problem() if reference is None else found.problem(relative=0.05)
        if problem:
            raise DataError(
                f"the {kind} program does not agree with the model on {found.examples} held-out examples: {problem}. Nothing was written"
            )
        size = sum(p.stat().st_size for p in folder.iterdir())
        times = latency_of(subject.task, {"model": subject.model, "program": module}, max(batches, key=len)) if latency else None
        record = record_of(subject, kind, program.signature) | {
            "verification": found.to_json() | {"against": "the model in float32" if reference is None else "its quantised model"}
        }
        record |= {"latency": times, "bytes": size, "needs": form.needs}
        script, why_not = script_of(kind, record)
        texts = dict(subject.files) | ({"predict.py": script} if script else {})
        record |= {"script": "predict.py" if script else None, "script_note": why_not}
        seal(folder, record, texts, private=subject.private)
    return record


def record_of(subject: ExportSubject, kind: str, signature: Signature | None) -> dict[str, Any]:
    """Return what bundle.json says about the model."""
    from tauon import __version__

    preprocess = dict(subject.preprocess)
    record = {
        "format": FORMAT, "kind": kind, "time": time.time(), "tauon": __version__, "task": dump(subject.task), "spec": dict(subject.spec),
        "preprocess": preprocess, "source": dump(subject.source), "labels": list(preprocess.get("labels") or ()),
        "precision": subject.precision, "lineage": dict(subject.lineage),
    }  # fmt: skip
    return record if signature is None else record | {"signature": signature.to_json()}


def seal(folder: Path, record: dict[str, Any], texts: Mapping[str, str], *, private: bool = False) -> None:
    """Write small files, bundle.json with the hash of every file, and SHA256SUMS."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    record["files"] = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
    shown = dict(record)
    if private and "verification" in shown:
        shown["verification"] = {"passed": True, "note": "figures are left out: they depend on the data of a private run"}
    content = json.dumps(shown, indent=2, ensure_ascii=False).encode()
    (folder / BUNDLE).write_bytes(content)
    sums = record["files"] | {BUNDLE: hashlib.sha256(content).hexdigest()}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")
