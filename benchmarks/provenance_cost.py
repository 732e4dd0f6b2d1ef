"""What it costs that every token knows its record: bytes on disk, and throughput of preparing, with provenance and without.

JSON lines of about 1,200 characters (a paragraph or two, shorter than web pages usually are), tokenised to shards by a BPE of 4,096 tokens. Without: the
same writer, which notes no source, record, offset and name. Both take turns on the same documents, from reading to verified shards; processor time
of this process. The bytes are those of the two folders.

    python -m benchmarks.provenance_cost [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tauon.config import parse
from tauon.data import Shards, ShardWriter, SourceConfig
from tauon.data.sources.numbered import numbered
from tauon.data.tokenizer_config import BpeConfig


class Without(ShardWriter):
    """Notes nothing about where a document came from."""

    def _named(self, name: str) -> tuple[int, int]:
        return 0, 0


def corpus(path: Path, documents: int) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlcumwfgypbvk"), rng.integers(2, 11))) for _ in range(20_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    lines = [
        json.dumps({"text": " ".join(words[i] for i in rng.choice(len(words), rng.integers(150, 350), p=weights / weights.sum()))})
        for _ in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n")


def write(kind: type[ShardWriter], folder: Path, source: SourceConfig, tokenizer: Any) -> tuple[float, int]:
    """Return (processor seconds, bytes on disk)."""
    start = time.process_time()
    writer = kind(folder, vocab=tokenizer.vocab_size, bos=tokenizer.bos)
    documents = iter(numbered(source) if kind is ShardWriter else source.documents())
    while group := list(islice(documents, 500)):
        for document, ids in zip(group, tokenizer.encode_many([d.text for d in group]), strict=True):
            text = document.text
            facts = {"n_bytes": len(text.encode()), "n_words": len(text.split()), "n_lines": text.count("\n")}
            if kind is ShardWriter:
                writer.add(document.name, ids, **facts, source=document.source, record=document.record, offset=document.offset)
            else:
                writer.add("", ids, **facts, record=0)
    writer.finish(sources=[{"name": "text"}])
    shards = Shards(folder)
    shards.verify()
    size = sum(p.stat().st_size for p in folder.iterdir() if p.suffix == ".npy")
    if kind is Without:
        size -= shards.provenance_bytes()  # columns of zeros
    return time.process_time() - start, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 documents and 3 rounds instead of 4,000 and 7")
    args = parser.parse_args()
    documents, rounds = (1000, 3) if args.quick else (4000, 7)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processor time of one thread; two wait for each other, which counts as well
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        corpus(place / "a.jsonl", documents)
        source = parse(SourceConfig, {"kind": "jsonl", "path": str(place / "a.jsonl")})
        tokenizer = BpeConfig().build(lambda: (d.text for d in source.documents()))
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        sizes: dict[str, int] = {}
        for r in range(rounds + 1):  # the first fills the tokenizer's cache of words
            turns: list[tuple[str, type[ShardWriter]]] = [("with", ShardWriter), ("without", Without)]
            for who, kind in turns if r % 2 else turns[::-1]:
                took, sizes[who] = write(kind, place / f"{who}-{r}", source, tokenizer)
                seconds[who] += [took] if r else []
    median = {who: statistics.median(s) for who, s in seconds.items()}
    cost, more = median["with"] / median["without"] - 1, sizes["with"] / sizes["without"] - 1
    per_document = (sizes["with"] - sizes["without"]) / documents
    print(
        f"{documents:,} documents of {sizes['without'] / documents:.0f} bytes of shards; {per_document:.1f} bytes each say where it came from"
    )
    for claim, value, floor in (("provenance_cost_time", cost, 0.05), ("provenance_cost_bytes", more, 0.02)):
        ours, peer = (median["with"], median["without"]) if claim.endswith("time") else (sizes["with"], sizes["without"])
        result = {"claim": claim, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(1 + value, 4), "floor": 1 + floor}
        print(json.dumps(result | {"unit": "processor seconds" if claim.endswith("time") else "bytes"}))


if __name__ == "__main__":
    main()
