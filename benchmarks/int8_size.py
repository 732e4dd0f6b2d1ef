"""Bytes on disk of a model in int8 over those in float32, and what that costs in quality: `chest-xray`, `mnist-mlp`, CIFAR ResNet-20, a 30M GPT.

Size: the safetensors file that `save_compressed` writes, over that of the model as trained. Quality: accuracy, or perplexity of the language model, on
held-out data; the drop is relative and paired, and its upper end (95%) is printed beside it. Quality is that of the saved file, read back.

    python -m benchmarks.int8_size
    python -m benchmarks.int8_drop      # the same run, the other line
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks._compressed import MODELS, trained
from tauon.compress import Int8, Int8Graph, compress_model, load_compressed, model_bytes, paired_drop, quality_of, save_compressed

FLOORS = {"int8_size": 0.27, "int8_drop": 0.01}


def measured(name: str) -> dict[str, Any]:
    """Size and drop of one model."""
    m = trained(name)
    step = Int8() if name == "gpt-30m" else Int8Graph()
    small = compress_model(m.model, m.task, m.calibration, [step], config=m.config)
    with tempfile.TemporaryDirectory() as folder:
        save_compressed(Path(folder) / "small", small)
        size = (Path(folder) / "small" / "model.safetensors").stat().st_size
        loaded = load_compressed(Path(folder) / "small")
        drop = paired_drop(quality_of(m.model, m.task, m.held_out), quality_of(loaded, m.task, m.held_out))
    found: dict[str, Any] = {
        "size": size,
        "fp32": model_bytes(m.model),
        "share": size / model_bytes(m.model),
        "drop": drop.value,
        "upper": drop.high,
    }
    found |= {"before": drop.before, "after": drop.after, "metric": drop.metric, "n": drop.n, "step": step.kind_}
    print(name, json.dumps(found), flush=True)
    return found


def main(claim: str = "int8_size") -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = {name: measured(name) for name in args.models}
    key = {"int8_size": "share", "int8_drop": "drop"}[claim]
    worst = max(rows, key=lambda name: rows[name][key])
    ours, peer = (rows[worst]["size"], rows[worst]["fp32"]) if claim == "int8_size" else (rows[worst]["after"], rows[worst]["before"])
    line = {"claim": claim, "ours": ours, "peer": peer, "ratio": round(rows[worst][key], 4), "floor": FLOORS[claim]}
    line |= {"unit": "bytes" if claim == "int8_size" else rows[worst]["metric"], "worst": worst, "is_at_most": True}
    print(
        json.dumps(
            line
            | {"all": {name: round(row[key], 4) for name, row in rows.items()}, "upper": {n: round(r["upper"], 4) for n, r in rows.items()}}
        )
    )


if __name__ == "__main__":
    main()
