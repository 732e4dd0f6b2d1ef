"""A real server process, and raw sockets to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ServerProcess:
    """`tauon serve RUN --port 0 ...` in a process of its own; the URL is on its first line."""

    def __init__(self, place: Path, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "tauon", "serve", str(place), "--port", "0", *options]
        self.log = Path(place).parent / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, env=os.environ | environment, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " on http://" in line, (line, self.log.read_text())
        self.port = int(line.split(" on http://", 1)[1].split()[0].rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def connect(self, seconds: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def raw(self, content: bytes, seconds: float = 20.0) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, and return (status, headers, body) of the first answer."""
        with self.connect(seconds) as s:
            s.sendall(content)
            return read_answer(s, head=content.startswith(b"HEAD"))

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """POST JSON (GET without a body); return (status, the answer as JSON)."""
        status, _, content = self.raw(
            request("GET" if body is None else "POST", path, None if body is None else json.dumps(body).encode(), **headers)
        )
        return status, json.loads(content) if content[:1] in (b"{", b"[") else content.decode()

    def memory(self) -> int:
        """Bytes of memory in use (RSS) of the server and its workers."""
        return sum(_rss(pid) for pid in (self.process.pid, *self.workers()))

    def workers(self) -> list[int]:
        """Process ids of the workers, whose command line says so."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if int(fields[1]) == self.process.pid and b"spawn_main" in command:
                    found.append(int(entry.name))
        return sorted(found)


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def request(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """An HTTP/1.1 request; `content_type="..."` becomes a header of that name."""
    given = {"host": "127.0.0.1"} | ({} if body is None else {"content-type": "application/json", "content-length": str(len(body))})
    given |= {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items()) + "\r\n"
    return head.encode() + (body or b"")


def read_answer(s: socket.socket, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Read one answer from a socket; `head`: it has no body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = s.recv(65536)
        if not more:
            raise ConnectionError(f"closed after {data!r}")
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if head:
        return int(first.split()[1]), headers, body
    if "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            more = s.recv(65536)
            if not more:
                raise ConnectionError(f"closed within a body after {len(body)} bytes")
            body += more
    elif headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            more = s.recv(65536)
            if not more:
                raise ConnectionError("closed within a chunked body")
            body += more
    return int(first.split()[1]), headers, body
