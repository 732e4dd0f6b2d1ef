"""MB/s of UTF-8 to token ids: ours (`encode_many`, which makes arrays) against the `tokenizers` library's `encode_batch`, the same ids.

The corpus is WikiText-2's training part (articles) and the Python standard library's files, in the order of their names; the tokenizer is a byte-level BPE of
16,384 tokens trained on an eighth of it, and GPT-2's. Every round of ours begins with a tokenizer that has encoded nothing, so that its time includes making
what it looks words up in. Both use two threads; ours is also measured with one, as each of several processes of a preparation uses. Needs tiktoken and the
data mirror (TAUON_DATA); without the mirror, the standard library alone.

    python -m benchmarks.tokenize [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from tauon.config import parse
from tauon.data import Document, SourceConfig, Tokenizer, TokenizerConfig

FLOOR, THREADS, SIZE = 4.0, 2, 12_000_000


def documents(kind: str) -> list[str]:
    section = {"kind": "public", "name": "wikitext-2"} if kind == "wikitext" else {"kind": "python-stdlib"}
    out: list[str] = []
    size = 0
    source = parse(SourceConfig, section)
    found: list[Document] = list(source.documents())
    for document in found:
        out.append(document.text)
        size += len(document.text)
        if size > SIZE:
            break
    return out


def compare(name: str, tokenizer: Tokenizer, texts: list[str], rounds: int) -> dict[str, float | str]:
    raw = json.dumps(tokenizer.to_json()["model"])
    import tokenizers

    peer = tokenizers.Tokenizer.from_str(raw)
    peer.encode_special_tokens = True
    size = sum(len(t.encode()) for t in texts) / 1e6
    ours, single, theirs, small = [], [], [], []
    mine: list[np.ndarray] = []
    for _ in range(rounds):
        fresh = Tokenizer.from_json(tokenizer.to_json())
        start = time.perf_counter()
        mine = fresh.encode_many(texts)
        ours.append(time.perf_counter() - start)
        fresh = Tokenizer.from_json(tokenizer.to_json())
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        start = time.perf_counter()
        fresh.encode_many(texts)
        single.append(time.perf_counter() - start)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        start = time.perf_counter()
        encoded = peer.encode_batch(texts, add_special_tokens=False)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        peer.encode_batch_fast(texts, add_special_tokens=False)
        small.append(time.perf_counter() - start)
        assert all(np.array_equal(a, np.array(e.ids)) for a, e in zip(mine, encoded, strict=True)), "other ids"
        del encoded
    a, one, b, c = (size / statistics.median(t) for t in (ours, single, theirs, small))
    print(
        f"{name}: {size:.1f} MB, ours {a:.1f} MB/s (one thread {one:.1f}), encode_batch {b:.1f}, encode_batch_fast {c:.1f}: {a / b:.2f}x and {a / c:.2f}x",
        flush=True,
    )
    return {"name": name, "ours": a, "peer": b, "ratio": a / b, "fast": a / c}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 MB, one round")
    parser.add_argument("--only", default="", help="those whose name has this: wikitext, code, GPT-2")
    args = parser.parse_args()
    quick = args.quick
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(THREADS)
    rows = []
    data = os.environ.get("TAUON_DATA")
    kinds = ["wikitext", "code"] if data else ["code"]
    for kind in kinds:
        texts = documents(kind)
        texts = texts[: max(1, len(texts) // 12)] if quick else texts
        if args.only in f"{kind}, 16,384 tokens":
            made = parse(TokenizerConfig, {"kind": "bpe", "vocab": 16384}).build(lambda t=texts: iter(t[::8]))  # type: ignore[misc]
            rows.append(compare(f"{kind}, 16,384 tokens", made, texts, 1 if quick else 3))
        if data and args.only in f"{kind}, GPT-2":
            gpt2 = parse(TokenizerConfig, {"kind": "file", "path": str(Path(data) / "tokenizers" / "gpt2")}).build(lambda: iter(()))
            rows.append(compare(f"{kind}, GPT-2", gpt2, texts, 1 if quick else 3))
    worst = min(rows, key=lambda r: float(r["ratio"]))
    result = {"claim": "tokenize", "ours": round(float(worst["ours"]), 2), "peer": round(float(worst["peer"]), 2)}
    result |= {
        "ratio": round(float(worst["ratio"]), 2),
        "floor": FLOOR,
        "unit": f"MB/s, the worst of {len(rows)}; {THREADS} threads each",
    }
    result |= {"ratios": {str(r["name"]): round(float(r["ratio"]), 2) for r in rows}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
