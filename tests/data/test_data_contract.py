"""What every registered source, tokenizer and augmentation must keep. A new one joins by a line in the table below."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import dump, parse, registered
from tauon.data import DataConfig, Loader, SourceConfig, prepare
from tauon.data.sources.registry import PUBLIC
from tones import tone, write_wav


def _text(tmp: Path) -> dict[str, Any]:
    for i in range(12):
        (tmp / f"{i}.txt").write_text(f"document {i} " * 40)
    return {"path": str(tmp)}


def _jsonl(tmp: Path) -> dict[str, Any]:
    (tmp / "t.jsonl").write_text("\n".join(json.dumps({"text": f"document {i} " * 40}) for i in range(12)))
    return {"path": str(tmp / "t.jsonl")}


def _csv(tmp: Path) -> dict[str, Any]:
    (tmp / "t.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i * i},{i % 3}" for i in range(60)))
    return {"path": str(tmp / "t.csv"), "label": "y"}


def _parquet(tmp: Path) -> dict[str, Any]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"document {i} " * 40 for i in range(12)]}), tmp / "t.parquet")
    return {"path": str(tmp / "t.parquet")}


def _idx(tmp: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4)).astype(np.uint8)
    (tmp / "i.gz").write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 60, 4, 4) + pixels.tobytes()))
    (tmp / "l").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 60) + bytes(i % 3 for i in range(60)))
    return {"images": str(tmp / "i.gz"), "labels": str(tmp / "l")}


def _npz(tmp: Path) -> dict[str, Any]:
    np.savez(tmp / "a.npz", x=np.random.default_rng(0).normal(size=(60, 5)), y=np.arange(60) % 3)
    return {"path": str(tmp / "a.npz")}


def _public(tmp: Path) -> dict[str, Any]:
    mirror = Path(os.environ.get("TAUON_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not mirror.is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    assert "tinyshakespeare" in PUBLIC
    return {"name": "tinyshakespeare"}


def _series(tmp: Path) -> dict[str, Any]:
    (tmp / "s.csv").write_text("date,a,b\n" + "\n".join(f"2020-01-01 {i // 60:02d}:{i % 60:02d}:00,{i},{i % 7}" for i in range(400)))
    return {"path": str(tmp / "s.csv")}


def _wav(tmp: Path) -> dict[str, Any]:
    for i in range(30):
        write_wav(tmp / f"{'ab'[i % 2]}_{i}.wav", tone(300 + 10 * i, 0.02, 8000), 8000)
    return {"path": str(tmp), "pattern": "{label}_{take}"}


def _chat(tmp: Path) -> dict[str, Any]:
    (tmp / "c.json").write_text(
        json.dumps([{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 40)])
    )
    return {"path": str(tmp / "c.json")}


def _pairs(tmp: Path) -> dict[str, Any]:
    (tmp / "p.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}?", "chosen": f"{i}!", "rejected": "no"}) for i in range(30)))
    return {"path": str(tmp / "p.jsonl")}


def _sklearn(tmp: Path) -> dict[str, Any]:
    pytest.importorskip("sklearn")
    return {"name": "iris"}


def _folder(tmp: Path) -> dict[str, Any]:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for i in range(60):
        (tmp / "signs" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        image.new("RGB", (5, 4), (4 * i, i, 255 - i)).save(tmp / "signs" / "abc"[i % 3] / f"{i}.png")
    return {"path": str(tmp / "signs")}


def _text_folder(tmp: Path) -> dict[str, Any]:
    for i in range(40):
        (tmp / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp / "ab"[i % 2] / f"{i}.txt").write_text(f"document {i}")
    return {"path": str(tmp)}


def _webdataset(tmp: Path) -> dict[str, Any]:
    with tarfile.open(tmp / "t.tar", "w") as tar:
        for i in range(12):
            data = f"document {i} ".encode() * 40
            member = tarfile.TarInfo(f"{i:03d}.txt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return {"path": str(tmp / "t.tar")}


def _hf_disk(tmp: Path) -> dict[str, Any]:
    import pyarrow as pa

    table = pa.table({"text": [f"document {i} " * 40 for i in range(12)]})
    with pa.OSFile(str(tmp / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (tmp / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return {"path": str(tmp)}


def _mixture(tmp: Path) -> dict[str, Any]:
    for name in ("one", "two"):
        (tmp / name).mkdir()
        for i in range(12):
            (tmp / name / f"{i}.txt").write_text(f"document {name} {i} " * 40)
    sources = [{"source": {"kind": "text", "path": str(tmp / n)}, "name": n, "weight": w} for n, w in (("one", 1), ("two", 2))]
    return {"sources": sources}


EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": _text, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "idx": _idx, "npz": _npz, "public": _public, "sklearn": _sklearn,
    "python-stdlib": lambda tmp: {"limit": 40}, "series": _series, "folder": _folder,
    "wav": _wav, "chat": _chat, "pairs": _pairs, "text-folder": _text_folder, "webdataset": _webdataset, "hf-disk": _hf_disk, "mixture": _mixture,
}  # fmt: skip


@pytest.fixture(params=sorted(registered("source")))
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceConfig:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TAUON_DATA", os.environ.get("TAUON_DATA", str(Path(__file__).parents[2].parent / "shared" / "data")))
    folder = tmp_path / "here"
    folder.mkdir()
    assert request.param in EXAMPLES, f"source {request.param!r} has no example in this file: add one"
    return parse(SourceConfig, {"kind": request.param, **EXAMPLES[request.param](folder)})


def content(source: SourceConfig) -> list[Any]:
    if source.output_kind() == "text":
        return [(d.name, d.text) for d in source.documents()]
    if source.output_kind() == "series":
        series = source.series()
        return [series.times.tolist(), series.values.tolist(), series.names, series.step, series.season]
    if source.output_kind() == "signals":
        heard = source.signals()
        return [[w.tolist() for w in heard.waves], heard.rate, list(heard.names), heard.label_names]
    if source.output_kind() == "chat":
        return [(c.place, [(m.role, m.content) for m in c.messages]) for c in source.conversations()]
    if source.output_kind() == "pairs":
        return [(p.place, p.prompt, p.chosen, p.rejected) for p in source.pairs()]
    if source.output_kind() == "labelled-text":
        texts = source.labelled_texts()
        return [*zip(texts.texts, texts.targets.tolist(), texts.places, strict=True)]
    table = source.arrays()
    return [table.features.tolist(), table.targets.tolist(), table.feature_names, table.label_names]


def test_a_source_gives_the_same_each_time(source: SourceConfig) -> None:
    first = content(source)
    assert content(source) == first
    again = parse(SourceConfig, json.loads(json.dumps(dump(source))))
    assert content(again) == first
    assert again.fingerprint() == source.fingerprint()
    assert len(source.fingerprint()) == 64
    if source.output_kind() == "text":
        names = [n for n, _ in first]
        assert len(set(names)) == len(names)


def test_a_source_describes_itself_in_json(source: SourceConfig) -> None:
    facts = json.loads(json.dumps(source.describe(), allow_nan=False))
    assert facts["kind"] == source.kind_


def test_ranks_are_disjoint_and_a_resumed_stream_is_the_same(source: SourceConfig) -> None:
    input_kind = {"text": "tokens"}.get(source.output_kind(), source.output_kind())
    settings = {"tokenizer": "bytes", "seq_len": 16} if input_kind in ("tokens", "chat", "pairs") else {}
    settings |= {"seq_len": 200} if input_kind == "pairs" else {}
    tree = parse(DataConfig, {"source": dump(source), **settings})
    made = prepare(tree, seed=1, input_kind=input_kind)
    n = len(made.train)
    batch = max(2, n // 3 // 2 * 2)
    ranks = [Loader(made.train, batch=batch, seed=1, rank=r, world=2) for r in range(2)]
    seen = [np.concatenate([loader.batch_at(s).index.numpy() for s in range(2)]) for loader in ranks]  # type: ignore[union-attr]
    assert set(seen[0]).isdisjoint(seen[1])  # two steps lie within the first epoch
    again = prepare(parse(DataConfig, {"source": dump(source), **settings}), seed=1, input_kind=input_kind)
    resumed = Loader(again.train, batch=batch, seed=1, rank=1, world=2, workers=1)
    for step in (3, 4):
        one, two = ranks[1].batch_at(step), resumed.batch_at(step)
        assert np.array_equal(one.inputs.numpy(), two.inputs.numpy())
        assert np.array_equal(one.targets.numpy(), two.targets.numpy())
    resumed.close()


def test_importing_the_room_does_not_import_heavy_libraries() -> None:
    heavy = ("torch", "tokenizers", "pyarrow", "sklearn", "zstandard", "rich")
    code = f"import sys, tauon.data; print([m for m in {heavy!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
