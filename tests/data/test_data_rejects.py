"""Records that cannot be read: an error with file and record, or counted and listed with `on_error: skip`; killed preparations."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparation_samples import config, decoded

from tauon.data import prepare
from tauon.errors import DataError, RecipeError

GOOD = [f"record {i} is all right, and long enough to count\n" for i in range(30)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def jsonl(lines: list[bytes]) -> bytes:
    good = [json.dumps({"text": t}).encode() for t in GOOD]
    return b"\n".join([*good[:10], *lines, *good[10:]]) + b"\n"


def packed(cut: int) -> bytes:
    data = gzip.compress(jsonl([]), mtime=0)
    return data[: len(data) - cut]


def parquet(texts: list[Any], path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)


CASES: dict[str, tuple[str, bytes, str, dict[str, int]]] = {
    "not JSON": ("jsonl", jsonl([b'{"text": "a" "b"}']), r"a\.jsonl, line 11: not valid JSON at column 14", {"not a JSON object": 1}),
    "a list": ("jsonl", jsonl([b"[1, 2]"]), r"a\.jsonl, line 11: a JSON list", {"not a JSON object": 1}),
    "invalid UTF-8": ("jsonl", jsonl([b'{"text": "\xff\xfe"}']), r"a\.jsonl, line 11: not utf-8 at byte 10", {"not utf-8": 1}),
    "null": ("jsonl", jsonl([b'{"text": null}']), r"a\.jsonl, line 11: column 'text' is None", {"not text": 1}),
    "nested nulls": ("jsonl", jsonl([b'{"text": {"a": [null, {"b": null}]}}']), r"line 11: column 'text' is \{'a': \[None", {"not text": 1}),
    "another schema": ("jsonl", jsonl([b'{"content": "x"}', b'{"text": 3}']), r"line 11: no key 'text'", {"without the key": 1, "not text": 1}),
    "a key twice": ("jsonl", jsonl([b'{"text": "a", "text": "b"}']), r"line 11: the key 'text' occurs twice", {"not a JSON object": 1}),
    "nested too deeply": ("jsonl", jsonl([b'{"a":' * 200_000]), r"line 11: JSON nested too deeply", {"not a JSON object": 1}),
    "columns": ("csv", b"text,n\n" + b"".join(f'"{t}",1\n'.encode() for t in GOOD) + b"a,1,2\n", r"line 62: 3 values, expected 2", {"another number of values": 1}),
}  # fmt: skip


def made(tmp_path: Path, kind: str, **more: Any) -> Any:
    source = {"kind": kind, "path": str(tmp_path / f"a.{kind}")} | more
    return prepare(config(source=source, tokenizer="bytes", seq_len=16), seed=0, input_kind="tokens")


@pytest.mark.parametrize("case", CASES)
def test_a_bad_record_is_named_or_skipped_and_counted(tmp_path: Path, case: str) -> None:
    kind, content, message, counts = CASES[case]
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(DataError, match=message):
        made(tmp_path, kind)
    splits = made(tmp_path, kind, on_error="skip")
    assert sorted(decoded(splits.train) + decoded(splits.validation)) == sorted(GOOD)
    assert splits.facts["unreadable"] == {"train": counts}
    assert f"{sum(counts.values())} records rejected" in splits.facts["left_out"]["train"][0]
    listed = [
        json.loads(line) for line in (Path(splits.facts["cache"]["folder"]) / "rejected" / "unreadable.jsonl").read_text().splitlines()
    ]
    assert len(listed) == sum(counts.values())
    assert list(listed[0]) == ["part", "step", "rule", "reason"] and listed[0]["rule"] in counts
    assert (listed[0]["part"], listed[0]["step"]) == ("train", "read") and f"a.{kind}" in listed[0]["reason"]
    assert made(tmp_path, kind, on_error="skip").facts["unreadable"] == splits.facts["unreadable"]  # also when it is found again


@pytest.mark.parametrize("held_out", [None, "count", "apply"])
def test_what_cannot_be_read_is_counted_once_in_its_own_part(tmp_path: Path, held_out: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([b"[1]"]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([b"[1]", b'{"text": null}']).replace(b"record", b"another"))
    source, validation = ({"kind": "jsonl", "path": str(tmp_path / name), "on_error": "skip"} for name in ("a.jsonl", "b.jsonl"))
    cleaning = {} if held_out is None else {"clean": [{"kind": "length", "min": 5}], "clean_held_out": held_out}
    data = config(source=source, validation=validation, tokenizer="bytes", seq_len=16, **cleaning)
    splits = prepare(data, seed=0, input_kind="tokens")
    assert splits.facts["unreadable"] == {"train": {"not a JSON object": 1}, "validation": {"not a JSON object": 1, "not text": 1}}
    listed = (Path(splits.facts["cache"]["folder"]) / "rejected" / "unreadable.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["part"] for line in listed) == ["train", "validation", "validation"]


def test_a_truncated_archive_keeps_what_came_before(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [f"{i} " + "".join(rng.choices("abcdefghijklmnop ", k=3000)) for i in range(60)]
    whole = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(DataError, match=r"a\.jsonl: damaged or truncated gzip"):
        made(tmp_path, "jsonl")
    splits = made(tmp_path, "jsonl", on_error="skip")
    kept = decoded(splits.train) + decoded(splits.validation)
    assert 30 < len(kept) < 60 and set(kept) < set(texts)
    assert splits.facts["unreadable"] == {"train": {"the rest of the file": 1}}


def test_nulls_in_parquet_and_unreadable_text_files(tmp_path: Path) -> None:
    parquet([*GOOD[:5], None, *GOOD[5:]], tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 5: column 'text' is None"):
        made(tmp_path, "parquet")
    splits = made(tmp_path, "parquet", on_error="skip")
    assert sorted(decoded(splits.train) + decoded(splits.validation)) == sorted(GOOD)
    (tmp_path / "files").mkdir()
    for i, text in enumerate(GOOD):
        (tmp_path / "files" / f"{i}.txt").write_text(text)
    (tmp_path / "files" / "bad.txt").write_bytes(b"\xff\xff\xff")
    source = {"kind": "text", "path": str(tmp_path / "files")}
    with pytest.raises(DataError, match=r"bad\.txt: not utf-8"):
        prepare(config(source=source, tokenizer="bytes", seq_len=16), seed=0, input_kind="tokens")
    splits = prepare(config(source=source | {"on_error": "skip"}, tokenizer="bytes", seq_len=16), seed=0, input_kind="tokens")
    assert sorted(decoded(splits.train) + decoded(splits.validation)) == sorted(GOOD)
    assert splits.facts["unreadable"] == {"train": {"file": 1}}


def test_if_every_record_is_rejected_the_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 20)
    with pytest.raises(DataError, match=r"has no text: .* Rejected, for example: .*a\.jsonl, line 1: no key 'text'"):
        made(tmp_path, "jsonl", on_error="skip")


def test_skipping_is_for_text_alone() -> None:
    with pytest.raises(RecipeError, match="on_error.*is only for text without labels"):
        config(source={"kind": "csv", "path": "x.csv", "label": "y", "on_error": "skip"})


def test_a_line_of_many_megabytes_is_read(tmp_path: Path) -> None:
    """10 MB here; 100 MB are in benchmarks/prepare_memory.py."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*GOOD, "long " * 2_000_000]))
    splits = made(tmp_path, "jsonl")
    assert "long " * 2_000_000 in decoded(splits.train) + decoded(splits.validation)


SCRIPT = """
import sys
from preparation_samples import config
from tauon.data import prepare
print("begin", flush=True)
prepare(config(source={"kind": "jsonl", "path": sys.argv[1]}, tokenizer={"kind": "bpe", "vocab": 400}, seq_len=16), seed=0, input_kind="tokens")
"""


@pytest.mark.timeout(600)
def test_killed_at_any_time_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": " ".join(rng.choices(words, k=80))}) + "\n" for _ in range(3000)))

    def start(cache: str) -> subprocess.Popen[str]:
        env = os.environ | {"TAUON_CACHE": str(tmp_path / cache), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "a.jsonl")], env=env, stdout=subprocess.PIPE, text=True)

    def waited(process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.perf_counter()
        assert process.wait(300) == 0
        process.stdout.close()
        return time.perf_counter() - begin

    took = waited(start("whole"))
    hits = 0
    for share in (0.2, 0.5, 0.8):
        process = start("killed")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(share * took)
        process.send_signal(signal.SIGKILL)
        hits += process.wait(300) == -signal.SIGKILL
        process.stdout.close()
        finished = [*(tmp_path / "killed" / "tokens").glob("[!.]*")]
        assert all((p / "preparation.json").exists() for p in finished)  # no half result is visible
        if finished:
            break
    assert hits
    waited(start("killed"))

    def files(cache: str) -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path / cache)): p.read_bytes() for p in (tmp_path / cache).rglob("*") if p.is_file()}

    assert files("whole") == files("killed")
