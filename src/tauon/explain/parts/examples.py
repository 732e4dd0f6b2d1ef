"""Training examples behind an answer, with the examples themselves; and training examples that look mislabelled.

The stage refuses this for private runs: it would show their records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from tauon.artifacts import read_json, remove_folder
from tauon.data import ChosenExamples
from tauon.errors import CheckpointError, DataError, TauonError
from tauon.explain.config import InfluenceConfig
from tauon.explain.drawing.shapes import spectrogram
from tauon.explain.features.columns import Feature
from tauon.explain.influence import EkFac, Index, IndexOf, TracIn, Trak, build_index, suspicious
from tauon.explain.parts.shown import name_of, show_example
from tauon.explain.subject import Subject
from tauon.types import Batch, Dataset

__all__ = ["add_influence", "find_mislabelled", "queries", "shown_record"]

_FEW = 4
"""Examples that are shown of each kind."""
_LARGEST = 20_000_000
"""Parameters up to which EK-FAC is chosen."""
_SUSPECTS = 12
_TOKENS = 100_000
"""Tokens of training text in the index."""
_LAST = 4
"""Layers of a convolutional network in the index."""


def add_influence(
    subject: Subject, config: InfluenceConfig, folder: Path, fingerprint: str, batch: Batch, cases: list[dict[str, Any]],
    arrays: dict[str, NDArray[Any]], features: tuple[Feature, ...],
) -> dict[str, Any]:  # fmt: skip
    """Add to each case the training examples that argued for and against its answer, in place; return the facts.

    Args:
        subject: the model and its data.
        config: method, and how many training examples are in the index.
        folder: where the index is kept.
        fingerprint: of the training data.
        batch: the examples that are explained; their targets are replaced by the model's answers.
        cases: records of the same examples.
        arrays: where pictures of training examples go.
        features: of a table.
    """
    rows = subject.draw(subject.train, _affordable(subject, config.most))
    chosen = ChosenExamples([subject.train], rows)
    of = IndexOf([subject.model], subject.task, f"{fingerprint}-{len(rows)}-{subject.seed}")
    asked = queries(subject, batch.rows(0, len(cases)), cases)
    try:
        with subject.learning():
            index = _index(subject, config, folder, of, chosen)
            found = index.most_influential(asked, k=_FEW)
            if found.dominance.found and not found.relative_dominance.found:
                found = index.most_influential(asked, k=_FEW, relative=True)
    except (TauonError, torch.linalg.LinAlgError) as err:  # type: ignore[attr-defined]
        return {"problem": str(err)}
    facts = found.to_json()
    for i, (case, one) in enumerate(zip(cases, facts.pop("queries"), strict=True)):
        case["influence"] = {
            kind: [example_record(subject, rows, entry, f"{i}.{kind}.{n}", arrays, features) for n, entry in enumerate(one[kind])]
            for kind in ("helped", "hurt")
        }
    return facts | {"examples": len(rows), "of": len(subject.train)}


def _affordable(subject: Subject, most: int) -> int:
    """Return how many training examples are looked at: of running text fewer, since each of its rows is as much work as it has tokens."""
    return most if subject.input_kind != "tokens" else max(50, min(most, _TOKENS // max(1, subject.spec.seq_len or 1)))


def queries(subject: Subject, batch: Batch, cases: Sequence[dict[str, Any]]) -> Batch:
    """Return the examples with the model's own answers as targets: why does it say this? Of running text, only the last token counts."""
    if subject.input_kind == "tokens":
        weights = torch.zeros_like(batch.weights)
        weights[:, -1] = 1
        targets = batch.targets.clone()
        targets[:, -1] = torch.tensor([case["target"] for case in cases], device=targets.device)
        return replace(batch, targets=targets, weights=weights)
    if not subject.classes:
        return batch
    return replace(batch, targets=torch.tensor([case["target"] for case in cases], device=batch.targets.device))


def _index(subject: Subject, config: InfluenceConfig, folder: Path, of: IndexOf, data: ChosenExamples) -> Index:
    """Return the index, as far as it was built before."""
    method = _method(subject, config)
    if folder.exists() and not _same(folder, of, method):
        remove_folder(folder)
    before = folder.exists()

    def progress(done: int, total: int) -> None:
        subject.report("index of training examples", done, total)

    try:
        return build_index(folder, of, data, method, progress=progress)
    except (DataError, CheckpointError, SafetensorError, ValueError, EOFError, KeyError):
        if not before:
            raise
    remove_folder(folder)  # files of an earlier build are damaged
    return build_index(folder, of, data, method, progress=progress)


def _same(folder: Path, of: IndexOf, method: EkFac | Trak | TracIn) -> bool:
    try:
        before = read_json(folder / "building.json")
    except (TauonError, OSError, ValueError):
        return False
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(method).items()}
    today = {"models": of.hashes(), "data": of.data_fingerprint, "method": method.kind, "config": settings}
    return isinstance(before, dict) and all(before.get(key) == value for key, value in today.items())


def _method(subject: Subject, config: InfluenceConfig) -> EkFac | Trak | TracIn:
    name = config.method
    if name == "auto":
        task = subject.task
        drawn = task.family in ("classification", "multi-label") or (
            task.family == "regression" and getattr(task, "loss_kind", "") == "mse"
        )
        known = (drawn or subject.input_kind == "tokens") and not subject.partly_learnt  # EK-FAC draws labels, and looks at whole layers
        small = known and sum(p.numel() for p in subject.model.parameters()) <= _LARGEST
        name = "ekfac" if small else "trak" if subject.classes and subject.input_kind != "tokens" else "tracin"
    if name == "ekfac":
        return EkFac(columns=2048, fit_examples=_affordable(subject, 1_000) // 2, layers=_layers(subject.model), seed=subject.seed)
    return Trak(seed=subject.seed) if name == "trak" else TracIn(columns=64, seed=subject.seed)


def _layers(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that EK-FAC looks at: of a convolutional network the last ones, since each of its layers costs as much as its positions."""
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if not any(isinstance(m, nn.Conv1d | nn.Conv2d) for _, m in named):
        return ("*",)
    return tuple(name for name, _ in named[-_LAST:])


def example_record(
    subject: Subject, rows: NDArray[np.int64], entry: dict[str, Any], key: str, arrays: dict[str, NDArray[Any]], features: tuple[Feature, ...]
) -> dict[str, Any]:  # fmt: skip
    """Return one training example for display."""
    return shown_record(subject, subject.train, int(rows[entry["example"]]), key, arrays, features) | {"score": entry["score"]}


def shown_record(
    subject: Subject, dataset: Dataset, row: int, key: str, arrays: dict[str, NDArray[Any]], features: tuple[Feature, ...]
) -> dict[str, Any]:  # fmt: skip
    """Return one example of a data set for display; a picture goes into `arrays` under `key`."""
    batch = dataset.batch(np.array([row])).to(subject.device)
    shown, array = show_example(subject, subject.cases(batch), batch, 0, features)
    part = "training" if dataset is subject.train else subject.part
    found: dict[str, Any] = {"row": row, "from": f"{part} {row:,}", "shown": shown}
    if subject.classes and subject.input_kind != "tokens":
        found["label"] = name_of(subject, int(subject.truth(batch)[0]))
    if array is not None and shown.get("kind") == "audio":
        array = spectrogram(array)
    if array is not None and array.ndim == 3 and array.dtype == np.uint8:
        arrays[key] = array
        found["array"] = key
    origin = getattr(dataset, "origin", None)
    if subject.input_kind == "series" and origin is not None:
        found["from"] += f", forecast from {origin(row)[:16]}"
    return found


def find_mislabelled(
    subject: Subject, models: Sequence[nn.Module], steps: Sequence[int], arrays: dict[str, NDArray[Any]], *, most: int
) -> dict[str, Any]:  # fmt: skip
    """Return the training examples that look mislabelled by their self-influence on checkpoints of early training.

    Args:
        subject: the model and its data.
        models: at those checkpoints.
        steps: of those checkpoints.
        arrays: where pictures of training examples go.
        most: training examples that are looked at; the first of a random order.
    """
    if not subject.classes or subject.input_kind == "tokens":
        return {}
    if not models:
        return {
            "problem": "The run kept no checkpoint of early training, before examples are memorised. Train with train.keep_early=5 to find them."
        }
    rows = subject.draw(subject.train, most)

    def progress(done: int, total: int) -> None:
        subject.report("mislabelled examples", done, total)

    try:
        found = suspicious(models, subject.task, ChosenExamples([subject.train], rows), progress=progress)
    except TauonError as err:
        return {"problem": str(err)}
    record = found.to_json(_SUSPECTS)
    entries = [{"example": e["example"], "score": e["suspicion"]} for e in record.pop("examples")]
    examples = [example_record(subject, rows, entry, f"suspect.{n}", arrays, ()) for n, entry in enumerate(entries)]
    with torch.no_grad():
        for example in examples:
            cases = subject.cases(subject.train.batch(np.array([example["row"]])).to(subject.device))
            example["answer"] = name_of(subject, int(cases.targets[0]))
    return record | {"examples": examples, "steps": list(steps), "looked_at": len(rows), "of": len(subject.train)}
