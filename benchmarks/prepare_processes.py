"""Cleaning and tokenising text with two processes against one, and the rates of each step of a preparation, which docs/data-at-scale.md reckons with.

WikiText-2 paragraphs and AG News in an order of their own, as JSON lines. Both prepare the same file in turn, and must write the same bytes. Cleaning is
`default` without a limit. The tokenizer is GPT-2's if it is in the mirror, so that none is trained.

    python -m benchmarks.prepare_processes [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.clean import documents
from tauon.config import parse
from tauon.data import DataConfig, prepare

FLOOR = 1.5


def prepared(path: Path, cache: Path, **more: Any) -> tuple[dict[str, float], str]:
    """Return (seconds of each step, sha256 over the files)."""
    section: dict[str, Any] = {
        "source": {"kind": "jsonl", "path": str(path)},
        "tokenizer": {"kind": "bpe", "vocab": 4096, "sample": 1 << 18},
        **more,
    }
    begin: dict[str, float] = {}
    last: dict[str, float] = {}
    at = time.perf_counter()

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal at
        now = time.perf_counter()
        begin.setdefault(what, at)
        last[what] = at = now

    splits = prepare(parse(DataConfig, section | {"cache": str(cache)}), seed=0, input_kind="tokens", progress=progress)
    folder = Path(splits.facts["cache"]["folder"])
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return {what: last[what] - begin[what] for what in begin}, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    quick = asked.quick
    texts = documents(1000 if quick else 10_000)
    repeats = 1 if quick else asked.repeats
    size = sum(map(len, texts)) / 1e6
    took: dict[str, list[float]] = {"one": [], "two": []}
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "c.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for repeat in range(repeats):
            found: set[str] = set()
            for name, processes in (("one", 1), ("two", 2)):
                seconds, digest = prepared(path, Path(tmp) / f"{name}{repeat}", clean="default", clean_limit=1.0, processes=processes)
                took[name].append(seconds["clean train"] + seconds["tokenise"])
                found.add(digest)
            assert len(found) == 1, "two processes wrote other bytes than one"
            plain, _ = prepared(path, Path(tmp) / f"plain{repeat}", dedup={})
            cleaned, _ = prepared(path, Path(tmp) / f"cleaned{repeat}", clean="default", clean_limit=1.0, processes=1)
            for what in ("read train", "look for duplicates", "tokenise"):
                if what in plain:
                    steps.setdefault(what, []).append(plain[what])
            steps.setdefault("clean", []).append(cleaned["clean train"])
    rates = {what: round(size / statistics.median(seconds), 2) for what, seconds in steps.items()}
    ours, peer = (size / statistics.median(took[name]) for name in ("two", "one"))
    print(json.dumps({"mb": round(size, 1), "mb_per_s_one_process": rates}))
    print(
        json.dumps(
            {
                "claim": "prepare_processes",
                "ours": round(ours, 3),
                "peer": round(peer, 3),
                "ratio": round(ours / peer, 2),
                "floor": FLOOR,
                "unit": "MB/s",
            }
        )
    )


if __name__ == "__main__":
    main()
