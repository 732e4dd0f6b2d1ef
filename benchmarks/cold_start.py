"""Seconds from `tauon serve RUN` to the first answer of a 30M language model.

A Llama-shaped GPT of 8 blocks, width 512, vocabulary 8,192, trained for one step so that the folder is a run. Each start is a new process; files are in
the page cache after the first. The first answer is one completion of 8 tokens. No peer: the floor is 3 s.

    python -m benchmarks.cold_start [--quick]      needs the extra serve
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CEILING = 3.0


def train(folder: Path) -> Path:
    """A run of one step: 30 million weights."""
    from tauon.config import parse
    from tauon.pipeline import run
    from tauon.recipe import Recipe

    (folder / "text.txt").write_text("the cat sat on the mat and the dog sat on the log. " * 4000)
    recipe: dict[str, Any] = {
        "name": "thirty",
        "data": {"source": {"kind": "text", "path": str(folder / "text.txt")}, "tokenizer": "bytes", "seq_len": 512},
        "task": "language-modelling",
        "model": {"kind": "gpt", "layers": 9, "width": 512, "heads": 8, "vocab": 8192},
        "train": {"steps": 1, "batch": 1, "validate_every": None, "compile": False},
    }
    return run(parse(Recipe, recipe), root=folder / "runs", stages=("prepare", "train")).folder


def once(run: Path) -> float:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    body = json.dumps({"model": run.name, "prompt": "the", "max_tokens": 8, "ignore_eos": True}).encode()
    start = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "tauon", "serve", str(run), "--port", str(port), "--quiet"], start_new_session=True
    )
    try:
        while time.perf_counter() - start < 60:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=30) as response:
                    assert json.load(response)["usage"]["completion_tokens"] == 8
                return time.perf_counter() - start
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        raise SystemExit("no answer within 60 s")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three starts instead of nine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder))
        once(run)
        seconds = [once(run) for _ in range(3 if args.quick else 9)]
    ours = statistics.median(seconds)
    result = {
        "claim": "cold_start",
        "ours": round(ours, 2),
        "peer": CEILING,
        "ratio": round(CEILING / ours, 2),
        "floor": 1,
        "unit": "s to the first answer",
    }
    print(json.dumps(result | {"all": [round(s, 2) for s in sorted(seconds)]}))


if __name__ == "__main__":
    main()
