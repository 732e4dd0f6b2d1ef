"""Text prepared in blocks: equal bytes with one process, several, or Ray; killed at any time, it continues from the finished blocks."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tauon.config import parse
from tauon.data import DataConfig, Document, Rejected, cleaning_function, prepare
from tauon.data.block_workers import local_workers
from tauon.data.blocks import Blocks, packed, unpacked
from tauon.errors import DataError, LaunchError, RecipeError

CLEAN = [
    {"kind": "length", "min": 5, "unit": "words"},
    {"kind": "script", "scripts": ["latin"]},
    {"kind": "expression", "keep": "digits < 0.5"},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghé", k=rng.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(400)]
    texts[7:9] = ["один два три четыре пять шесть", "a text that says <|bos|> and <|endoftext|> as plain text"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return tmp_path / "c.jsonl"


def section(corpus: Path, **more: Any) -> dict[str, Any]:
    base = {"source": {"kind": "jsonl", "path": str(corpus)}, "clean": CLEAN, "tokenizer": {"kind": "bpe", "vocab": 400}, "seq_len": 16}
    return base | more


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.data.clean.documents._CHARS", 10_000)
    monkeypatch.setattr("tauon.data.token_blocks._CHARS", 10_000)


def bytes_of(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def prepared(config: dict[str, Any], cache: Path) -> Any:
    return prepare(parse(DataConfig, config | {"cache": str(cache)}), seed=0, input_kind="tokens")


@pytest.mark.usefixtures("small_blocks")
def test_several_processes_write_the_bytes_of_one(corpus: Path, tmp_path: Path) -> None:
    one, two = prepared(section(corpus), tmp_path / "one"), prepared(section(corpus, processes=2), tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert one.facts["clean"]["train"]["rejected"] > 10
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert not [*tmp_path.rglob("*.block")]


ON = """
import json, os, sys
import tauon.data.clean.documents, tauon.data.token_blocks
from tauon.config import parse
from tauon.data import DataConfig, prepare
tauon.data.clean.documents._CHARS = tauon.data.token_blocks._CHARS = 10_000
prepare(parse(DataConfig, json.loads(sys.argv[1])), seed=0, input_kind="tokens", progress=lambda what, done, total: print(what, done, flush=True))
"""


def start(config: dict[str, Any], cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-W", "ignore", "-c", ON, json.dumps(config | {"cache": str(cache)})]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("small_blocks")
def test_ray_writes_the_bytes_of_one_process(corpus: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pandas") is None:
        pytest.skip("ray or pandas not installed: pip install 'tauon[ray]'")
    prepared(section(corpus), tmp_path / "one")
    with start(section(corpus, cluster="ray", processes=2), tmp_path / "ray") as process:  # Ray leaves files open, which are warnings here
        process.communicate(timeout=240)
    assert process.returncode == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "ray")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("phase", "processes"), [("clean train", None), ("tokenise", None), ("tokenise", 2)])
def test_killed_it_continues_from_the_finished_blocks(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, processes: int | None
) -> None:
    prepared(section(corpus), tmp_path / "whole")
    cache = tmp_path / "killed"
    with start(section(corpus, processes=processes), cache) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(phase):
                process.send_signal(signal.SIGKILL)
                break
    finished = {p.name for p in cache.rglob("*.block")}
    if [*cache.rglob("preparation.json")]:
        pytest.skip("it had ended before the signal came")
    assert finished
    written: list[str] = []
    from tauon.data import blocks

    write = blocks.atomic_write
    monkeypatch.setattr(blocks, "atomic_write", lambda path, *a, **k: (written.append(path.name), write(path, *a, **k)))
    prepared(section(corpus), cache)
    assert written
    assert not finished & {*written}
    assert bytes_of(cache) == bytes_of(tmp_path / "whole")


@pytest.mark.usefixtures("small_blocks")
def test_ctrl_c_keeps_finished_blocks_and_an_error_of_the_data_does_not(corpus: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if what == "tokenise":
            raise KeyboardInterrupt

    config = section(corpus) | {"cache": str(tmp_path / "a")}
    with pytest.raises(KeyboardInterrupt):
        prepare(parse(DataConfig, config), seed=0, input_kind="tokens", progress=stop)
    assert [*(tmp_path / "a").rglob("*.block")]
    with pytest.raises(DataError, match="cleaning rejects"):
        prepared(section(corpus, clean=[{"kind": "length", "min": 50, "unit": "words"}]), tmp_path / "b")
    assert not [*(tmp_path / "b").rglob("*.block")]


class Upper:
    """Of each document, its text in upper case; one word ends the process."""

    key, modules = "upper", ()

    def __call__(self, documents: list[Document]) -> bytes:
        if any(d.text == "die" for d in documents):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(d.text == "fail" for d in documents):
            raise DataError("this text fails")
        return packed({"pid": os.getpid()}, "".join(d.text for d in documents).upper().encode())


def documents(*texts: str) -> Iterator[Document]:
    return (Document(text, f"d:{i}", i) for i, text in enumerate(texts))


def test_a_stored_block_of_other_documents_or_with_damage_is_made_again(tmp_path: Path) -> None:
    def made(*texts: str) -> list[str]:
        with local_workers(1) as workers:
            return [str(unpacked(made)[1], "utf-8") for _, made in Blocks(tmp_path, workers).run("x", documents(*texts), Upper(), 2)]

    assert made("ab", "cd", "ef") == ["AB", "CD", "EF"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(before) == 3
    first, second, third = sorted(before)
    damaged = bytearray(third.read_bytes())
    damaged[-1] ^= 1
    third.write_bytes(damaged)
    assert made("ab", "xy", "ef") == ["AB", "XY", "EF"]
    assert first.stat().st_mtime_ns == before[first]
    assert second.stat().st_mtime_ns != before[second]
    assert third.read_bytes()[-1] == ord("F")


def test_errors_and_deaths_of_other_processes_are_said(tmp_path: Path) -> None:
    pids: list[int] = []

    def run(*texts: str) -> None:
        with local_workers(2) as workers:
            pids.extend(unpacked(made)[0]["pid"] for _, made in Blocks(tmp_path, workers).run("x", documents(*texts), Upper(), 2))

    run("one block alone is done here")
    assert {*pids} == {os.getpid()}
    with pytest.raises(DataError, match="this text fails"):
        run("gh", "ij", "fail", "kl")
    assert {*pids[1:]} != {os.getpid()}
    with pytest.raises(LaunchError, match=r"killed by signal 9 \(out of memory\?\)\. The same command continues"):
        run("mn", "die")


@pytest.mark.usefixtures("small_blocks")
def test_cleaning_functions_of_a_program_are_called_in_its_own_process(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauon.data.token_blocks._CHARS", 1 << 22)
    called: list[int] = []

    @cleaning_function("no-short")
    def no_short(text: str) -> bool | Rejected:
        called.append(os.getpid())
        return len(text) > 20 or Rejected("short", "too short")

    no_short.__module__ = "__main__"
    made = prepared(section(corpus, clean=[{"kind": "function", "name": "no-short"}], processes=2), tmp_path / "a")
    assert called
    assert made.facts["clean"]["train"]["rejected"] > 3


def test_where_data_is_prepared_is_checked(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cluster: is 'moon'; use ray, or the address"):
        parse(DataConfig, section(corpus, cluster="moon"))
    for wrong in (0, "many", 5000):
        with pytest.raises(RecipeError, match="processes"):
            parse(DataConfig, section(corpus, processes=wrong))
    assert parse(DataConfig, section(corpus, processes="auto")).processes == "auto"
    assert (
        prepared(section(corpus, processes="auto"), tmp_path / "auto").fingerprint
        == prepared(section(corpus), tmp_path / "one").fingerprint
    )
    table = tmp_path / "t.csv"
    table.write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(30)))
    config = parse(DataConfig, {"source": {"kind": "csv", "path": str(table), "label": "y"}, "processes": 2})
    with pytest.raises(RecipeError, match="processes"):
        prepare(config, seed=0, input_kind="arrays")
