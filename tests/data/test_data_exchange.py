"""Documents go to Parquet, WebDataset and Hugging Face datasets and come back, checked against the libraries of those formats."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparation_samples import config, decoded

from tauon.config import parse
from tauon.data import SourceConfig, prepare
from tauon.data.share import export_documents
from tauon.data.trace import Trail
from tauon.errors import DataError, RecipeError

TEXTS = [f"text {i}: Zürich, 日本語 and 😀 " + "words " * (i % 17) for i in range(40)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "licence": "CC0-1.0"}
    made = prepare(config(source=source, tokenizer={"kind": "bpe", "vocab": 300}, seq_len=8), seed=0, input_kind="tokens")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text(json.dumps(made.facts))
    return Trail(tmp_path / "run")


def read(source: dict[str, Any]) -> list[str]:
    return [d.text for d in parse(SourceConfig, source).documents()]


def texts_of(trail: Trail, part: str) -> list[str]:
    return [trail.tokenizer.decode(d) for d in trail.shards(part).documents()]


@pytest.mark.parametrize("few", [False, True])
def test_parquet_there_and_back(trail: Trail, tmp_path: Path, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if few:  # several row groups, several files
        monkeypatch.setattr("tauon.data.share._ROWS", 3)
        monkeypatch.setattr("tauon.data.share._PER_FILE", 4)
    counts = export_documents(trail, "parquet", tmp_path / "out")
    assert sum(counts.values()) == 40
    for part in ("train", "validation"):
        table = pq.read_table(tmp_path / "out" / part)
        assert table["text"].to_pylist() == texts_of(trail, part) == read({"kind": "parquet", "path": str(tmp_path / "out" / part)})
        assert [TEXTS[r] for r in table["record"].to_pylist()] == table["text"].to_pylist()
        assert set(table["licence"].to_pylist()) == {"CC0-1.0"}
        assert [name.endswith(f", line {r + 1}") for name, r in zip(table["name"].to_pylist(), table["record"].to_pylist(), strict=True)]
        assert len([*(tmp_path / "out" / part).iterdir()]) == (-(-counts[part] // 12) if few else 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_webdataset_there_and_back(trail: Trail, tmp_path: Path) -> None:
    export_documents(trail, "webdataset", tmp_path / "out")
    again = export_documents(trail, "webdataset", tmp_path / "again")
    for part in again:
        tars = sorted((tmp_path / "out" / part).iterdir())
        assert [t.read_bytes() for t in tars] == [t.read_bytes() for t in sorted((tmp_path / "again" / part).iterdir())]
        assert read({"kind": "webdataset", "path": str(tmp_path / "out" / part)}) == texts_of(trail, part)
        wds = pytest.importorskip("webdataset")
        samples = [*wds.WebDataset([str(t) for t in tars], shardshuffle=False).decode()]
        assert [s["txt"] for s in samples] == texts_of(trail, part)
        assert [TEXTS[s["json"]["record"]] for s in samples] == texts_of(trail, part)


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "a.tar.gz"), compress=True) as sink:
        for i, text in enumerate(TEXTS):
            sink.write({"__key__": f"folder/sample{i:03d}", "txt": text, "meta.json": {"body": text.upper()}, "cls": i % 3})
    path = str(tmp_path / "a.tar.gz")
    assert read({"kind": "webdataset", "path": path}) == TEXTS
    assert read({"kind": "webdataset", "path": path, "text": "meta.json", "column": "body"}) == [t.upper() for t in TEXTS]
    with pytest.raises(DataError, match=r"no member has the extension 'md'"):
        read({"kind": "webdataset", "path": path, "text": "md"})
    with pytest.raises(DataError, match=r"member folder/sample000\.meta\.json: key 'no' is NoneType, expected text"):
        read({"kind": "webdataset", "path": path, "text": "meta.json", "column": "no"})
    with pytest.raises(RecipeError, match="column.*has no effect unless text is the extension of a JSON member"):
        config(source={"kind": "webdataset", "path": path, "column": "body"})


def test_damaged_tars_are_named_or_skipped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, text in enumerate(TEXTS):
            data = b"\xff\xff\xff" if i == 3 else text.encode() * 30
            member = tarfile.TarInfo(f"{i:03d}.txt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = {"kind": "webdataset", "path": str(tmp_path / "a.tar")}
    with pytest.raises(DataError, match=r"a\.tar, member 003\.txt: not utf-8"):
        read(source)
    assert read(source | {"on_error": "skip"}) == [t * 30 for t in TEXTS if t != TEXTS[3]]
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    assert 10 < len(read(source | {"on_error": "skip"})) < 39
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"a\.tar: damaged or truncated tar"):
        read(source)


def test_hugging_face_there_and_back(trail: Trail, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    counts = export_documents(trail, "huggingface", tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    for part in counts:
        assert loaded[part]["text"][:] == texts_of(trail, part)
        assert loaded[part].features["record"].dtype == "int64"
        assert read({"kind": "hf-disk", "path": str(tmp_path / "out"), "split": part}) == texts_of(trail, part)
    made = prepare(
        config(source={"kind": "hf-disk", "path": str(tmp_path / "out")}, tokenizer="bytes", seq_len=8), seed=0, input_kind="tokens"
    )
    assert (decoded(made.train), decoded(made.validation)) == (texts_of(trail, "train"), texts_of(trail, "validation"))  # its own parts


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"body": TEXTS, "y": [i % 2 for i in range(40)], "x": [i / 4 for i in range(40)]})
    whole.save_to_disk(str(tmp_path / "one"), num_shards=3)
    whole.select(range(5, 30, 3)).save_to_disk(str(tmp_path / "picked"))
    datasets.DatasetDict({"train": whole, "dev": whole.select(range(4))}).save_to_disk(str(tmp_path / "dict"))
    one = {"kind": "hf-disk", "path": str(tmp_path / "one"), "text": "body"}
    assert read(one) == TEXTS
    assert read(one | {"path": str(tmp_path / "picked")}) == TEXTS[5:30:3]
    held = parse(SourceConfig, one | {"path": str(tmp_path / "dict")}).part("validation")
    assert held is not None and [d.text for d in held.documents()] == TEXTS[:4]
    table = parse(SourceConfig, {"kind": "hf-disk", "path": str(tmp_path / "one"), "label": "y", "features": ["x"]}).arrays()
    assert table.features[:, 0].tolist() == [i / 4 for i in range(40)] and table.targets.tolist() == [i % 2 for i in range(40)]


def test_folders_that_are_no_dataset_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    source = {"kind": "hf-disk", "path": str(folder)}
    with pytest.raises(DataError, match=r"d: no such folder"):
        read(source)
    folder.mkdir()
    with pytest.raises(DataError, match=r"has no state\.json"):
        read(source)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DataError, match=r"d/secret\.arrow: is missing"):
        read(source)
    (folder / "secret.arrow").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"secret\.arrow: not an Arrow stream"):
        read(source)
    schema = pa.schema([("text", pa.string())])
    with pa.OSFile(str(folder / "secret.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for _ in range(50):
            writer.write_table(pa.table({"text": TEXTS}, schema))
    whole = (folder / "secret.arrow").read_bytes()
    (folder / "secret.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"secret\.arrow"):
        read(source)
    (folder / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(DataError, match=r"has no split 'train'\. Available: a, b"):
        read(source)


def test_nothing_is_overwritten_and_nothing_half_written(trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(DataError, match="is not empty"):
        export_documents(trail, "parquet", tmp_path / "out")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter", full)
    with pytest.raises(DataError, match=r"new: cannot be written \(No space left on device\)"):
        export_documents(trail, "parquet", tmp_path / "new")
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]
