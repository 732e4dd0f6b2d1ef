"""Seconds from a file of JSON lines to shards of JSON lines without near-duplicates, and peak memory: ours against datasketch's MinHashLSH, each in a
process of its own with one thread, on the same file.

Both read the lines with `json`, compare shingles of five words in lower case without punctuation at a threshold of 0.8 with 128 values a signature, keep
the first of what is alike, and copy the lines of the kept records to shards of 10,000. Tokenising is on neither side. The peer is used as its documentation
says (`MinHash.generator`, which draws the permutations once, `query`, `insert`), in memory; ours works on disk and verifies each pair.

Recall: of the pairs that the peer's index returns and whose exact Jaccard similarity is at least 0.8, the share that ours has in one cluster. The similarity
of every 10 th pair is computed on the words themselves. `raw` counts all pairs that it returns, those below the threshold too.

    python -m benchmarks.dedup [--quick] [--documents N]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FLOOR, SHARD, SHINGLE, THRESHOLD = 20.0, 10_000, 5, 0.8


def corpus(path: Path, documents: int, seed: int = 0) -> None:
    """Documents of 50 to 800 words, drawn by Zipf's law from words of letters; three in ten repeat an earlier one with 0 to 10% of the words changed."""
    draw = random.Random(seed)
    vocab = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 10))) for _ in range(40_000)]
    cumulative, total = [], 0.0
    for i in range(len(vocab)):
        total += 1 / (i + 10)
        cumulative.append(total)
    kept: list[list[str]] = []
    with open(path, "w") as file:
        for _ in range(documents):
            if kept and draw.random() < 0.3:
                rate = draw.choice((0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1))
                words = [draw.choice(vocab) if draw.random() < rate else w for w in draw.choice(kept)]
            else:
                words = draw.choices(vocab, cum_weights=cumulative, k=draw.randint(50, 800))
                if len(kept) < 20_000:
                    kept.append(words)
            text = " ".join(w + ("." if i % 12 == 11 else "") for i, w in enumerate(words)).capitalize()
            file.write(json.dumps({"text": text}) + "\n")


def texts(path: Path) -> Iterator[str]:
    """Yield the text of each line: both sides read by this."""
    decode = json.JSONDecoder().scan_once  # what json.loads calls
    with open(path, "rb", buffering=1 << 20) as file:
        for line in file:
            yield decode(line.decode(), 0)[0]["text"]


def write_shards(path: Path, removed: set[int], out: Path) -> int:
    number = 0
    target = None
    with open(path, "rb", buffering=1 << 20) as file:
        for i, line in enumerate(file):
            if i in removed:
                continue
            if number % SHARD == 0:
                if target is not None:
                    target.close()
                target = open(out / f"{number // SHARD:05d}.jsonl", "wb", buffering=1 << 20)  # noqa: SIM115
            assert target is not None
            target.write(line)
            number += 1
    if target is not None:
        target.close()
    return number


def ours(path: Path, out: Path) -> dict[str, object]:
    from tauon.data.dedup import DedupConfig, find_duplicates

    found = find_duplicates(lambda: texts(path), DedupConfig(threshold=THRESHOLD, shingle=SHINGLE), out / "state")
    kept = write_shards(path, set(found.removed.tolist()), out)
    return {"kept": kept, "clusters": [found.removed.tolist(), found.of.tolist()]}


def peer(path: Path, out: Path) -> dict[str, object]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    table = str.maketrans({chr(c): " " for c in range(128) if not (chr(c).isalnum() or chr(c) == "_")})
    removed: set[int] = set()
    pairs: list[tuple[int, int]] = []

    def shingles(text: str) -> set[bytes]:
        words = text.lower().translate(table).split()
        return {" ".join(words[k : k + SHINGLE]).encode() for k in range(max(1, len(words) - SHINGLE + 1))}

    for i, made in enumerate(MinHash.generator(map(shingles, texts(path)), num_perm=128)):
        alike = lsh.query(made)
        pairs += [(int(j), i) for j in alike]
        if alike:
            removed.add(i)
        else:
            lsh.insert(i, made)
    return {"kept": write_shards(path, removed, out), "pairs": pairs}


def child(side: str, path: Path) -> None:
    import numpy  # noqa: F401  imports are on neither side

    if side == "ours":
        import tauon.data.dedup  # noqa: F401
    else:
        import datasketch  # noqa: F401
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        result = (ours if side == "ours" else peer)(path, Path(place))
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"seconds": seconds, "peak_mib": round(memory), "imports_mib": round(base / 1024)}))


def run(side: str, path: Path) -> dict:  # type: ignore[type-arg]
    threads = {f"{n}_NUM_THREADS": "1" for n in ("OMP", "OPENBLAS", "MKL", "RAYON", "NUMEXPR")}
    command = [
        "env",
        *(f"{k}={v}" for k, v in threads.items()),
        sys.executable,
        "-m",
        "benchmarks.dedup",
        "--child",
        side,
        "--path",
        str(path),
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout)


def recall(path: Path, found: dict, theirs: dict) -> dict[str, float | int]:  # type: ignore[type-arg]
    """Share of the peer's pairs that are in one of our clusters; similarity on the words themselves."""
    from tauon.data.dedup.words import words_of

    lines = path.read_bytes().splitlines()
    of = dict(zip(*found["clusters"], strict=True))

    def shingles(i: int) -> set[tuple[str, ...]]:
        words = words_of(json.loads(lines[i])["text"])
        return {tuple(words[k : k + SHINGLE]) for k in range(max(1, len(words) - SHINGLE + 1))}

    pairs = [tuple(p) for p in theirs["pairs"]]
    both = [of.get(a, a) == of.get(b, b) for a, b in pairs]
    alike = []
    for a, b in pairs:
        x, y = shingles(a), shingles(b)
        alike.append(len(x & y) / len(x | y) >= THRESHOLD)
    true = [t for t, real in zip(both, alike, strict=True) if real]
    return {
        "pairs": len(pairs),
        "true_pairs": len(true),
        "recall": sum(true) / max(len(true), 1),
        "recall_raw": sum(both) / max(len(pairs), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 documents, one round")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("ours", "peer"))
    parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.path)
        return
    documents, rounds = (2_000, 1) if args.quick else (args.documents, args.rounds)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "corpus.jsonl"
        corpus(path, documents)
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        last = {}
        for _ in range(rounds):
            for side in ("ours", "peer"):
                last[side] = run(side, path)
                times[side].append(last[side]["seconds"])
        mine, theirs = statistics.median(times["ours"]), statistics.median(times["peer"])
        found = recall(path, last["ours"], last["peer"])
        size = path.stat().st_size / 1e6
    print(f"{documents:,} documents, {size:.0f} MB; kept {last['ours']['kept']:,} and {last['peer']['kept']:,}; seconds {times}")
    result = {
        "claim": "dedup",
        "ours": round(mine, 3),
        "peer": round(theirs, 3),
        "ratio": round(theirs / mine, 1),
        "floor": FLOOR,
        "unit": "seconds, JSONL to deduplicated JSONL shards, one thread",
    }
    result |= {k: (round(v, 4) if isinstance(v, float) else v) for k, v in found.items()}
    result |= {
        "peak_mib": last["ours"]["peak_mib"],
        "of_it_imports_mib": last["ours"]["imports_mib"],
        "peer_peak_mib": last["peer"]["peak_mib"],
        "mb_per_s": round(size / mine, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
