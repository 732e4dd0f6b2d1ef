"""Shuffled rows of tokens a second: Tauon's loader against litdata's and a torch DataLoader over a Hugging Face dataset.

The same rows of 1,024 inputs and 1,024 targets (int64), batches of 32, read from disk (the page cache): tokens in Tauon's shards, in litdata's chunks
(`TokensLoader`), in an Arrow file (uint16 lists, `with_format("torch")`). Each loads its rows in shuffled order, with 0 and with 2 workers: threads for
Tauon, processes for the others. They take turns; the first batches, while workers start, are not counted.

    python -m benchmarks.loader [--quick]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, SEQ, BATCH, TOKENS = 50_257, 1024, 32, 16_000_000
WARM = 16


def text(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Documents of 200 to 1,500 tokens."""
    left = TOKENS
    while left > 0:
        ids = rng.integers(0, VOCAB - 1, int(rng.integers(200, 1500))).astype(np.uint16)
        left -= len(ids) + 1
        yield ids


def write(folder: Path) -> int:
    """Write the three forms of the same stream; return the number of rows."""
    from datasets import Dataset, Features, Sequence, Value
    from litdata import TokensLoader, optimize

    from tauon.data import ShardWriter

    writer = ShardWriter(folder / "ours", vocab=VOCAB, bos=VOCAB - 1)
    pieces = []
    for i, ids in enumerate(text(np.random.default_rng(0))):
        writer.add(f"text, line {i + 1}", ids, n_bytes=4 * len(ids), n_words=len(ids), n_lines=0)
        pieces += [np.array([VOCAB - 1], np.uint16), ids]
    writer.finish(sources=[{"name": "text"}])
    stream = np.concatenate(pieces)
    rows = stream[: len(stream) // (SEQ + 1) * (SEQ + 1)].reshape(-1, SEQ + 1)
    np.save(folder / "rows.npy", rows)
    features = Features({"ids": Sequence(Value("uint16"), length=SEQ + 1)})
    Dataset.from_dict({"ids": list(rows)}, features=features).save_to_disk(str(folder / "arrow"))
    optimize(
        fn=Rows(folder / "rows.npy"), inputs=list(range(0, len(rows), 512)), output_dir=str(folder / "litdata"), num_workers=1,
        chunk_bytes="64MB", item_loader=TokensLoader(block_size=SEQ + 1),
    )  # fmt: skip
    return len(rows)


class Rows:
    """Gives litdata the tokens of 512 rows at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, start: int) -> Iterator[Any]:
        import torch

        for row in np.load(self.path, mmap_mode="r")[start : start + 512]:
            yield torch.from_numpy(np.array(row, np.int32))


class Tokenizer:
    """What a data set of tokens asks of its tokenizer."""

    vocab_size, bos = VOCAB, VOCAB - 1


def ours(folder: Path, workers: int, segments: bool = False) -> Iterator[Any]:
    from tauon.data import Loader, Shards, TokenDataset

    data = TokenDataset(Shards(folder / "ours"), Tokenizer(), SEQ, seed=0, training=True, segments=segments)  # type: ignore[arg-type]
    with Loader(data, batch=BATCH, seed=0, workers=workers) as loader:
        for step in range(10**9):
            batch = loader.batch_at(step)
            yield batch.inputs, batch.targets


def litdata(folder: Path, workers: int) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    data = StreamingDataset(str(folder / "litdata"), item_loader=TokensLoader(block_size=SEQ + 1), shuffle=True, drop_last=True)
    while True:
        for rows in StreamingDataLoader(data, batch_size=BATCH, num_workers=workers):
            yield rows[:, :-1].long(), rows[:, 1:].long()


def hugging_face(folder: Path, workers: int) -> Iterator[Any]:
    import torch
    from datasets import load_from_disk

    data = load_from_disk(str(folder / "arrow")).with_format("torch")
    while True:
        for rows in torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True):
            yield rows["ids"][:, :-1].long().contiguous(), rows["ids"][:, 1:].long().contiguous()


def rate(batches: Iterator[Any], seconds: float) -> float:
    """Return rows a second over at least `seconds`."""
    for _ in range(WARM):
        next(batches)
    start, rows = time.perf_counter(), 0
    while True:
        inputs, targets = next(batches)
        assert inputs.shape == targets.shape == (BATCH, SEQ)
        rows += BATCH
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return rows / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of half a second instead of 5 of one")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    rounds, seconds = (2, 0.5) if args.quick else (5, 1.0)
    who: dict[str, Callable[[Path, int], Iterator[Any]]] = {
        "tauon": ours, "tauon, documents numbered": lambda f, w: ours(f, w, segments=True), "litdata": litdata, "datasets": hugging_face,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        rows = write(Path(place))
        found: dict[tuple[str, int], list[float]] = {(name, workers): [] for name in who for workers in (0, 2)}
        for _ in range(rounds):
            for name, workers in found:
                found[name, workers].append(rate(who[name](Path(place), workers), seconds))
    median = {k: statistics.median(v) for k, v in found.items()}
    for (name, workers), value in median.items():
        print(f"{name:<28} {workers} workers {value:>9,.0f} rows/s")
    for workers in (0, 2):
        for peer, floor in (("litdata", 1.5), ("datasets", 4.0)):
            ours_, theirs = median["tauon", workers], median[peer, workers]
            result = {"claim": f"loader_{peer}_{workers}", "ours": round(ours_), "peer": round(theirs), "ratio": round(ours_ / theirs, 2)}
            print(json.dumps(result | {"floor": floor, "unit": f"rows of {SEQ} tokens/s, {rows} rows"}))


if __name__ == "__main__":
    main()
