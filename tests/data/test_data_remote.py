"""Sources in object stores and on web servers: read like local files, downloaded once per version, errors named."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparation_samples import config, decoded

from tauon.config import parse
from tauon.data import DataStamp, SourceConfig, prepare
from tauon.errors import DataError

TEXTS = [f"text {i} " + "words " * (5 + i % 7) for i in range(30)]


def read(**source: Any) -> list[str]:
    return [d.text for d in parse(SourceConfig, source).documents()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a local server that speaks S3; gives a function that puts an object."""
    import boto3
    import s3fs

    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="corpus")
    yield lambda key, data: client.put_object(Bucket="corpus", Key=key, Body=data)
    for found in client.list_objects_v2(Bucket="corpus").get("Contents", []):
        client.delete_object(Bucket="corpus", Key=found["Key"])
    client.delete_bucket(Bucket="corpus")
    s3fs.S3FileSystem.clear_instance_cache()


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def test_files_folders_and_globs_of_a_bucket_are_read(bucket: Any, tmp_path: Path) -> None:
    bucket("a/one.jsonl", lines(TEXTS[:10]))
    bucket("a/deep/two.jsonl.gz", gzip.compress(lines(TEXTS[10:])))
    bucket("a/.hidden", b"no")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "t.parquet")
    bucket("b/t.parquet", (tmp_path / "t.parquet").read_bytes())
    bucket("c/t.csv", b"text,n\nhello,1\n")
    bucket("d/x.txt", "Zürich".encode())
    assert read(kind="jsonl", path="s3://corpus/a/one.jsonl") == TEXTS[:10]
    assert sorted(read(kind="jsonl", path="s3://corpus/a")) == sorted(TEXTS)
    assert read(kind="jsonl", path="s3://corpus/a/*.jsonl") == TEXTS[:10]
    assert read(kind="parquet", path="s3://corpus/b") == TEXTS
    assert read(kind="csv", path="s3://corpus/c/t.csv") == ["hello"]
    assert read(kind="text", path="s3://corpus/d", pattern="**/*.txt") == ["Zürich"]
    names = [d.name for d in parse(SourceConfig, {"kind": "jsonl", "path": "s3://corpus/a"}).documents()]
    assert names[0] == "deep/two.jsonl.gz, line 1" and names[-1] == "one.jsonl, line 10"


def test_an_object_is_downloaded_once_and_again_when_it_changes(bucket: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket("a.jsonl", lines(TEXTS))
    data = config(source={"kind": "jsonl", "path": "s3://corpus/a.jsonl"}, tokenizer="bytes", seq_len=16)
    first, stamp = prepare(data, seed=0, input_kind="tokens"), DataStamp.of(data)
    kept = [p for p in (cache / "remote").rglob("*") if p.is_file()]
    assert [p.name for p in kept] == ["a.jsonl"]
    import s3fs

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_get_file", lambda *a, **k: pytest.fail("downloaded twice"))
        assert prepare(data, seed=0, input_kind="tokens").facts["cache"]["reused"]
    assert DataStamp.of(data) == stamp
    bucket("a.jsonl", lines([*TEXTS, "one more text"]))
    second = prepare(data, seed=0, input_kind="tokens")
    assert sorted(decoded(second.train) + decoded(second.validation)) == sorted([*TEXTS, "one more text"])
    assert second.fingerprint != first.fingerprint and DataStamp.of(data).content != stamp.content


def test_what_is_not_there_is_named(bucket: Any) -> None:
    with pytest.raises(DataError, match=r"s3://corpus/no\.jsonl: no such file, and no file below it\. Check the address"):
        read(kind="jsonl", path="s3://corpus/no.jsonl")
    with pytest.raises(DataError, match=r"s3://corpus/\*\.csv: no file matches this pattern"):
        read(kind="csv", path="s3://corpus/*.csv")
    with pytest.raises(DataError, match=r"s3://nowhere/x\.csv"):
        read(kind="csv", path="s3://nowhere/x.csv")


@pytest.mark.parametrize("address", ["ftp://host/a.csv", "zip://a.csv::s3://corpus/a.zip", "python://os.system", "file:///etc/passwd"])
def test_other_protocols_are_refused(address: str, cache: Path) -> None:
    with pytest.raises(DataError, match=r":// is not read\. Known: s3://"):
        read(kind="csv", path=address)


def test_a_file_of_a_web_server_is_read(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec.implementations.http")
    pytest.importorskip("aiohttp")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.jsonl").write_bytes(lines(TEXTS))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{web.server_address[1]}"
        try:
            assert read(kind="jsonl", path=f"{address}/a.jsonl") == TEXTS
            with pytest.raises(DataError, match=r"no\.jsonl: cannot be read \(FileNotFoundError"):
                read(kind="jsonl", path=f"{address}/no.jsonl")
        finally:
            web.shutdown()
