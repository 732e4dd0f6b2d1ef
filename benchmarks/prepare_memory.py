"""Peak memory of preparing a corpus that is larger than the bound: JSON lines to token shards, one line of 100 MB among them.

The corpus is synthetic: documents of about 3 KB made of paragraphs of made-up words (Zipf), written to a temporary folder. `prepare` (split, BPE of
4,096 tokens, shards, verification) runs in a process of its own, whose largest resident size is read from the kernel; what Python and the libraries
take before the work begins is part of it.

    python -m benchmarks.prepare_memory [--gb 2] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FLOOR = 1.5e9
CHILD = """
import json, sys, time
from tauon.config import parse
from tauon.data import DataConfig, prepare
config = parse(DataConfig, {"source": {"kind": "jsonl", "path": sys.argv[1]}, "seq_len": 512})
def peak():  # since this program began; getrusage would count its parent, too
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
facts = prepare(config, seed=0, input_kind="tokens").facts
print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - start, "parts": facts["parts"]}))
"""


def write_corpus(path: Path, size: int, longest: int) -> int:
    """Write about `size` bytes of JSON lines, one of them of `longest` bytes; return the number of documents."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlcumwfgypbvk"), rng.integers(2, 11))) for _ in range(30_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    paragraphs = [" ".join(words[i] for i in rng.choice(len(words), 80, p=weights / weights.sum())) for _ in range(4000)]
    written = documents = 0
    with open(path, "w", encoding="ascii") as file:
        while written < size:
            picked = rng.integers(0, len(paragraphs), (1000, 6)).tolist()
            block = "".join(
                json.dumps({"text": f"{documents + i} " + "\n".join(paragraphs[k] for k in row)}) + "\n" for i, row in enumerate(picked)
            )
            written += file.write(block)
            documents += 1000
            if longest and written >= size // 2:
                written += file.write(json.dumps({"text": ("\n".join(paragraphs) + "\n") * (longest // 2_000_000)}) + "\n")
                documents, longest = documents + 1, 0
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the corpus in GB (10^9 bytes)")
    parser.add_argument("--quick", action="store_true", help="0.05 GB, and a line of 10 MB")
    args = parser.parse_args()
    size, longest = (int(5e7), int(1e7)) if args.quick else (int(args.gb * 1e9), int(1e8))
    with tempfile.TemporaryDirectory() as place:
        documents = write_corpus(Path(place) / "corpus.jsonl", size, longest)
        start = time.perf_counter()
        env = os.environ | {"TAUON_CACHE": str(Path(place) / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(Path(place) / "corpus.jsonl")], env=env, check=True, capture_output=True, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        assert sum(p["documents"] for p in found["parts"].values()) == documents
    rate = size / 1e6 / (time.perf_counter() - start)
    print(
        f"{documents:,} documents of {size / 1e9:g} GB in {found['seconds']:.0f} s ({rate:.1f} MB/s); {found['before'] / 1e6:.0f} MB before it began"
    )
    result = {"claim": "prepare_memory", "ours": round(found["peak"] / 1e9, 3), "peer": None, "ratio": round(FLOOR / found["peak"], 2)}
    print(json.dumps(result | {"floor": 1.0, "unit": "GB at most (floor: 1.5 GB / ours)"}))


if __name__ == "__main__":
    main()
