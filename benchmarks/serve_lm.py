"""Tokens a second of 8 clients of a 30M language model over HTTP: the engine, transformers' `generate` one at a time, and transformers' own
continuous batching.

A Llama of 8 blocks, width 512, 8 heads, vocabulary 8,192, longest sequence 512: 33 million weights, random, float32, exported with
`write_huggingface`, so that all three serve the same weights. Each client sends requests one after another: a prompt of 32 to 128 tokens, 64 tokens
written greedily, the end token ignored. Each is a server process of its own (uvicorn), and stopped while another is measured; the clients are one more
process. Rounds take turns. The texts are compared: all three write the same tokens.

    ours       the application of `tauon serve`: `/v1/completions`, `stream: true`, server-sent events with text. Its tokenizer has a character for each
               of the 8,192 tokens, so that each token is a piece of text, and the ids can be read from the text
    generate   `model.generate` in one worker thread, the answer as one line
    batching   `ContinuousBatchingManager`, a line for each token. On a CPU `num_blocks` and `max_batch_tokens` must be given (they are inferred from GPU
               memory); asynchronous batching and CUDA graphs are off by themselves.

    python -m benchmarks.serve_lm [--quick] [--threads N]      needs the extras bench and serve
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CLIENTS, NEW, VOCAB, SEQ = 8, 64, 8192, 512
FIRST = 0x4E00
"""First character of the tokenizer of `ours`."""
WAYS = ("ours", "generate", "batching")


def build(folder: Path) -> tuple[Any, Any]:
    """(our model, transformers' model), the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from tauon.models import LlamaConfig, materialize
    from tauon.models.pretrained.huggingface_write import write_huggingface

    config = LlamaConfig(layers=8, width=512, heads=8, vocab=VOCAB, seq_len=SEQ, mlp_width=1408)
    model = materialize(config, seed=0).eval()
    with torch.no_grad():
        model.head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
        model.head.weight[0] = 0  # beginning of text, where an answer would end: its logit is 0, never the largest
    write_huggingface(folder / "hf", config, model.state_dict())
    return model, AutoModelForCausalLM.from_pretrained(folder / "hf").eval()


def tokenizer_of() -> Any:
    from tauon.data.tokenizer import CharTokenizer

    return CharTokenizer("".join(map(chr, range(FIRST, FIRST + VOCAB - 2))))


def application(model: Any) -> Any:
    """The application of `tauon serve` for the model, and its state."""
    from types import SimpleNamespace

    from tauon.serve import ServeSettings, build_app
    from tauon.serve.language import ServedLanguage
    from tauon.serve.metrics import Metrics
    from tauon.serve.state import ServerState

    settings = ServeSettings()
    writer: Any = SimpleNamespace(model=model, tokenizer=tokenizer_of(), name="thirty", version="0", answers=lambda plain: False)
    state = ServerState(settings, Metrics(), Path("."))
    state.language = ServedLanguage(writer, settings, state.metrics)
    return build_app(state), state


def peer_app(way: str, theirs: Any, manager: Any) -> Any:
    """FastAPI in front of one of transformers' ways."""
    import torch
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app, one = FastAPI(), ThreadPoolExecutor(1)

    def generate(prompt: list[int]) -> list[int]:
        with torch.inference_mode():
            out = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return list(out[0, len(prompt) :].tolist())

    async def stream(prompt: list[int]) -> AsyncIterator[str]:
        if way == "generate":
            yield json.dumps(await asyncio.get_running_loop().run_in_executor(one, generate, prompt)) + "\n"
        else:
            queue: asyncio.Queue[Any] = asyncio.Queue()
            name = manager.add_request(prompt, max_new_tokens=NEW, streaming=True)
            manager.register_result_handler(name, queue.put_nowait)
            sent = 0
            while True:
                result = await queue.get()
                ids = list(result.generated_tokens)
                yield json.dumps(ids[sent:]) + "\n"
                sent = len(ids)
                if result.is_finished():
                    return

    @app.post("/" + way)
    async def answer(body: dict[str, list[int]]) -> StreamingResponse:
        return StreamingResponse(stream(body["prompt"]), media_type="application/jsonl")

    return app


def serve(way: str, threads: int) -> None:
    """A server's process: writes its port, and ends with the signal of its parent."""
    warnings.filterwarnings("ignore")
    import torch
    import uvicorn

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        model, theirs = build(Path(name))
    if way == "ours":
        app, state = application(model)
        assert state.language is not None
        said = {"exact": state.language.engine.exact}
    else:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        manager = None
        if way == "batching":
            settings = ContinuousBatchingConfig(num_blocks=64, page_size=64, max_batch_tokens=256, max_requests_per_batch=16)
            manager = theirs.init_continuous_batching(GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=-1), settings)
            manager.start()
        app, said = peer_app(way, theirs, manager), {}

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(json.dumps(said | {"port": self.servers[0].sockets[0].getsockname()[1]}), flush=True)

    Server(uvicorn.Config(app, port=0, log_level="error")).run()


class Servers:
    """A process for each way. Only the one that is measured runs; the others are stopped (SIGSTOP)."""

    def __init__(self, threads: int) -> None:
        self.processes, self.said = {}, {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.serve_lm", "--server", way, "--threads", str(threads)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
            assert process.stdout is not None
            self.processes[way], self.said[way] = process, json.loads(process.stdout.readline())
            process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self, way: str) -> Iterator[int]:
        """Let one run meanwhile; its port."""
        self.processes[way].send_signal(signal.SIGCONT)
        try:
            yield self.said[way]["port"]
        finally:
            self.processes[way].send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def clients() -> None:
    """The clients' process: reads `way, port, requests of each client, seed`, writes what it measured."""
    import httpx

    tokenizer = tokenizer_of()

    async def one_client(http: httpx.AsyncClient, way: str, port: int, prompts: list[list[int]], out: dict[str, Any]) -> None:
        for prompt in prompts:
            start, first, ids = time.perf_counter(), 0.0, []
            body: dict[str, Any] = {"prompt": prompt}
            if way == "ours":
                body |= {"model": "thirty", "temperature": 0, "max_tokens": NEW, "ignore_eos": True, "stream": True}
            url = f"http://127.0.0.1:{port}/" + ("v1/completions" if way == "ours" else way)
            async with http.stream("POST", url, json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    first = first or time.perf_counter() - start
                    if way != "ours":
                        ids += json.loads(line)
                    elif line.startswith("data: {"):
                        ids += tokenizer.encode("".join(c["text"] for c in json.loads(line[6:])["choices"])).tolist()
            assert len(ids) == NEW, f"{way}: {len(ids)} tokens"
            out["first"].append(first)
            out["texts"][json.dumps(prompt)] = ids

    async def measure(way: str, port: int, each: int, seed: int) -> dict[str, Any]:
        rng = random.Random(seed)
        prompts = [[[rng.randrange(VOCAB) for _ in range(rng.randint(32, 128))] for _ in range(each)] for _ in range(CLIENTS)]
        out: dict[str, Any] = {"first": [], "texts": {}}
        async with httpx.AsyncClient(timeout=300) as http:
            start = time.perf_counter()
            await asyncio.gather(*(one_client(http, way, port, p, out) for p in prompts))
            out["seconds"] = time.perf_counter() - start
        return out

    for line in sys.stdin:
        print(json.dumps(asyncio.run(measure(*json.loads(line)))), flush=True)


def measured(servers: Servers, rounds: int, each: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve_lm", "--clients"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    try:
        for round_ in range(-1, rounds):  # the first warms up
            for way in WAYS:
                with servers.running(way) as port:
                    process.stdin.write(json.dumps([way, port, 1 if round_ < 0 else each[way], round_]) + "\n")
                    process.stdin.flush()
                    result = json.loads(process.stdout.readline())
                result["rate"] = sum(map(len, result["texts"].values())) / result["seconds"]
                if round_ >= 0:
                    found[way].append(result)
                    print(
                        f"round {round_} {way:<9} {result['rate']:7.0f} tokens/s   first {statistics.median(result['first']):.3f} s",
                        flush=True,
                    )
    finally:
        process.kill()
        process.wait()
    return found


def same_texts(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Share of the peers' texts that equal ours, of those prompts that both answered."""
    ours = {k: v for r in found["ours"] for k, v in r["texts"].items()}
    theirs = {way: [(ours[k], v) for r in found[way] for k, v in r["texts"].items() if k in ours] for way in WAYS[1:]}
    return {way: sum(a == b for a, b in pairs) / len(pairs) for way, pairs in theirs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all alike; the cores of this machine")
    parser.add_argument("--clients", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clients:
        return clients()
    if args.server:
        return serve(args.server, args.threads)
    import torch

    servers = Servers(args.threads)
    try:
        found = measured(servers, 1 if args.quick else 3, {"ours": 8, "generate": 2, "batching": 4})
    finally:
        servers.close()
    exact = servers.said["ours"]["exact"]
    rate = {way: statistics.median(r["rate"] for r in found[way]) for way in WAYS}
    first = {way: statistics.median(t for r in found[way] for t in r["first"]) for way in WAYS}
    result = {"claim": "serve_lm", "ours": round(rate["ours"]), "peer": round(rate["generate"], 1)}
    result |= {
        "ratio": round(rate["ours"] / rate["generate"], 2),
        "floor": 4,
        "unit": "tokens/s",
        "peer_batching": round(rate["batching"], 1),
    }
    result |= {"ratio_batching": round(rate["ours"] / rate["batching"], 2), "floor_batching": 1.5, "exact": exact}
    result |= {"first_token_s": {way: round(s, 3) for way, s in first.items()}, "same_text": same_texts(found)}
    print(f"{args.threads} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
