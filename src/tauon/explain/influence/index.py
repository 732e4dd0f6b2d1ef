"""An index on disk: one row for each training example, memory-mapped, so that the influence on new queries is one matrix product.

    folder/index.json        what it was built from, the method and its settings; written last, so a folder without it is not an index
    folder/encoder.safetensors   what the method computed of the training data (eigenvectors, for example)
    folder/part-00000.npy    rows of examples [0, part), float32; a last column with their importance if the method has one

Built in parts, and a part that is complete is kept: a build that was stopped continues where it ended. Nothing is pickled. An index of other
weights or other data is refused.

Shapes: Q queries, N training examples, K columns.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.artifacts import atomic_write, read_json, remove_leftovers, write_json
from tauon.errors import CheckpointError, DataError, RunError
from tauon.explain.influence.answer import InfluenceAnswer, answer_of
from tauon.explain.influence.ekfac import EkFac
from tauon.explain.influence.encoder import Encoder, Progress, batches, products, squares
from tauon.explain.influence.gradients import weights_hash
from tauon.explain.influence.tracin import TracIn
from tauon.explain.influence.trak import Trak, soft_threshold
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = ["Index", "IndexOf", "build_index"]

FORMAT = "tauon-influence-1"
METHODS: dict[str, Any] = {"tracin": TracIn, "trak": Trak, "ekfac": EkFac}
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class IndexOf:
    """What an index is about: it is valid for these models and these data only."""

    models: Sequence[nn.Module]
    """The checkpoints (TracIn), or models trained alike on the same data (TRAK, EK-FAC); one is enough."""
    task: Task
    data_fingerprint: str
    """Identifies the training examples and their order."""

    def hashes(self) -> list[str]:
        """SHA-256 of the weights of each model."""
        return [weights_hash(m) for m in self.models]


def build_index(
    folder: Path | str, of: IndexOf, data: Dataset, method: TracIn | Trak | EkFac, *, batch: int = 256, progress: Progress | None = None
) -> Index:
    """Compute the row of every training example and store it in `folder`; return the open index.

    If `folder` holds an unfinished build with the same settings, its complete parts are kept. `batch`: examples in one pass. `progress` is called with
    (done, total) counts of the fit, and then of the rows.

    Raises `RunError` if the folder holds something else, or the disk is full; `RecipeError` for a model or a task that the method does not support.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    settings: dict[str, Any] = {
        "format": FORMAT, "method": method.kind, "config": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(method).items()},
        "models": of.hashes(), "data": of.data_fingerprint, "examples": len(data),
    }  # fmt: skip
    _same_or_new(folder, settings)
    if (folder / "index.json").exists():
        return Index.open(folder, of)
    if (folder / "fitted.json").exists():
        facts = read_json(folder / "fitted.json")
        encoder: Encoder = method.restore(of.models, of.task, facts, _tensors(folder))
    else:
        encoder = method.fit(of.models, of.task, data, progress)
        _save_tensors(folder, encoder.tensors())
        facts = encoder.facts
        write_json(folder / "fitted.json", facts)
    width = encoder.columns + encoder.weighted
    part = max(batch, PART_BYTES // (4 * width) // batch * batch)
    parts = []
    for number, start in enumerate(range(0, len(data), part)):
        stop = min(len(data), start + part)
        parts.append([start, stop])
        path = folder / _part(number)
        if path.exists() and np.load(path, mmap_mode="r").shape == (stop - start, width):
            continue
        rows = []
        for rows_of in batches(data, batch, np.arange(start, stop, dtype=np.int64)):
            encoded = encoder.encode(rows_of)
            rows.append(torch.cat([encoded, encoder.importance(rows_of)[:, None]], 1) if encoder.weighted else encoded)
            if progress is not None:
                progress(min(stop, start + sum(map(len, rows))), len(data))
        buffer = io.BytesIO()
        np.save(buffer, torch.cat(rows).float().numpy(), allow_pickle=False)
        atomic_write(path, buffer.getvalue())
    write_json(folder / "index.json", settings | {"facts": facts, "columns": encoder.columns, "weighted": encoder.weighted, "parts": parts})
    return Index.open(folder, of)


def _same_or_new(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what is being built, or compare with what an earlier call began."""
    path = folder / "building.json"
    if path.exists():
        before = read_json(path)
        if before != settings:
            changed = sorted(k for k in settings if before.get(k) != settings[k])
            raise RunError(
                f"{folder}: holds an influence index with other {', '.join(changed)}. Choose another folder, or remove this one."
            )
    elif any(folder.iterdir()):
        raise RunError(f"{folder}: is not empty and holds no influence index. Choose another folder.")
    else:
        write_json(path, settings)


def _part(number: int) -> str:
    return f"part-{number:05d}.npy"


def _save_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    import safetensors.torch

    atomic_write(folder / "encoder.safetensors", safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def _tensors(folder: Path) -> dict[str, Tensor]:
    import safetensors.torch

    loaded: dict[str, Tensor] = safetensors.torch.load_file(folder / "encoder.safetensors")
    return loaded


class Index:
    """The rows of all training examples, and the encoder of queries.

    ```python
    of = IndexOf([model], task, fingerprint)
    index = build_index("explain/influence", of, splits.train, EkFac())
    answer = index.most_influential(batch, k=5)
    answer.helped[0], answer.helped_scores[0]      # the five training examples that helped the first query most, and how much
    ```
    """

    def __init__(self, folder: Path, encoder: Encoder, record: dict[str, Any]) -> None:
        self.folder, self.encoder, self.record = folder, encoder, record
        self.parts = [np.load(folder / _part(n), mmap_mode="c") for n in range(len(record["parts"]))]
        for path, rows, (start, stop) in zip(map(_part, range(len(self.parts))), self.parts, record["parts"], strict=True):
            if rows.shape != (stop - start, encoder.columns + encoder.weighted):
                raise DataError(f"{folder / path}: has shape {rows.shape}, and index.json says {stop - start} rows. Build the index again.")

    @classmethod
    def open(cls, folder: Path | str, of: IndexOf) -> Index:
        """Open a finished index for the models and the data that it was built from.

        Raises `DataError` if there is none or its data are others, `CheckpointError` if the weights are others.
        """
        folder = Path(folder)
        if not (folder / "index.json").exists():
            raise DataError(f"{folder}: no finished influence index. Build it with build_index; a build that was stopped continues.")
        record = read_json(folder / "index.json")
        if record.get("format") != FORMAT:
            raise DataError(f"{folder}: format is {record.get('format')!r}, expected {FORMAT!r}. Build the index again.")
        if record["data"] != of.data_fingerprint:
            raise DataError(
                f"{folder}: is an index of data {record['data'][:12]}, and the run's data are {of.data_fingerprint[:12]}. Build it again."
            )
        if record["models"] != of.hashes():
            raise CheckpointError(
                f"{folder}: is an index of other weights than those of the models given. Build it again for this checkpoint."
            )
        config = METHODS[record["method"]](**{k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()})
        return cls(folder, config.restore(of.models, of.task, record["facts"], _tensors(folder)), record)

    def __len__(self) -> int:
        return int(self.record["examples"])

    @property
    def facts(self) -> dict[str, Any]:
        """The method, its settings, what a score means, which parameters are left out. JSON values."""
        return dict(self.record["facts"])

    def _rows(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(examples, their rows, their importance) of each part."""
        for (start, stop), rows in zip(self.record["parts"], self.parts, strict=True):
            both = torch.from_numpy(rows)
            last = both[:, self.encoder.columns] if self.encoder.weighted else None
            yield slice(start, stop), both[:, : self.encoder.columns], last

    def scores(self, batch: Batch) -> np.ndarray:
        """Return QN: the influence of every training example on each query of `batch`. Positive: it helped.

        The batch's targets are what is explained: give the model's own answers to ask why it says them, the true ones to ask why it errs.
        """
        return self._scores(self.encoder.encode(batch)).numpy()

    def _scores(self, queries_QK: Tensor) -> Tensor:
        out = torch.empty(len(queries_QK), len(self))
        for where, rows, importance in self._rows():
            part = products(queries_QK, rows, self.encoder.blocks)
            out[:, where] = part if importance is None else part * importance
        count = self.record["config"].get("threshold")
        return out if count is None else soft_threshold(out, count)

    def self_influence(self) -> np.ndarray:
        """Return N: the influence of each training example on itself. Large for examples that the others contradict."""
        found = [squares(rows, self.encoder.blocks) * (1 if w is None else w) for _, rows, w in self._rows()]
        return torch.cat(found).numpy()

    def lengths(self) -> np.ndarray:
        """Return N: the norm of each row, by which relative influence divides (Barshan et al. 2020, arXiv:2003.11630, equation 9)."""
        return torch.cat([squares(rows, self.encoder.blocks).clamp(min=0).sqrt() for _, rows, _ in self._rows()]).numpy()

    def most_influential(self, batch: Batch, k: int = 10, *, relative: bool = False) -> InfluenceAnswer:
        """Return the `k` training examples that helped each query of `batch` most, and the `k` that hurt it most.

        `relative`: divide each score by the length of the training example's row, so that outliers do not lead for every query.
        """
        return answer_of(self.scores(batch), self.lengths(), k, relative=relative, facts=self.facts)
