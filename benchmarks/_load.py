"""Clients that load an HTTP server from a process of their own: each keeps one connection and sends a request after each answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def request_bytes(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _client(port: int, requests: list[bytes], first: int, end: float, latencies: list[float], failed: list[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    i = first
    while time.perf_counter() < end:
        start = time.perf_counter()
        writer.write(requests[i % len(requests)])
        i += 1
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        latencies.append(time.perf_counter() - start)
        if not head.startswith(b"HTTP/1.1 200"):
            failed.append(f"{head[:30]!r} {body[:200]!r}")
    writer.close()


async def _run(port: int, clients: int, seconds: float, requests: list[bytes]) -> dict[str, Any]:
    latencies: list[float] = []
    failed: list[str] = []
    start = time.perf_counter()
    await asyncio.gather(*(_client(port, requests, i, start + seconds, latencies, failed) for i in range(clients)))
    took = time.perf_counter() - start
    latencies.sort()
    return {
        "rate": len(latencies) / took, "p50": statistics.median(latencies), "p99": latencies[int(0.99 * (len(latencies) - 1))], "failed": failed[:3],
        "n_failed": len(failed),
    }  # fmt: skip


def load(port: int, clients: int, seconds: float, requests: list[bytes]) -> dict[str, Any]:
    """Load the server for some seconds; return requests a second and latencies."""
    content = json.dumps({"port": port, "clients": clients, "seconds": seconds, "requests": [r.hex() for r in requests]})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._load"], input=content, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


class Server:
    """A server in a process: `python -m benchmarks.MODULE --serve NAME --port PORT`."""

    def __init__(self, module: str, name: str, *more: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [sys.executable, "-m", f"benchmarks.{module}", "--serve", name, "--port", str(self.port), *more]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def wait(self, seconds: float = 60) -> None:
        """Wait until the port is open."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"the server did not start (exit code {self.process.poll()})")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(asyncio.run(_run(asked["port"], asked["clients"], asked["seconds"], [bytes.fromhex(r) for r in asked["requests"]]))))
