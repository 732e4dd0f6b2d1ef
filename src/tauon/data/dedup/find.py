"""Documents that repeat an earlier one, found in a stream of texts that need not fit in memory.

Two passes: sketches of all texts go to files, then documents with equal keys are compared. The state is in a folder; the same call after a kill
continues, and the result is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tauon.artifacts import atomic_write
from tauon.data.dedup.clusters import Remembered, clusters, jaccard
from tauon.data.dedup.config import DedupConfig
from tauon.data.dedup.minhash import Sketches, choose_bands, sketches
from tauon.data.dedup.sketch_files import SketchFiles
from tauon.data.dedup.words import WordHashes

__all__ = ["Duplicates", "find_duplicates"]

_RESULT = "duplicates.json"


@dataclass(frozen=True)
class Duplicates:
    """What repeats an earlier document."""

    documents: int
    """Number of documents that were compared."""
    removed: NDArray[np.int64]
    """Numbers of the documents to remove, ascending."""
    of: NDArray[np.int64]
    """The document that stays, of the cluster of each removed one."""
    similarity: NDArray[np.float64]
    """Of each removed document to the one that stays. Below the threshold if only documents between the two connect them."""

    @property
    def cluster_sizes(self) -> dict[int, int]:
        """Number of clusters of each size, the document that stays counted; clusters of one are left out."""
        sizes = Counter(np.unique(self.of, return_counts=True)[1].tolist())
        return {size + 1: count for size, count in sorted(sizes.items())}


def find_duplicates(texts: Callable[[], Iterable[str]], config: DedupConfig, folder: Path) -> Duplicates:
    """Return which texts repeat an earlier one.

    Args:
        texts: yields every text, in the same order in each call.
        config: what counts as a duplicate.
        folder: for the state of the work. It must belong to these texts and settings. When the work is done, only the result is left in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     found = find_duplicates(lambda: ["One two three.", "Four five six.", "one, two: three"], DedupConfig(), Path(place))
    >>> found.removed.tolist(), found.of.tolist(), found.similarity.tolist()
    ([2], [0], [1.0])
    """
    done = _read(folder)
    if done is not None:
        return done
    state = folder / "work"
    hashes = WordHashes()
    bands = choose_bands(config.threshold, config.bins)

    def near(batch: Sequence[str]) -> Sketches:
        return sketches(*hashes(batch), config.shingle, config.bins, bands)

    SketchFiles.write(state, texts(), near if config.kind == "near" else _exact)
    files = SketchFiles(state)
    threshold = config.threshold if config.kind == "near" else 1.0
    similarity = Remembered(jaccard if config.kind == "near" else _equal, threshold)
    first = clusters(files, state, threshold, similarity, config.memory)
    removed = np.flatnonzero(first != np.arange(len(first)))
    of = first[removed]
    found = Duplicates(len(first), removed, of, similarity.again(files, of, removed))
    for name, array in (("removed", found.removed), ("of", found.of), ("similarity", found.similarity)):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    atomic_write(folder / _RESULT, json.dumps({"documents": found.documents, "removed": len(removed)}).encode())
    shutil.rmtree(state, ignore_errors=True)
    return found


def _read(folder: Path) -> Duplicates | None:
    if not (folder / _RESULT).is_file():
        return None
    facts = json.loads((folder / _RESULT).read_bytes())
    removed, of, similarity = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("removed", "of", "similarity"))
    return Duplicates(facts["documents"], removed, of, similarity)


def _exact(batch: Sequence[str]) -> Sketches:
    """One key: the sha256 of the text in NFC, with each run of white space as one blank."""
    digests = [
        hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode("utf-8", "surrogatepass")).digest() for text in batch
    ]
    whole = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 8)
    keys = np.ascontiguousarray(whole[:, :2]).view("<u8").reshape(1, -1)
    return Sketches(keys.astype(np.uint64), np.full(len(batch), 8), whole.reshape(-1).astype(np.uint32))


def _equal(files: SketchFiles, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    left, right = files.gather(a)[0].reshape(-1, 8), files.gather(b)[0].reshape(-1, 8)
    same: NDArray[np.float64] = (left == right).all(axis=1).astype(np.float64)
    return same
