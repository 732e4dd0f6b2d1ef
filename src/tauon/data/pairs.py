"""Preferences as training examples, pairs of rows: one prompt with the preferred answer, and with the rejected one.

Each row is [BOS], the prompt and an answer as a chat template writes them; weights are one on the answer's tokens. A row that is too long
loses the beginning of its prompt first, then the end of its answer. The reference model's log-probabilities are computed once, elsewhere,
and attached (`with_reference`).

Shape legend: B pairs, 2 chosen and rejected, T time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.cache import cache_in, cache_root, obtain
from tauon.data.chat import lengths_to_keep
from tauon.data.chat_encoder import Encoded, Encoder
from tauon.data.chat_template import ANSWER
from tauon.data.config import DataConfig
from tauon.data.files import canonical, sha256_file, write_plain_json
from tauon.data.progress import report
from tauon.data.sources.base import Message, Pair
from tauon.data.splits import DataSplits
from tauon.errors import ChecksumError, DataError
from tauon.types import Batch, DataSpec

__all__ = ["PairDataset", "with_reference"]

_VERSION = 1
_REPORT_EVERY = 1000
"""Pairs between two progress reports."""


class PairDataset:
    """Pairs of rows. Example `i` is the same in every epoch; safe to share between threads."""

    def __init__(self, pairs: Sequence[Pair], encoder: Encoder, spec: DataSpec, *, name: str = "data") -> None:
        assert spec.seq_len is not None
        self.spec, self.tokenizer, self._pairs = spec, encoder.tokenizer, pairs
        most = spec.seq_len + 1
        self._encoded: list[tuple[Encoded, Encoded]] = []
        for p in pairs:
            both = [encoder.fitted([*p.prompt, Message(ANSWER, answer)], p.place, most) for answer in (p.chosen, p.rejected)]
            self._encoded.append(_alike(p, both, encoder, most))
            if len(self._encoded) % _REPORT_EVERY == 0:
                report(f"{name}: pairs to tokens", len(self._encoded), len(pairs))
        self.reference: NDArray[np.float32] | None = None
        """Log-probabilities of both answers by the reference model, N2."""
        flat = [e for both in self._encoded for e in both]
        digest = hashlib.sha256()
        for e in flat:
            digest.update(e.ids.tobytes() + e.covered.tobytes())
        same = sum(np.array_equal(a.ids, b.ids) for a, b in self._encoded)
        if same:
            raise DataError(
                f"the {name} part has {same} pairs whose answers are the same within data.seq_len {spec.seq_len}: their difference was cut. "
                "Raise data.seq_len"
            )
        self.facts: dict[str, Any] = {
            "pairs": len(pairs), "answer_tokens": [int(sum(b[i].covered.sum() for b in self._encoded)) for i in (0, 1)],
            "prompts_cut": sum(a.cut > 0 or b.cut > 0 for a, b in self._encoded), "answers_cut": sum(e.cut_answer > 0 for e in flat),
            "answer_tokens_cut": sum(e.cut_answer for e in flat), "lengths_to_keep": lengths_to_keep(flat), "sha256": digest.hexdigest(),
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self._encoded)

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the pairs `index`: inputs, targets B2T int64; weights B2T, one if the target belongs to an answer; segments B2T, -1 for padding."""
        import torch

        index = np.asarray(index, np.int64)
        shape = (len(index), 2, self.spec.seq_len or 0)
        inputs = np.full(shape, self.tokenizer.bos, np.int64)
        targets, weights, segments = inputs.copy(), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        for row, i in enumerate(index.tolist()):
            for side, e in enumerate(self._encoded[i]):
                n = len(e.ids) - 1
                inputs[row, side, :n], targets[row, side, :n] = e.ids[:-1], e.ids[1:]
                weights[row, side, :n], segments[row, side, :n] = e.covered[1:], 0
        tensors = (torch.from_numpy(a) for a in (inputs, targets, weights, segments, index.copy()))
        reference = None if self.reference is None else torch.from_numpy(self.reference[index])
        return replace(Batch(*tensors), reference=reference)

    def answers(self, row: int) -> list[list[str]] | None:
        """Return the text that the loss of a pair must cover: both answers; None if one was cut."""
        if any(e.cut_answer for e in self._encoded[row]):
            return None
        return [list(e.answers) for e in self._encoded[row]]

    def prompts(self, n: int) -> list[tuple[Message, ...]]:
        """Return the text before the answers of the first n pairs."""
        return [p.prompt for p in self._pairs[:n]]


def _alike(pair: Pair, both: list[Encoded], encoder: Encoder, most: int) -> tuple[Encoded, Encoded]:
    """Encode both rows with the same prompt: cut for both as the longer one needs. Earlier answers are not compared."""
    cut = max(e.cut for e in both)
    out = []
    for answer in (pair.chosen, pair.rejected):
        whole = encoder.encode([*pair.prompt, Message(ANSWER, answer)], pair.place)
        ids, covered = whole.ids, whole.covered.copy()
        last = int((np.flatnonzero(covered[1:] & ~covered[:-1]) + 1)[-1])
        covered[:last] = False
        kept = int(ids[0] == encoder.tokenizer.bos)
        ids, covered = np.delete(ids, slice(kept, kept + cut)), np.delete(covered, slice(kept, kept + cut))
        out.append(Encoded(ids[:most], covered[:most], cut, max(0, len(ids) - most), whole.answers[-1:]))
    return out[0], out[1]


def with_reference(
    splits: DataSplits, config: DataConfig, decides: Sequence[Any], compute: Callable[[PairDataset], NDArray[np.float32]]
) -> None:
    """Attach the reference's log-probabilities to every part: from the cache, or computed and stored there.

    `decides`: what else they depend on beside the data: the reference model and how it computes. `compute` returns N2 of a part.
    """
    key = hashlib.sha256(canonical([_VERSION, splits.fingerprint, list(decides)]).encode()).hexdigest()
    held = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    parts = {name: d for name, d in held.items() if isinstance(d, PairDataset)}

    def build(temporary: Path) -> None:
        digests = {}
        for name, part in parts.items():
            report(f"log-probabilities of the {name} answers by the reference model", 0)
            found = compute(part)
            if not np.isfinite(found).all():
                raise DataError(f"log-probabilities of the reference model are not finite ({name} part). Check model.from")
            np.save(temporary / f"{name}.npy", found.astype(np.float32), allow_pickle=False)
            digests[name] = sha256_file(temporary / f"{name}.npy")
        write_plain_json(temporary / "done.json", {"of": key, "sha256": digests})

    with cache_in(config.cache):
        folder = cache_root() / "references" / key[:32]
        obtain(folder, "done.json", build)
    for name, part in parts.items():
        found = np.load(folder / f"{name}.npy", allow_pickle=False)
        if found.shape != (len(part), 2):
            raise ChecksumError(f"{folder / name}.npy: {found.shape}, expected {(len(part), 2)}. Delete {folder}, and it is computed again")
        part.reference = found
    splits.facts["reference"] = {"of": key, "folder": str(folder)}
