"""Mixed load for 10 minutes (TAUON_SOAK_SECONDS shortens it): flat memory, no lost request."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest
import worlds
from processes import ServerProcess, read_answer, request

SECONDS = float(os.environ.get("TAUON_SOAK_SECONDS", "600"))
MIB = 2**20


def table_requests() -> list[tuple[bytes, int]]:
    row = {"age": 50, "town": "Ulm"}
    good = json.dumps({"rows": [row]}).encode()
    many = json.dumps([row] * 300).encode()
    csv = b"age,town\n" + b"41,Bonn\n" * 200
    return [
        (request("POST", "/predict", good), 200), (request("POST", "/predict", many), 200), (request("POST", "/predict", b"{"), 400),
        (request("POST", "/predict", csv, content_type="text/csv", accept="text/csv"), 200), (request("GET", "/metrics"), 200),
        (request("POST", "/predict", b'[{"age": "x", "town": "Ulm"}]'), 422), (request("GET", "/nowhere"), 404), (request("GET", "/info"), 200),
    ]  # fmt: skip


def language_requests() -> list[tuple[bytes, int]]:
    def body(**more: Any) -> bytes:
        return request("POST", "/v1/completions", json.dumps({"model": "language", "prompt": "the cat", "max_tokens": 8} | more).encode())

    return [
        (body(), 200), (body(stream=True), 200), (body(n=4, temperature=0.5, seed=3), 200), (body(stop=[" "], logprobs=2), 200),
        (body(prompt=["the", "a dog"], max_tokens=20), 200), (body(prompt="y" * 500), 400), (body(model="other"), 404), (request("GET", "/metrics"), 200),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "language"])
def test_memory_is_flat_and_no_request_is_lost(kind: str) -> None:
    asked = {"table": table_requests, "language": language_requests}[kind]()
    statuses: Counter[tuple[int, int]] = Counter()
    end = time.monotonic() + SECONDS / 2

    def client(server: ServerProcess, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            with server.connect(60) as s:
                for _ in range(rng.randint(1, 50)):
                    content, wanted = rng.choice(asked)
                    s.sendall(content)
                    if rng.random() < 0.01:  # leaves in the middle
                        break
                    statuses[wanted, read_answer(s)[0]] += 1

    with ServerProcess(worlds.run_of(kind)) as server:
        memory: list[int] = []
        threads = [threading.Thread(target=client, args=(server, i)) for i in range(8)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(min(5.0, SECONDS / 40))
            memory.append(server.memory())
        for thread in threads:
            thread.join()
        settled = memory[len(memory) // 3]  # caches and pools are full by then
        print(
            f"{kind}: {sum(statuses.values()):,} requests in {SECONDS / 2:.0f} s; MiB {[m // MIB for m in memory[:: max(1, len(memory) // 12)]]}"
        )
        assert all(got in (wanted, 429) for wanted, got in statuses), statuses  # 429: more rows at once than may wait
        assert sum(n for (_, got), n in statuses.items() if got == 429) < 0.01 * sum(statuses.values())
        assert memory[-1] - settled < max(20 * MIB, 0.05 * settled)
        assert server.raw(request("GET", "/healthz"))[0] == 200
