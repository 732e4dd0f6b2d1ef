"""Requests a second of `/predict` with a model that does nothing, 16 clients: `tauon serve` against plain FastAPI and LitServe.

What is measured is all that a server adds: HTTP, JSON, checks, queue, metrics. Plain FastAPI has an async route with a pydantic body, under the same
uvicorn; LitServe its own defaults with one worker. Rounds take turns; medians.

    python -m benchmarks.serve_tax [--quick]      needs the extras bench and serve
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks._load import Server, load, request_bytes

NAMES = ("ours", "fastapi", "litserve")
ROW = {"age": 41.0, "dose": 0.3, "town": "Bonn"}


def serve(name: str, port: int) -> None:
    import uvicorn

    how: dict[str, Any] = {"port": port, "log_level": "error", "access_log": False}
    if name == "ours":
        uvicorn.run(ours(), **how)
    else:
        uvicorn.run(plain(), **how)


def ours() -> Any:
    from tauon.data import Rows
    from tauon.serve.app import build_app
    from tauon.serve.metrics import Metrics
    from tauon.serve.rollout import Rollout
    from tauon.serve.served import Served
    from tauon.serve.settings import ServeSettings
    from tauon.serve.state import ServerState

    class Replay:
        reads = "rows"

    class Predictor:
        replay = Replay()

        def rows_of(self, records: Any) -> Rows:
            return Rows({"n": [None] * len(records)})

    class Nothing(Served):
        def compute(self, items: Any) -> Any:
            return [[{"prediction": 0.5}] * n for _, n in items]

        def info(self) -> dict[str, Any]:
            return {"reads": "rows", "columns": [{"name": k, "kind": "number"} for k in ROW]}

    predictor: Any = Predictor()
    state = ServerState(ServeSettings(), Metrics(), Path("."))
    state.predictors = Rollout(Nothing(predictor, "nothing", "0", Path(".")))
    return build_app(state)


def plain() -> Any:
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        rows: list[dict[str, float | str | None]]

    app = FastAPI()

    async def predict(body):  # type: ignore[no-untyped-def]
        return {"predictions": [{"prediction": 0.5} for _ in body.rows], "model": "nothing", "version": "0"}

    predict.__annotations__["body"] = Body  # a local class: annotations of this file are texts
    app.post("/predict")(predict)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--serve", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.port)
    request = request_bytes("/predict", json.dumps({"rows": [ROW]}).encode())
    servers = {name: Server("_litserve" if name == "litserve" else "serve_tax", name) for name in NAMES}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    try:
        for server in servers.values():
            server.wait()
        for server in servers.values():
            load(server.port, 4, 1.0, [request])
        for _ in range(2 if args.quick else 5):
            for name, server in servers.items():
                found[name].append(load(server.port, 16, 3.0, [request]))
    finally:
        for server in servers.values():
            server.close()
    assert not any(r["n_failed"] for rs in found.values() for r in rs), found
    rate = {name: statistics.median(r["rate"] for r in rs) for name, rs in found.items()}
    result: dict[str, Any] = {
        "claim": "serve_tax",
        "ours": round(rate["ours"]),
        "peer": round(rate["fastapi"]),
        "ratio": round(rate["ours"] / rate["fastapi"], 2),
    }
    result |= {
        "floor": 0.9,
        "unit": "requests/s",
        "litserve": round(rate["litserve"]),
        "ratio_litserve": round(rate["ours"] / rate["litserve"], 2),
    }
    result |= {"floor_litserve": 4, "p99_ms": {name: round(1e3 * statistics.median(r["p99"] for r in rs), 1) for name, rs in found.items()}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
