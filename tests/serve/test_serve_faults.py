"""Faults and bad input against a real server process: slow and rude clients, bombs, floods, kills. The server stays up, and says what was wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import worlds
from processes import ServerProcess, read_answer, request

pytestmark = pytest.mark.long

ROW = [{"age": 50, "town": "Ulm"}]
GOOD = request("POST", "/predict", json.dumps(ROW).encode())
MIB = 2**20


@pytest.fixture(scope="module")
def table() -> Iterator[ServerProcess]:
    with ServerProcess(worlds.run_of("table")) as server:
        yield server


@pytest.fixture(scope="module")
def pictures() -> Iterator[ServerProcess]:
    with ServerProcess(worlds.run_of("pictures")) as server:
        yield server


@pytest.fixture(scope="module")
def language() -> Iterator[ServerProcess]:
    with ServerProcess(worlds.run_of("language")) as server:
        yield server


def lives(server: ServerProcess) -> None:
    assert server.raw(GOOD)[0] == 200


# ------------------------------------------------------------------------------------------------ bytes on the wire

WIRE = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS to a plain port
    (b"GET\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", 400),
    (b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", 400),
    (b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n", 400),
    (b"GET /" + b"a" * 400_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-pad: " + b"a" * 400_000 + b"\r\n\r\n", 431),
    (request("TRACE", "/predict"), 405),
    (request("OPTIONS", "/predict"), 405),
    (request("HEAD", "/predict"), 405),
    (request("GET", "/%ff%fe"), 404),
    (request("GET", "/../../etc/passwd"), 404),
    (request("GET", "/%2e%2e/%2e%2e/etc/passwd"), 404),
    (request("GET", "/v1/models/..%2f..%2fetc"), 404),
    (request("POST", "/predict", b"x", content_encoding="gzip"), 415),
    (request("GET", "/healthz", x_request_id="a" * 5000), 200),
]


@pytest.mark.parametrize(("content", "status"), WIRE, ids=[repr(c[:40]) for c, _ in WIRE])
def test_bytes_that_are_no_request_get_an_answer_in_json(table: ServerProcess, content: bytes, status: int) -> None:
    found, headers, body = table.raw(content)
    assert found == status, body
    if found != 200 and not content.startswith(b"HEAD"):
        assert json.loads(body)["error"]["message"], headers
    assert "access-control-allow-origin" not in headers
    lives(table)


def test_a_header_cannot_be_smuggled_into_an_answer(table: ServerProcess) -> None:
    for value in ("a\rset-cookie: x=1", "a\tb", "ü", "a" * 101):
        _, headers, _ = table.raw(request("GET", "/healthz", x_request_id=value))
        assert "set-cookie" not in headers and headers.get("x-request-id") != value
    status, headers, body = table.raw(request("GET", "/%0d%0aset-cookie:%20x=1"))
    assert status == 404 and "set-cookie" not in headers and b"\r" not in body


def test_head_and_keep_alive_and_pipelining(table: ServerProcess) -> None:
    with table.connect() as s:
        for _ in range(3):
            s.sendall(GOOD)
            assert read_answer(s)[0] == 200
        s.sendall(request("HEAD", "/healthz") + request("GET", "/healthz", connection="close"))
        data = b""
        while more := s.recv(65536):
            data += more
        assert data.count(b"HTTP/1.1 ") == 2
    with table.connect() as s:
        s.sendall(GOOD * 50)
        data, want = b"", 50
        while data.count(b'"version":"') < want:
            data += s.recv(65536)
        assert data.count(b"HTTP/1.1 200") == want
    status, _, body = table.raw(request("POST", "/predict", json.dumps(ROW).encode(), connection="Upgrade", upgrade="h2c"))
    assert status == 400 and b"http1.1" in body  # curl --http2 asks for this


def test_pages_of_other_sites_and_other_names_are_refused(table: ServerProcess) -> None:
    body = json.dumps(ROW).encode()
    port = table.port
    cases = [
        ({"host": "evil.example"}, 403), ({"host": f"evil.example:{port}"}, 403), ({"host": f"localhost:{port}"}, 200),
        ({"host": f"[::1]:{port}"}, 200), ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403),
        ({"host": f"127.0.0.1:{port}", "origin": f"http://127.0.0.1:{port}"}, 200),
        ({"host": f"localhost:{port}", "origin": f"http://127.0.0.1:{port}"}, 200),
    ]  # fmt: skip
    for headers, status in cases:
        found, answer, _ = table.raw(request("POST", "/predict", body, **headers))
        assert found == status, headers
        assert not any(name.startswith("access-control") for name in answer)
    assert table.raw(request("GET", "/info", host="evil.example"))[0] == 403


# ------------------------------------------------------------------------------------------------ slow and rude clients


@pytest.mark.slow
def test_a_head_that_never_ends_is_cut_off_and_others_are_answered(table: ServerProcess) -> None:
    slow = [table.connect(30) for _ in range(20)]
    try:
        start = time.monotonic()
        closed: set[int] = set()
        while len(closed) < len(slow) and time.monotonic() - start < 25:
            for i, s in enumerate(slow):
                if i in closed:
                    continue
                try:
                    s.sendall(b"GET / HTTP/1.1\r\nx: " if time.monotonic() - start < 0.5 else b"a")
                    s.setblocking(False)
                    if s.recv(100) == b"":
                        closed.add(i)
                except BlockingIOError:
                    pass
                except OSError:
                    closed.add(i)
                finally:
                    s.setblocking(True)
            lives(table)
            time.sleep(0.5)
        assert len(closed) == len(slow) and time.monotonic() - start > 8
    finally:
        for s in slow:
            s.close()


@pytest.mark.slow
def test_a_body_of_one_byte_a_second_is_408(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tauon.serve import ServeSettings, run_server\n"
        "run_server(Path(sys.argv[1]), ServeSettings(read_seconds=2, drift=False), port=0, ready=lambda u: print('serving on', u, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(worlds.run_of("table"))], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 20) as s:
            s.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
            start = time.monotonic()
            s.settimeout(0.3)
            while time.monotonic() - start < 10:
                s.sendall(b" ")
                try:
                    data = s.recv(65536)
                    break
                except TimeoutError:
                    continue
            assert data.startswith(b"HTTP/1.1 408") and 1.5 < time.monotonic() - start < 6
            assert b"did not arrive within" in data
            s.settimeout(1)
            with pytest.raises(ConnectionError):  # the connection ends although the client would go on
                while time.monotonic() - start < 30:
                    s.sendall(b" ")
                    try:
                        if not s.recv(65536):
                            raise ConnectionResetError
                    except TimeoutError:
                        continue
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def test_a_chunked_body_without_end_is_413_and_then_cut_off(table: ServerProcess) -> None:
    before = table.memory()
    with table.connect() as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/csv\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk, data, sent = b"%x\r\n" % MIB + b"1" * MIB + b"\r\n", b"", 0
        start = time.monotonic()
        s.settimeout(10)
        try:
            while time.monotonic() - start < 20:
                s.sendall(chunk)
                sent += 1
        except OSError:
            pass
        ended = time.monotonic() - start
        try:
            data = s.recv(65536)
        except OSError:
            data = b""
    assert ended < 15 and sent > 32
    assert not data or data.startswith(b"HTTP/1.1 413")
    assert table.memory() - before < 150 * MIB
    lives(table)


def test_a_client_that_reads_nothing_or_leaves_costs_nothing(table: ServerProcess) -> None:
    for i in range(200):
        s = table.connect()
        s.sendall(GOOD if i % 2 else GOOD[:-5])
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        s.close()
    lives(table)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = table.ask("/metrics")[1]
        if "tauon_requests_running 1.0" in text:
            break
        time.sleep(0.1)
    assert "tauon_requests_running 1.0" in text  # this one


# ------------------------------------------------------------------------------------------------ large and malicious bodies


def png(width: int, height: int) -> bytes:
    """A black picture that compresses to a thousandth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), []
    for _ in range(height):
        rows.append(packer.compress(b"\0" * (width + 1)))
    content = b"".join(rows) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def parquet(rows: int, text: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"age": pa.array([1] * rows), "town": pa.array([text] * rows)}), out)
    return out.getvalue()


@pytest.mark.slow
def test_a_picture_that_decodes_to_gigabytes_is_refused(pictures: ServerProcess) -> None:
    bomb = png(13_000, 13_000)
    assert len(bomb) < MIB
    before = pictures.memory()
    for body, kind in ((bomb, "image/png"), (png(60_000, 60_000)[:200_000], "image/png")):
        status, _, answer = pictures.raw(request("POST", "/predict", body, content_type=kind))
        assert status in (413, 422), answer
    assert pictures.memory() - before < 100 * MIB
    form = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="%d.png"\r\ncontent-type: image/png\r\n\r\n' % i
        + png(6000, 6000)
        + b"\r\n"
        for i in range(4)
    )
    status, _, answer = pictures.raw(request("POST", "/predict", form + b"--b--\r\n", content_type="multipart/form-data; boundary=b"))
    assert status == 413 and b"together" in answer
    assert pictures.memory() - before < 100 * MIB


@pytest.mark.parametrize(
    ("make", "kind", "status"),
    [
        (lambda: gzip.compress(b"age,town\n" + b"1,Ulm\n" * 20_000_000, 1), "text/csv", 415),
        (lambda: parquet(90_000, "x" * 20_000), "application/vnd.apache.parquet", 413),
        (lambda: parquet(3_000_000, "Ulm"), "application/vnd.apache.parquet", 413),
        (lambda: b"age,town\n" + b"1,U\n" * 5_000_000, "text/csv", 413),
        (lambda: b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n" + b"1," * 999_999 + b"1\n", "text/csv", 413),
        (lambda: b"[" + b"{}," * 9_000_000 + b"{}]", "application/json", 413),
        (lambda: b'{"rows": [' + b'{"age":1,"town":"U"},' * 1_000_000 + b"{}]}", "application/json", 413),
        (lambda: b"".join(b'{"age":1,"town":"U","c%d":1}\n' % i for i in range(90_000)), "application/x-ndjson", 200),
        (lambda: b'{"age": ' + b"9" * 1_000_000 + b"}", "application/json", 400),
    ],
    ids=["gzip", "parquet of texts", "parquet of rows", "csv of rows", "csv of columns", "empty objects", "million rows", "keys", "digits"],
)  # fmt: skip
def test_a_body_within_the_limit_takes_bounded_memory_and_time(table: ServerProcess, make: Any, kind: str, status: int) -> None:
    body = make()
    assert len(body) < 32 * MIB
    lives(table)
    before, peak, slowest, stop = table.memory(), [0], [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], table.memory())
            start = time.monotonic()
            lives(table)
            slowest[0] = max(slowest[0], time.monotonic() - start)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    found, _, answer = table.raw(request("POST", "/predict", body, content_type=kind), 60)
    took = time.monotonic() - start
    stop.set()
    watcher.join()
    print(f"{kind}: {len(body):,} bytes, {found} after {took:.2f} s; +{(peak[0] - before) / MIB:.0f} MiB; others wait {slowest[0]:.2f} s")
    assert found == status, answer[:300]
    assert peak[0] - before < 500 * MIB and slowest[0] < 2.0 and took < 30


@pytest.mark.slow
def test_flac_that_decodes_to_gigabytes_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile")
    import numpy as np

    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 8000, 1, format="FLAC") as file:
        for _ in range(100):
            file.write(np.zeros(1_000_000, np.float32))
    assert len(out.getvalue()) < MIB
    with ServerProcess(worlds.run_of("recordings")) as server:
        status, _, answer = server.raw(request("POST", "/predict", out.getvalue(), content_type="audio/flac"))
        assert status == 413 and b"decode to" in answer


BODIES = [
    (b'{"model": "language", "prompt": "\\ud800", "max_tokens": 2}', 400),
    (b'{"model": "language", "prompt": "' + b"\xff" * 5 + b'"}', 400),
    (b'{"model": "nobody", "prompt": "x"}', 404),
    (b'{"model": "../../etc", "prompt": "x"}', 404),
    (b'{"model": "language", "prompt": "' + b"x" * 20_000_000 + b'"}', 400),
    (b'{"model": "language", "prompt": [' + b"1," * 400_000 + b"1]}", 400),
    (b'{"model": "language", "prompt": [-1]}', 400),
    (b'{"model": "language", "prompt": [1e400]}', 400),
    (b'{"model": "language", "prompt": "x", "temperature": NaN}', 400),
    (b'{"model": "language", "prompt": "x", "logit_bias": {"1": NaN}}', 400),
    (b'{"model": "language", "prompt": "x", "logit_bias": {"1": 1e999}}', 400),
    (b'{"model": "language", "prompt": "x", "logit_bias": {"\xc2\xb2": 1}}', 400),
    (b'{"model": "language", "prompt": "x", "seed": 99999999999999999999999}', 400),
    (b'{"model": "language", "prompt": "x", "guided_regex": "(((("}', 400),
    (b'{"model": "language", "prompt": "x", "guided_json": {"type": "nonsense"}}', 400),
    (b'{"model": "language", "prompt": "x", "guided_choice": []}', 400),
    (b'{"model": "language", "prompt": "x", "stream_options": {"include_usage": "a"}, "max_tokens": 1}', 400),
    (b'{"model": "language", "prompt": "\\u0000", "max_tokens": 2}', 200),
    (b"null", 400), (b"[]", 400), (b'"x"', 400),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BODIES, ids=[repr(b[:70]) for b, _ in BODIES])
def test_a_language_model_refuses_what_it_cannot_read(language: ServerProcess, body: bytes, status: int) -> None:
    start = time.monotonic()
    found, _, answer = language.raw(request("POST", "/v1/completions", body))
    assert found == status, answer[:300]
    assert time.monotonic() - start < 5
    assert language.ask("/v1/completions", {"model": "language", "prompt": "x", "max_tokens": 1})[0] == 200


# ------------------------------------------------------------------------------------------------ disconnects


def engine_of(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = server.ask("/info")[1]["engine"]
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer_and_frees_its_blocks(language: ServerProcess, stream: bool) -> None:
    body = {"model": "language", "prompt": ["the cat"] * 16, "max_tokens": 50, "ignore_eos": True, "stream": stream, "n": 8}
    before = engine_of(language)
    for _ in range(4):
        s = language.connect()
        s.sendall(request("POST", "/v1/completions", json.dumps(body).encode()))
        if stream:
            assert s.recv(1000)
        s.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        now = engine_of(language)
        if now["running"] == now["waiting"] == now["blocks_used"] == 0:
            break
        time.sleep(0.05)
    assert now["running"] == now["waiting"] == now["blocks_used"] == 0
    written = now["generated_tokens"] - before["generated_tokens"]
    assert written < 4 * 16 * 8 * 50 / 2, f"{written} tokens were written for clients that had left"
    assert language.ask("/v1/completions", {"model": "language", "prompt": "x", "max_tokens": 1})[0] == 200


# ------------------------------------------------------------------------------------------------ floods


@pytest.mark.parametrize("kind", ["table", "language"])
def test_two_thousand_requests_at_once(kind: str, table: ServerProcess, language: ServerProcess) -> None:
    server = {"table": table, "language": language}[kind]
    if kind == "table":
        content, path = GOOD, "/healthz"
    else:
        body = {"model": "language", "prompt": "the", "max_tokens": 4}
        content, path = request("POST", "/v1/completions", json.dumps(body).encode()), "/healthz"
    before, peak, stop = server.memory(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], server.memory())
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    sockets = [server.connect(120) for _ in range(2000)]
    for s in sockets:
        s.sendall(content)
    statuses: Counter[int] = Counter()
    for s in sockets:
        status, headers, answer = read_answer(s)
        statuses[status] += 1
        if status == 429:
            assert int(headers["retry-after"]) >= 1 and json.loads(answer)["error"]["code"] == "overloaded"
        s.close()
    took = time.monotonic() - start
    stop.set()
    watcher.join()
    time.sleep(0.5)
    after = server.memory()
    print(f"{kind}: {dict(statuses)} in {took:.1f} s; RSS {before / MIB:.0f} MiB, peak {peak[0] / MIB:.0f}, after {after / MIB:.0f}")
    assert set(statuses) <= {200, 429} and statuses[200] >= 900 and sum(statuses.values()) == 2000
    assert peak[0] - before < 200 * MIB and server.raw(request("GET", path))[0] == 200


# ------------------------------------------------------------------------------------------------ processes


def test_a_port_that_is_taken_is_said_in_words(table: ServerProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tauon", "serve", str(worlds.run_of("table")), "--port", str(table.port)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode not in (0, 1) and "cannot be used" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_lets_running_requests_end() -> None:
    with ServerProcess(worlds.run_of("language")) as server:
        body = {"model": "language", "prompt": ["the"] * 8, "max_tokens": 56, "ignore_eos": True, "n": 4}
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.ask, "/v1/completions", body) for _ in range(8)]
            deadline = time.monotonic() + 20
            while not engine_of(server)["running"] and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            answers = [a.result(60) for a in asked]
        assert [status for status, _ in answers] == [200] * 8
        assert all(c["finish_reason"] in ("length", "stop") for _, a in answers for c in a["choices"])
        server.process.wait(30)
        assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("very-secret-key\n")
    with ServerProcess(worlds.run_of("table"), "--workers", "2", "--keys-file", str(keys)) as server:
        deadline = time.monotonic() + 60
        key = {"x_api_key": "very-secret-key"}
        while len(server.workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = server.workers()
        time.sleep(5)  # both have loaded
        for pid in (server.process.pid, *workers):
            for name in ("environ", "cmdline"):
                assert b"very-secret" not in Path(f"/proc/{pid}/{name}").read_bytes()
        statuses: Counter[str] = Counter()
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    statuses[str(server.ask("/predict", ROW, **key)[0])] += 1
                except (ConnectionError, OSError):
                    statuses["lost"] += 1
                    time.sleep(0.05)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for t in threads:
            t.start()
        time.sleep(1)
        os.kill(workers[0], signal.SIGKILL)
        time.sleep(1)
        lost_then = statuses["lost"]
        while (len(server.workers()) < 2 or workers[0] in server.workers()) and time.monotonic() < deadline + 60:
            time.sleep(0.1)
        time.sleep(6)
        answered = statuses["200"]
        time.sleep(1)
        stop.set()
        for t in threads:
            t.join()
        assert len(server.workers()) == 2 and workers[0] not in server.workers()
        assert set(statuses) <= {"200", "lost"} and lost_then <= 8 and statuses["lost"] == lost_then
        assert statuses["200"] > answered
        seen = {
            server.ask("/metrics", **key)[1].split('tauon_requests_total{route="/predict",status="200"} ')[1].split()[0] for _ in range(5)
        }
        assert float(max(seen, key=float)) >= 0.5 * statuses["200"], "all workers are counted"
        assert "very-secret" not in server.log.read_text() and "very-secret" not in json.dumps(server.ask("/info", **key)[1])
        pids = server.workers()
        os.kill(server.process.pid, signal.SIGKILL)  # the workers do not outlive their parent
        server.process.wait()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_workers_that_cannot_load_their_model_end_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(worlds.run_of("table"), broken)
    for path in broken.rglob("model.safetensors"):
        path.write_bytes(b"damaged")
    for workers in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tauon", "serve", str(broken), "--port", "0", "--workers", workers],
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode not in (0, 1) and "Traceback" not in done.stderr and done.stderr.strip(), done.stderr


def test_a_checkpoint_that_is_deleted_or_damaged_does_not_stop_what_is_served(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(worlds.run_of("table"), own)
    damaged = tmp_path / "damaged"
    shutil.copytree(worlds.run_of("table"), damaged)
    for path in damaged.rglob("model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(bytes(content))
    keys = tmp_path / "admin"
    keys.write_text("admin\n")
    with ServerProcess(own, "--admin-keys-file", str(keys), "--watch", "1s") as server:
        shutil.rmtree(own)
        status, answer = server.ask("/admin/swap", {"name": "damaged"}, x_api_key="admin")
        assert status == 422 and "nothing changed" in answer["error"]["message"], answer
        time.sleep(1.5)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        lives(server)
        assert "the served version stays" in server.log.read_text() and "Traceback" not in server.log.read_text()
