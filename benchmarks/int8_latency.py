"""Latency of the model that the search chooses, at batch 1, 8 and 64, against the same model in torch, eager and compiled, in float32, in turns.

Of the language model: batches of 1 and 8 texts of 64 tokens. The chosen model may run in torch, ONNX Runtime or OpenVINO; it keeps the promise of 1% (upper end
of the drop). Floors: at least 3 times as fast as eager on a processor with VNNI or AMX; never slower than the better of eager and compiled.

    python -m benchmarks.int8_latency [--models resnet20] [--seconds 2]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks._compressed import MODELS, trained
from tauon.compress import SearchSettings, search


def measured(name: str, seconds: float) -> dict[str, Any]:
    """Search for one model, and compare what was chosen."""
    m = trained(name)
    sizes = (1, 8) if name == "gpt-30m" else (1, 8, 64)
    result = search(
        m.model, m.task, m.calibration, m.held_out, config=m.config, settings=SearchSettings(seconds=seconds, batch_sizes=sizes)
    )
    for point in result.points:
        drop = f"{point.drop.value:+.2%} (<= {point.drop.high:.2%})" if point.drop else ""
        ms = {b: round(v, 3) for b, v in point.cost.latency_ms.items()} if point.cost else {}
        print(f"{name}: {point.name}: {ms} {point.cost.size_bytes if point.cost else ''} {drop} {point.why_not}", flush=True)
    print(name, result.reason, flush=True)
    own = {p.runtime: p.cost.latency_ms for p in result.points[:2] if p.cost}
    if result.best is None or result.best.cost is None:
        return {"eager": 0.0, "best": 0.0, "chosen": "none"}
    ours = result.best.cost.latency_ms
    own.setdefault("compiled", own["eager"])  # torch.compile does not take every model
    return {
        "eager": min(own["eager"][b] / ours[b] for b in ours), "best": min(min(own["eager"][b], own["compiled"][b]) / ours[b] for b in ours),
        "chosen": result.best.name, "ours_ms": ours, "eager_ms": own["eager"], "compiled_ms": own["compiled"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each batch size")
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = {name: measured(name, args.seconds) for name in args.models}
    worst = min(rows, key=lambda name: rows[name]["eager"])
    line = {
        "claim": "int8_latency",
        "ours": rows[worst].get("ours_ms"),
        "peer": rows[worst].get("eager_ms"),
        "ratio": round(rows[worst]["eager"], 2),
    }
    line |= {
        "floor": 3.0,
        "unit": "ms",
        "worst": worst,
        "against_best": {n: round(r["best"], 2) for n, r in rows.items()},
        "floor_against_best": 1.0,
    }
    print(
        json.dumps(line | {"all": {n: round(r["eager"], 2) for n, r in rows.items()}, "chosen": {n: r["chosen"] for n, r in rows.items()}})
    )


if __name__ == "__main__":
    main()
